"""The report itself: whole, self-contained, and the same numbers in all its forms."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections import Counter
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from parcontrol.analysis import report_plots
from parcontrol.analysis.findings import analyse
from parcontrol.analysis.report import compose, escape_markdown, file_name, generate_report, inline_svg
from parcontrol.analysis.results import load_experiment_results
from parcontrol.runs import RunDirectory
from tests.analysis.sweeps import BACKBONE_LOSS, GAINS, write_revalidation, write_run, write_sweep

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Reads a page strictly: every element is closed in order; text, ids, links and tables are kept."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[tuple[str, str]] = []
        self.tags: Counter[str] = Counter()
        self.labels: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags[tag] += 1
        if tag not in VOID:
            self.open.append(tag)
        if "id" in given:
            self.ids.append(given["id"])
        for name in ("href", "xlink:href", "src", "clip-path", "action", "data"):
            if name in given:
                self.links.append((name, given[name]))
        if tag == "svg":
            self.labels.append(given["aria-label"])
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words.append(data)
        if self.open and {"td", "th"} & set(self.open) and "table" in self.open:
            self.tables[-1][-1][-1] += data.strip()


def report_on(*directories, name="Planted", to: Path):
    paths = generate_report(load_experiment_results(*directories), to, name)
    return {path.name: path for path in paths}


def page_of(files, name="Planted") -> Page:
    return Page(files[f"{name}.html"].read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A report on P = 1, 2, 4, 8 with one seed, and where its sweep is."""
    root = tmp_path_factory.mktemp("whole")
    write_sweep(root / "multi_P_experiment", streams=(1, 2, 4, 8), loss=lambda P, seed: BACKBONE_LOSS - GAINS[P])
    return report_on(root / "multi_P_experiment", to=root / "analysis"), root


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves the plots empty where a test is about words: drawing takes nearly all of a report's time."""
    monkeypatch.setattr(report_plots, "render", lambda figure: ("<svg></svg>", b""))


# --- its files ---


def test_it_has_all_its_files_and_names_the_page_first(whole):
    files, root = whole
    assert next(iter(files)) == "Planted.html"
    suffixes = Counter(path.suffix for path in files.values())
    assert suffixes[".png"] == suffixes[".svg"] == 10
    assert (suffixes[".csv"], suffixes[".json"], suffixes[".md"]) == (3, 1, 1)
    assert sorted(files) == sorted(path.name for path in (root / "analysis").iterdir())
    for path in files.values():
        if path.suffix == ".svg":
            ElementTree.fromstring(path.read_text())
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")


def test_the_page_is_well_formed_and_asks_nobody_for_anything(whole):
    files, _ = whole
    page = page_of(files)
    assert [link for link in page.links if not link[1].startswith(("#", "data:image/png;base64,", "url(#"))] == []
    assert page.tags["script"] == page.tags["link"] == page.tags["iframe"] == 0
    text = files["Planted.html"].read_text()
    css = re.search(r"<style>(.*?)</style>", text, re.DOTALL).group(1)
    assert "@import" not in css
    assert "url(" not in css
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in css


def test_ids_are_unique_and_links_within_the_page_lead_somewhere(whole):
    page = page_of(whole[0])
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []
    inner = {target.removeprefix("url(").removesuffix(")") for _, target in page.links if "#" in target[:5]}
    assert {target.removeprefix("#") for target in inner} <= set(page.ids)


def test_every_plot_says_what_it_shows(whole):
    page = page_of(whole[0])
    assert page.tags["svg"] == page.tags["figure"] == page.tags["figcaption"] == 10
    assert all(len(label) > 40 for label in page.labels)
    assert "2.3960 at P = 1, 2.3810 at P = 2, 2.3690 at P = 4, 2.3610 at P = 8" in page.labels[0]


def test_markdown_shows_every_plot(whole):
    files, _ = whole
    shown = re.findall(r"\]\(([^)]+)\)", files["Planted.md"].read_text())
    assert sorted(shown) == sorted(name for name in files if name.endswith(".png"))


