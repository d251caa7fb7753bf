from __future__ import annotations

import csv
import io
import json
import subprocess
import sys

import pytest

from parcontrol.analysis import published
from parcontrol.analysis.law import fit
from parcontrol.analysis.loss_table import published_tables, read_tables
from parcontrol.cli.fit import main

FAST = ["--resamples", "40"]
GOOD = """N,P,loss
5e8,1,1.9
1e9,1,1.7
2e9,1,1.55
5.1e8,4,1.84
1.01e9,4,1.65
2.02e9,4,1.51
"""


def write(tmp_path, text, name="losses.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def published_csv() -> str:
    lines = ["corpus,P,size,N,loss"]
    for corpus in published.LOSSES:
        for P in published.P_VALUES:
            for size in published.SIZES:
                count, loss = published.parameters(size, P), published.loss(corpus, size, P)
                lines.append(f"{corpus},{P},{size},{count},{loss}")
    return "\n".join(lines) + "\n"


def test_published_table_is_the_default(capsys):
    assert main([*FAST, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [item["corpus"] for item in found] == ["Stack-V2-Python", "Pile"]
    for item in found:
        parameters = item["laws"]["logarithmic"]["parameters"]
        official = published.LAWS[item["corpus"]]
        for name in ("E", "A", "k", "alpha"):
            assert parameters[name] == pytest.approx(getattr(official, name), rel=5e-3)
        assert len(item["laws"]["constant-correlation"]["left_out_predicted"]) == 24


def test_a_csv_of_the_published_table_gives_the_same(tmp_path, capsys):
    """Column order, an extra column, a byte-order mark and blank lines change nothing."""
    text = "\ufeff" + published_csv().replace("Pile,1,0.5B", "\nPile,1,0.5B")
    assert main([write(tmp_path, text), *FAST]) == 0
    from_file = capsys.readouterr().out
    assert main(FAST) == 0
    assert capsys.readouterr().out == from_file


def test_text_names_the_published_numbers(capsys):
    assert main(FAST) == 0
    text = capsys.readouterr().out
    for number in ("0.99783", "3.67674e-05", "0.99868", "1.81393e-05"):
        assert number in text
    assert text.count("The logarithmic law describes this table better") == 2


def test_csv_output_holds_every_quantity(capsys):
    assert main([*FAST, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    fitted = {table.name: fit(table) for table in published_tables()}
    for row in rows:
        if row["law"] == "logarithmic" and row["quantity"] in ("E", "A", "k", "alpha"):
            value = float(row["value"])
            assert value == fitted[row["corpus"]].values()[row["quantity"]]
            assert float(row["low"]) < value < float(row["high"])
    names = {(row["corpus"], row["law"], row["quantity"]) for row in rows}
    assert len(names) == len(rows) == 2 * 2 * 9


def test_a_table_without_corpus_is_named_after_its_file(tmp_path):
    (table,) = read_tables(write(tmp_path, GOOD, "mine.csv"))
    assert table.name == "mine"
    assert table.N.tolist() == [5e8, 1e9, 2e9, 5.1e8, 1.01e9, 2.02e9]
    assert table.P.tolist() == [1, 1, 1, 4, 4, 4]
    assert table.loss.tolist() == [1.9, 1.7, 1.55, 1.84, 1.65, 1.51]


@pytest.mark.parametrize("flags", [[], ["--fixed-N"]], ids=["joint", "fixed-N"])
def test_plot(tmp_path, flags, capsys):
    text = GOOD if not flags else "N,P,loss\n1e8,1,2.5\n1e8,2,2.45\n1e8,4,2.42\n"
    picture = tmp_path / "fit.png"
    assert main([write(tmp_path, text), *FAST, *flags, "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("flags", [[], ["--fixed-N"]], ids=["joint", "fixed-N"])
def test_a_formula_in_a_name_is_drawn_as_it_is(tmp_path, flags, capsys):
    rows = GOOD if not flags else "N,P,loss\n1e8,1,2.5\n1e8,2,2.45\n1e8,4,2.42\n"
    header, *lines = rows.splitlines()
    text = "\n".join([f"{header},corpus", *(rf"{line},$\frac{{x$" for line in lines)])
    picture = tmp_path / "fit.svg"
    assert main([write(tmp_path, text), *FAST, *flags, "--plot", str(picture)]) == 0
    assert picture.stat().st_size > 0


def test_fixed_size_takes_what_it_cannot_tell_from_the_flags(tmp_path, capsys):
    table = write(tmp_path, "N,P,loss\n1e8,1,2.5\n1.01e8,2,2.45\n1.02e8,4,2.42\n")
    assert main([table, "--fixed-N", "--E", "1.5", "--alpha", "0.3", "--format", "json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["assumed"] == {"E": 1.5, "alpha": 0.3}
    assert main([table, "--fixed-N"]) == 0
    assert "assuming E = 1.28877, alpha = 0.196333" in capsys.readouterr().out
    assert main([table, "--fixed-N", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["quantity"] for row in rows] == ["E", "alpha", "single_stream_loss", "k", "per_doubling"]


BAD = {
    "missing column": ("N,P\n1,1\n", ["header", "'loss'"]),
    "empty file": ("", ["header", "'N'"]),
    "header alone": ("N,P,loss\n", ["no rows"]),
    "column twice": ("N,P,loss,P\n1,1,1,1\n", ["header", "'P'", "twice"]),
    "not a number": (GOOD.replace("1.84", "abc"), ["row 4 (line 5)", "'loss'", "'abc'"]),
    "blank lines count as lines only": (GOOD.replace("5.1e8", "\n\nx"), ["row 4 (line 7)", "'N'"]),
    "nan": (GOOD.replace("1.7\n", "nan\n"), ["row 2 (line 3)", "'loss'", "'nan'"]),
    "infinite": (GOOD.replace("1e9,1,", "1e999,1,"), ["row 2 (line 3)", "'N'", "'1e999'"]),
    "negative loss": (GOOD.replace("1.55", "-1.55"), ["row 3 (line 4)", "'loss'", "-1.55"]),
    "zero loss": (GOOD.replace("1.55", "0"), ["row 3 (line 4)", "'loss'", "0"]),
    "negative N": (GOOD.replace("2.02e9", "-2"), ["row 6 (line 7)", "'N'", "-2"]),
    "P below 1": (GOOD.replace("5e8,1,", "5e8,0,"), ["row 1 (line 2)", "'P'", "0"]),
    "P no whole number": (GOOD.replace("5e8,1,", "5e8,1.5,"), ["row 1 (line 2)", "'P'", "1.5"]),
    "N below 1": (GOOD.replace("2.02e9", "1e-7"), ["row 6 (line 7)", "'N'", "1e-7"]),
    "one N of 1.5": (GOOD.replace("2.02e9", "1.5"), ["does not settle"]),
    "P beyond reason": (GOOD.replace("5e8,1,", "5e8,1e30,"), ["row 1 (line 2)", "'P'", "1e30"]),
    "underscore": (GOOD.replace("5e8,1,", "5e8,1_1,"), ["row 1 (line 2)", "'P'", "'1_1' is not a number"]),
    "empty cell": (GOOD.replace("1.65", ""), ["row 5 (line 6)", "'loss'", "empty"]),
    "short row": (GOOD.replace(",1.65", ""), ["row 5 (line 6)", "'loss'", "empty"]),
    "long row": (GOOD.replace("1.65", "1.65,7"), ["row 5 (line 6)", "4 cells"]),
    "empty corpus": ("corpus,N,P,loss\n ,1e9,1,2\n", ["row 1 (line 2)", "'corpus'"]),
    "too few rows": ("N,P,loss\n5e8,1,2\n1e9,2,1.9\n2e9,1,1.8\n4e9,2,1.7\n", ["4 rows"]),
    "one size": ("N,P,loss\n" + "1e9,1,2\n1e9,2,1.9\n" * 4, ["1 model sizes"]),
    "one P": (GOOD.replace(",4,", ",1,"), ["1 values of P"]),
    "flat": ("N,P,loss\n" + "".join(f"{n}e9,{p},2\n" for n in (1, 2, 4) for p in (1, 2)), ["all losses"]),
    "not text": (b"N,P,loss\n\xff\xfe,1,2\n", ["losses.csv"]),
    "unclosed quote": ('N,P,loss\n"1,1,2\n', ["losses.csv"]),
}


@pytest.mark.parametrize(("text", "quoted"), BAD.values(), ids=BAD.keys())
def test_bad_tables_name_row_and_column(tmp_path, text, quoted, capsys):
    assert main([write(tmp_path, text), *FAST]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    for part in quoted:
        assert part in captured.err


def test_other_bad_input(tmp_path, capsys):
    good = write(tmp_path, GOOD)
    for argv, quoted in (
        ([str(tmp_path / "missing.csv")], "missing.csv"),
        ([str(tmp_path)], str(tmp_path)),
        ([good, "--resamples", "39"], "--resamples is 39; it must be at least 40"),
        ([good, "--E", "1.2"], "--E would not be used: without --fixed-N both are fitted"),
        ([good, "--E", "1.2", "--alpha", "0.2"], "--E and --alpha would not be used"),
        ([good, "--plot", "fit.txt"], "fit.txt"),
        ([good, "--fixed-N"], "3 model sizes"),
    ):
        assert main(argv) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert quoted in captured.err


def test_help_loads_no_heavy_library():
    script = (
        "import sys; before = set(sys.modules)\n"
        "from parcontrol.cli.fit import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'transformers', 'matplotlib', 'scipy'}\n"
        "assert not heavy & (set(sys.modules) - before), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)