def test_the_same_runs_give_the_same_report_byte_for_byte(whole, tmp_path):
    files, root = whole
    again = report_on(root / "multi_P_experiment", to=tmp_path)
    assert {name: path.read_bytes() for name, path in files.items()} == {
        name: path.read_bytes() for name, path in again.items()
    }


# --- its numbers ---


def number(text: str) -> float:
    return float(text.replace("−", "-").replace("×", "").replace(",", ""))


def markdown_tables(text: str) -> list[list[list[str]]]:
    tables: list[list[list[str]]] = []
    previous = ""
    for line in text.splitlines():
        if line.startswith("|"):
            if not previous.startswith("|"):
                tables.append([])
            cells = [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if set("".join(cells)) - set(":-"):
                tables[-1].append([unescape(cell) for cell in cells])
        previous = line
    return tables


def test_page_and_markdown_hold_the_same_tables(whole):
    files, _ = whole
    tables = page_of(files).tables
    assert tables == markdown_tables(files["Planted.md"].read_text())
    assert len(tables) == 13


def test_page_json_and_csv_hold_the_same_losses_and_differences(whole):
    files, _ = whole
    data = json.loads(files["Planted.json"].read_text())
    (sweep,) = data["sweeps"]
    losses = page_of(files).tables[0][1:]
    for row, summary in zip(losses, sweep["streams"], strict=True):
        assert row[0] == f"P = {summary['P']}"
        assert number(row[1]) == pytest.approx(summary["loss"], abs=5e-5)
        assert number(row[3]) == pytest.approx(summary["against_backbone"]["difference"], abs=5e-5)
        assert summary["loss"] == pytest.approx(BACKBONE_LOSS - GAINS[summary["P"]], abs=1e-12)
    rows = page_of(files).tables[1][1:]
    with files["Planted_differences.csv"].open(newline="") as file:
        written = [row for row in csv.DictReader(file) if row["reference"] != "frozen backbone"]
    for row, difference, line in zip(rows, sweep["differences"], written, strict=True):
        assert row[:2] == [difference["compared"], difference["reference"]] == [line["compared"], line["reference"]]
        assert number(row[2]) == pytest.approx(difference["difference"], abs=5e-5)
        assert float(line["difference"]) == difference["difference"]
        low, high = row[3].split(" to ")
        assert [number(low), number(high)] == pytest.approx(difference["interval_documents"], abs=5e-5)
        assert [float(line["documents_low"]), float(line["documents_high"])] == difference["interval_documents"]
        assert row[-1] == difference["verdict"] == line["verdict"]


def test_the_runs_csv_holds_the_results_as_they_were_written(whole):
    files, root = whole
    with files["Planted_runs.csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["P1", "P2", "P4", "P8"]
    for row in rows:
        result = json.loads((root / "multi_P_experiment" / row["run"] / "result.json").read_text())
        for key in ("tokens", "final_validation_loss", "peak_memory_bytes", "tokens_per_second", "data_sha256"):
            assert row[key] == str(result[key])
        assert row["status"] == "finished"


def test_the_curves_csv_holds_every_record(whole):
    files, root = whole
    with files["Planted_curves.csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    for run in ("P1", "P4"):
        lines = (root / "multi_P_experiment" / run / "metrics.jsonl").read_text().splitlines()
        records = list(map(json.loads, lines))
        planted = [(r["tokens"], r["validation_loss"]) for r in records if "validation_loss" in r]
        found = [r for r in rows if r["run"] == run and r["quantity"] == "validation_loss"]
        assert [(int(row["tokens"]), float(row["value"])) for row in found] == planted
    weights = [row for row in rows if (row["run"], row["quantity"]) == ("P4", "mean_weight")]
    assert [row["stream"] for row in weights[:4]] == ["0", "1", "2", "3"]


def test_the_summary_says_the_planted_differences_with_their_uncertainty(whole):
    text = page_of(whole[0]).text
    data = json.loads(whole[0]["Planted.json"].read_text())["sweeps"][0]
    low, high = (f"{end:+.4f}".replace("-", "−") for end in data["differences"][2]["interval_documents"])
    assert f"P = 8 ends 0.0350 nats per token below P = 1 (95 % interval over documents {low} to {high})." in text
    assert "Against the frozen backbone alone (2.4760) the change is −0.0800 at P = 1" in text
    assert "P = 8 took 8.00× the time per token and 4.50× the peak memory of P = 1" in text
    worth = data["laws"][0]["worth"][-1]
    assert f"P = 8 streams are worth {worth['factor']:.3f}× the parameters here" in text
    assert "the paper's fits say 1.818× on Stack-V2-Python and 1.695× on Pile" in text


def test_what_was_measured_after_training_is_said_wherever_it_matters(tmp_path, undrawn):
    write_sweep(tmp_path / "sweep", streams=(1, 2), loss=lambda P, seed: 2.4)
    for P, final in ((1, 2.30), (2, 2.27)):
        write_revalidation(RunDirectory(tmp_path / "sweep" / f"P{P}"), final)
    files = report_on(tmp_path / "sweep", to=tmp_path / "out")
    text = page_of(files).text
    assert re.search(r"Losses were measured again after training, on [\d,]+ tokens of 120 documents\.", text)
    assert "P = 2 ends 0.0300 nats per token below P = 1" in text
    assert "Final losses were measured again afterwards: they need not be where the lines end." in text
    assert "e" * 64 in text
    with files["Planted_runs.csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["final_validation_loss"]) for row in rows] == pytest.approx([2.30, 2.27])
    assert [row["measured_again"] for row in rows] == ["2026-01-02T03:04:05+00:00"] * 2


def test_the_curves_keep_the_backbone_that_was_measured_with_them(tmp_path):
    run = write_run(tmp_path / "P1", 1)
    write_revalidation(run, 2.3, backbone_loss=BACKBONE_LOSS + 0.01)
    (found,) = analyse(load_experiment_results(tmp_path)).sweeps
    (axes,) = report_plots.loss_over_tokens(found, report_plots.Palette([1])).axes
    (level,) = {float(line.get_ydata()[0]) for line in axes.lines if len(set(line.get_ydata())) == 1}
    assert level == pytest.approx(BACKBONE_LOSS)


def test_shards_hashes_and_revisions_are_there(whole):
    text = page_of(whole[0]).text
    for planted in ("train/03.jsonl.zst", "81,920", "10,240", f"{20:064x}", "5" * 40, "b" * 64, "org/text"):
        assert planted in text


# --- what it warns of ---


def test_one_seed_is_on_top_and_in_the_summary(whole):
    page = page_of(whole[0])
    top, rest = page.text.split("In short", 1)
    assert "failed Enough seeds : one seed: seed noise is unmeasured" in top
    assert "differences between P have no error bars from seeds" in top
    assert "There is one seed, so seed noise is unmeasured" in rest


@pytest.mark.usefixtures("undrawn")
def test_failed_lines_stand_on_top_in_every_form(tmp_path):
    write_sweep(tmp_path / "sweep", seeds=(1, 2, 3))
    shutil.rmtree(tmp_path / "sweep" / "P2_seed2")
    write_run(tmp_path / "sweep" / "P2_seed2", 2, 2, settings={"training.learning_rate": 0.01}, tokens=5000)
    files = report_on(tmp_path / "sweep", to=tmp_path / "out")
    top = page_of(files).text.split("In short")[0]
    assert "failed Equal tokens : 10,240 tokens in" in top
    assert "training.learning_rate" in top
    assert "passed" not in top
    markdown = files["Planted.md"].read_text().split("## In short")[0]
    assert "- **failed: Equal tokens**: 10,240 tokens in P1\\_seed1" in markdown
    data = json.loads(files["Planted.json"].read_text())["sweeps"][0]
    failed = {check["key"] for check in data["checks"] if check["status"] == "failed"}
    assert failed == {"equal_tokens", "equal_configuration"}
    assert "P = 2 and P = 1 are not compared: 10,240 against 5,000 tokens" not in top
    # The run is left out, not averaged in with a warning.
    assert "P2_seed2 (5,000 against 10,240 tokens; other training.learning_rate)" in page_of(files).text
    assert data["streams"][1]["runs"] == ["P2_seed1", "P2_seed3"]
    assert [item["run"] for item in data["left_out"]] == ["P2_seed2"]


@pytest.mark.usefixtures("undrawn")
def test_seeds_at_some_P_only_are_said(tmp_path):
    write_run(tmp_path / "sweep" / "P1_seed1", 1, 1)
    write_run(tmp_path / "sweep" / "P1_seed2", 1, 2)
    write_run(tmp_path / "sweep" / "P2_seed1", 2, 1)
    text = page_of(report_on(tmp_path / "sweep", to=tmp_path / "out")).text.split("In short")[1]
    assert "At P = 2 there is one seed, so seed noise is unmeasured there" in text


@pytest.mark.usefixtures("undrawn")
def test_a_sweep_without_a_fault_has_no_warnings(tmp_path):
    write_sweep(tmp_path / "sweep", seeds=(1, 2, 3))
    files = report_on(tmp_path / "sweep", to=tmp_path / "out")
    assert "What stands against" not in page_of(files).text
    assert "What stands against" not in files["Planted.md"].read_text()


@pytest.mark.usefixtures("undrawn")
def test_no_difference_shown_is_said_in_these_words(tmp_path):
    write_sweep(tmp_path / "s", streams=(1, 2), loss=lambda P, seed: 2.39 - 1e-5 * P, document_noise=0.05)
    files = report_on(tmp_path / "s", to=tmp_path / "out")
    for text in (page_of(files).text, files["Planted.md"].read_text(), files["Planted.json"].read_text()):
        assert "no difference shown" in text
    text = page_of(files).text
    assert "Between P = 2 and P = 1 no difference is shown: −0.0000 nats per token" in text
    assert "What P = 2 streams are worth in parameters is not stated: no difference in loss is shown" in text


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_is_not_finished_is_said_not_dropped(tmp_path):
    write_sweep(tmp_path / "sweep", streams=(1, 2))
    write_run(tmp_path / "sweep" / "P4", 4, steps=12)
    (tmp_path / "sweep" / "P8").mkdir()
    files = report_on(tmp_path / "sweep", to=tmp_path / "out")
    text = page_of(files).text
    assert "P4: unfinished, 12 of 20 steps; P8: has not started" in text.split("In short")[0]
    assert "2 more runs are not finished or cannot be read and left out." in text
    with files["Planted_runs.csv"].open(newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert (rows["P4"]["status"], rows["P4"]["final_validation_loss"]) == ("unfinished, 12 of 20 steps", "")
    assert rows["P8"]["status"] == "has not started: there is no configuration"
    assert any("P4 from" in label for label in page_of(files).labels)  # its curve is drawn


# --- sweeps of every shape ---


@pytest.mark.parametrize("streams", [(1,), (4,), (1, 2), (1, 2, 4)])
@pytest.mark.parametrize("seeds", [(42,), (1, 2)])
def test_any_number_of_streams_and_seeds(tmp_path, streams, seeds):
    write_sweep(tmp_path / "sweep", streams=streams, seeds=seeds)
    files = report_on(tmp_path / "sweep", to=tmp_path / "out")
    page = page_of(files)
    assert page.tables == markdown_tables(files["Planted.md"].read_text())
    assert [row[0] for row in page.tables[0][1:]] == [f"P = {P}" for P in streams]
    for row, P in zip(page.tables[0][1:], streams, strict=True):
        assert number(row[1]) == pytest.approx(BACKBONE_LOSS - GAINS[P], abs=3e-4)
    assert ("With one P there is no comparison." in page.text) == (len(streams) == 1)
    assert ("interval, seeds" in page.text) == (len(seeds) > 1)
    heat_maps = [name for name in files if "_weights_" in name and name.endswith(".svg")]
    assert len(heat_maps) == len(seeds) * sum(P > 1 for P in streams)


@pytest.mark.usefixtures("undrawn")
def test_streams_that_are_no_powers_of_two_have_colours_of_their_own(tmp_path):
    write_sweep(tmp_path / "sweep", streams=(1, 2, 3, 5), loss=lambda P, seed: 2.4 - 0.01 * P)
    page = Path(report_on(tmp_path / "sweep", to=tmp_path / "out")["Planted.html"]).read_text()
    chips = dict(re.findall(r'class="pill stream (c\d)">P = (\d)<', page))
    assert sorted(chips.values()) == ["1", "2", "3", "5"]


def test_nothing_finished_still_gives_a_report(tmp_path):
    write_run(tmp_path / "sweep" / "P1", 1, steps=5)
    (tmp_path / "sweep" / "P2").mkdir()
    text = page_of(report_on(tmp_path / "sweep", to=tmp_path / "out")).text
    assert "No run is finished: there is nothing to compare yet." in text


def test_runs_without_any_record_still_give_a_report(tmp_path):
    (tmp_path / "sweep" / "P1").mkdir(parents=True)
    text = page_of(report_on(tmp_path / "sweep", to=tmp_path / "out")).text
    assert "P1: has not started" in text


def test_several_sweeps_stand_in_one_report(tmp_path):
    write_sweep(tmp_path / "a", streams=(1, 2))
    changed = {"training.learning_rate": 0.01}
    write_sweep(tmp_path / "b", streams=(1, 2), loss=lambda P, seed: 2.3 - 0.01 * P, settings=changed)
    files = report_on(tmp_path / "a", tmp_path / "b", to=tmp_path / "out")
    page = page_of(files)
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []
    assert page.tables == markdown_tables(files["Planted.md"].read_text())
    for words in ("Sweeps compared", "Sweep a", "Sweep b", "b, P = 2", "No joint law L(N, P) is fitted"):
        assert words in page.text
    assert page.tables[0][1:] == [
        ["a", "Planted-135M", "107M", "2.3960", "2.3810"],
        ["b", "Planted-135M", "107M", "2.2900", "2.2800"],
    ]
    assert page.tables[2][1:] == [["training.learning_rate", "0.003", "0.01"]]
    data = json.loads(files["Planted.json"].read_text())
    assert [item["difference"] for item in data["between_sweeps"]] == pytest.approx([-0.106, -0.101], abs=1e-3)


def test_several_backbones_bring_the_joint_law(tmp_path):
    from tests.analysis.test_findings import write_backbones

    write_backbones(tmp_path / "sizes", (10**8, 3 * 10**8, 10**9))
    files = report_on(tmp_path / "sizes", to=tmp_path / "out")
    page = page_of(files)
    assert "Over 3 model sizes the joint law L(N, P) gives k = 0.300" in page.text
    assert "Planted_joint_law.svg" in files
    assert page.tables == markdown_tables(files["Planted.md"].read_text())


# --- hostile names ---

HOSTILE = '<img src=x onerror="alert(1)"> & $x_1$ | `a` [b](http://evil.example) </svg>'


def test_hostile_names_are_shown_and_do_nothing(tmp_path):
    settings = {"model.name": HOSTILE, "data.repo": HOSTILE, "logging.wandb_project": HOSTILE}
    run = HOSTILE.replace("/", "")
    for P, name in ((1, "P1"), (2, run)):
        write_run(tmp_path / run / name, P, settings=settings, meta={"dataset": HOSTILE, "model": HOSTILE})
    write_sweep(tmp_path / "other", streams=(1, 2))
    files = report_on(tmp_path / run, tmp_path / "other", name=HOSTILE, to=tmp_path / "out")
    stem = file_name(HOSTILE)
    page = page_of(files, stem)
    assert page.tags["img"] == page.tags["script"] == 0
    assert HOSTILE in page.text
    assert [target for _, target in page.links if "evil" in target] == []
    assert page.tables == markdown_tables(files[f"{stem}.md"].read_text())
    for line in files[f"{stem}.md"].read_text().splitlines():
        assert "<img" not in line
        assert re.findall(r"(?<!\\)\]\(", line) == (["]("] if line.startswith("![") else [])
    for path in files.values():
        assert re.fullmatch(r"[\w.-]+", path.name)
        if path.suffix == ".svg":
            ElementTree.fromstring(path.read_text())


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("ParScale_Replication", "ParScale_Replication"),
        ("../../etc/passwd", "etc_passwd"),
        ("a b/c", "a_b_c"),
        (".hidden", "hidden"),
        ("x" * 300, "x" * 100),
    ],
)
def test_file_names_stay_in_their_folder(name, stem):
    assert file_name(name) == stem


@pytest.mark.parametrize("name", ["", "///", "..", "漢字"])
def test_a_name_without_a_letter_is_refused_before_anything_is_written(tmp_path, name):
    write_run(tmp_path / "P1", 1)
    with pytest.raises(ValueError, match="needs a letter or a digit"):
        generate_report(load_experiment_results(tmp_path), tmp_path / "out", name)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_folder_that_cannot_be_written_is_refused_in_one_line(tmp_path):
    write_run(tmp_path / "P1", 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write the report to '.*file': "):
        generate_report(load_experiment_results(tmp_path), tmp_path / "file", "x")


@pytest.mark.usefixtures("undrawn")
def test_runs_whose_names_make_one_file_name_keep_their_plots_apart(tmp_path):
    for name in ("a b", "a_b", "A+b"):
        write_run(tmp_path / "sweep" / name, 2)
    files = compose(load_experiment_results(tmp_path / "sweep"), "x").files
    weights = sorted(name for name in files if "weights" in name and name.endswith(".svg"))
    assert weights == ["x_weights_A_b.svg", "x_weights_a_b-2.svg", "x_weights_a_b-3.svg"]


def test_a_P_that_is_left_out_has_its_place_in_words_and_none_in_plots(tmp_path):
    write_sweep(tmp_path / "sweep", streams=(1, 2))
    write_run(tmp_path / "sweep" / "P4", 4, loss=1.9, settings={"training.learning_rate": 0.02})
    page = page_of(report_on(tmp_path / "sweep", to=tmp_path / "out"))
    assert "P = 4 and P = 1 are not compared: other training.learning_rate." in page.text
    assert [row[0] for row in page.tables[0][1:]] == ["P = 1", "P = 2"]
    assert "worth" in page.ids


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("streams", [(1,), (1, 2)])
def test_a_sweep_of_contradictions_alone_still_gives_a_report(tmp_path, streams):
    write_sweep(tmp_path / "sweep", streams=streams, result={"final_validation_loss": 1.0})
    page = page_of(report_on(tmp_path / "sweep", to=tmp_path / "out"))
    assert "Left out of every comparison and fit: P1 (final loss 1.000000 reported" in page.text
    assert "×" not in page.text


def test_plots_hold_what_was_measured_and_dash_what_was_not(tmp_path):
    """The worth is drawn to P = 8: solid to the largest P of the sweep, dashed beyond."""
    write_sweep(tmp_path, loss=lambda P, seed: {1: 2.40, 2: 2.35, 4: 2.34}[P])
    (found,) = analyse(load_experiment_results(tmp_path)).sweeps
    (axes,) = report_plots.worth(found.law, [1, 2, 4], report_plots.Palette([1, 2, 4])).axes
    dashed, solid = (
        next(line for line in axes.lines if line.get_linestyle() == style and list(line.get_xdata())[-1] == end)
        for style, end in (("--", 8), ("-", 4))
    )
    assert (solid.get_xdata()[0], dashed.get_linestyle()) == (1, "--")
    markers = {line.get_xdata()[0]: line.get_ydata()[0] for line in axes.lines if len(line.get_xdata()) == 1}
    assert markers == {P: found.law.measured(P) for P in (1, 2, 4)}
    assert abs(markers[2] - found.law.worth(2)) > 0.05


def test_long_names_are_shortened_at_both_ends():
    assert report_plots._shortened("short") == "short"
    assert report_plots._shortened("a" * 60 + "b") == "a" * 24 + "…" + "a" * 23 + "b"


def test_markdown_escapes():
    assert escape_markdown("a|b\n*c* <d> #1 [e](f)") == "a\\|b \\*c\\* &lt;d&gt; \\#1 &#91;e&#93;(f)"


def test_an_inlined_svg_takes_the_colours_of_the_page():
    svg = (
        '<?xml version="1.0"?>\n<svg width="10pt" height="5pt"><metadata>m</metadata><g id="a"/>'
        '<use href="#a" style="fill: #0072b2; stroke: #1b1f24"/></svg>'
    )
    assert inline_svg(svg, "p", 'x "y"') == (
        '<svg role="img" aria-label="x &quot;y&quot;"><g id="p-a"/>'
        '<use href="#p-a" style="fill: var(--c0); stroke: var(--text)"/></svg>'
    )
