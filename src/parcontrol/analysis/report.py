"""A report on sweeps: one self-contained page, Markdown, plots, CSV and JSON, all of the same numbers."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from parcontrol.analysis import report_document, report_plots
from parcontrol.analysis.figures import COLOURS
from parcontrol.analysis.findings import Findings, analyse, run_as_dict
from parcontrol.analysis.report_document import Document
from parcontrol.analysis.report_plots import MUTED, PAGE, TEXT
from parcontrol.analysis.results import Results, Run

_TEMPLATES = files("parcontrol.analysis") / "templates"
_DIFFERENCE_COLUMNS = ("compared", "reference", "difference", "documents_low", "documents_high")
_SEED_COLUMNS = ("seeds_low", "seeds_high", "seeds", "verdict")
# Characters that mean something in Markdown, in or between paragraphs and in tables.
_MARKDOWN = re.compile(r"([\\`*_{}#|~!$])")
# Escaped by a backslash, brackets would begin a formula in some readers; without them, parentheses make no link.
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "[": "&#91;", "]": "&#93;"})


def generate_report(results: Results, output_directory: str | Path, name: str) -> list[Path]:
    """Writes a report and returns the paths of its files, the page first.

    Args:
        results: What `load_experiment_results` returned.
        output_directory: Where to write; made if it is not there.
        name: Title of the report. File names are made of its letters and digits.

    Raises:
        ValueError: The name has no letter or digit, or nothing can be written there.
    """
    return compose(results, name).write(output_directory)


@dataclass(frozen=True)
class Report:
    """A report in memory: what it says, and its files by name, the page first."""

    document: Document
    files: dict[str, bytes]

    def write(self, output_directory: str | Path) -> list[Path]:
        """Writes the files and returns their paths.

        Raises:
            ValueError: Nothing can be written there.
        """
        directory = Path(output_directory)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for name, content in self.files.items():
                (directory / name).write_bytes(content)
        except OSError as error:
            raise ValueError(f"cannot write the report to {str(directory)!r}: {error.strerror}") from error
        return [directory / name for name in self.files]


def compose(results: Results, name: str) -> Report:
    """Makes a report without writing it; raises as `generate_report` does."""
    stem = file_name(name)
    findings = analyse(results)
    with report_plots.style():
        document = report_document.build(findings, name)
        plots = [plot for section in document.sections for plot in section.plots]
        pictures = _unique({plot.key: f"{stem}_{file_name(plot.key)}" for plot in plots})
        drawn = {plot.key: report_plots.render(plot.figure) for plot in plots}
    data = {
        f"{stem}.json": _to_json(findings, name),
        f"{stem}_runs.csv": _runs_csv(results),
        f"{stem}_differences.csv": _differences_csv(findings),
        f"{stem}_curves.csv": _curves_csv(results),
    }
    inline = {
        plot.key: inline_svg(drawn[plot.key][0], f"plot{number}", plot.alt) for number, plot in enumerate(plots, 1)
    }
    texts = {
        f"{stem}.html": _render("report.html.jinja", document=document, drawings=inline, data_files=list(data)),
        f"{stem}.md": _render("report.md.jinja", document=document, files=pictures),
        **data,
        **{f"{pictures[key]}.svg": svg for key, (svg, _) in drawn.items()},
    }
    images = {f"{pictures[key]}.png": png for key, (_, png) in drawn.items()}
    return Report(document, {file: text.encode() for file, text in texts.items()} | images)


def file_name(name: str) -> str:
    """A file name of the letters, digits, dots and dashes of a name, the rest replaced.

    Raises:
        ValueError: Nothing is left.
    """
    stem = re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip("._-")
    if not stem:
        raise ValueError(f"the name {name!r} is not allowed: it needs a letter or a digit (a-z, 0-9)")
    return stem[:100]


def inline_svg(svg: str, prefix: str, alt: str) -> str:
    """An SVG document as an element of a page.

    It takes the page's colours, in light and dark; its ids become unique within the page; and its
    size is the style sheet's to choose.
    """
    element = svg[svg.index("<svg") :]
    element = re.sub(r"\s*<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", element, count=1)
    element = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", element, count=1)
    element = re.sub(r'\bid="', f'id="{prefix}-', element)
    element = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", element)
    variables = {TEXT: "var(--text)", MUTED: "var(--muted)", PAGE: "var(--page)"}
    variables |= {colour.lower(): f"var(--c{index})" for index, colour in enumerate(COLOURS) if colour != "#000000"}
    for colour, variable in variables.items():
        element = element.replace(colour, variable)
    return element.replace("<svg", f'<svg role="img" aria-label="{escape(alt, quote=True)}"', 1)


def escape_markdown(value: object) -> str:
    """Text that Markdown shows as it is, in a paragraph, a table cell or a link's text."""
    text = " ".join(str(value).split())
    return _MARKDOWN.sub(r"\\\1", text).translate(_ENTITIES)


def _render(template: str, **values: Any) -> str:
    page = template.endswith(".html.jinja")
    environment = jinja2.Environment(
        autoescape=page,
        undefined=jinja2.StrictUndefined,
        trim_blocks=page,
        lstrip_blocks=page,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = escape_markdown
    if page:
        values["css"] = Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8"))
        values["drawings"] = {key: Markup(drawing) for key, drawing in values["drawings"].items()}
    return environment.from_string((_TEMPLATES / template).read_text(encoding="utf-8")).render(values)


def _unique(names: Mapping[str, str]) -> dict[str, str]:
    """The same names, numbered where two would be equal on a file system that ignores case."""
    taken: set[str] = set()
    unique = {}
    for key, name in names.items():
        number = 1
        candidate = name
        while candidate.lower() in taken:
            number += 1
            candidate = f"{name}-{number}"
        taken.add(candidate.lower())
        unique[key] = candidate
    return unique


def _to_json(findings: Findings, name: str) -> str:
    return json.dumps({"name": name, **findings.as_dict()}, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _runs_csv(results: Results) -> str:
    rows = [{"sweep": sweep.name, **run_as_dict(run)} for sweep in results.sweeps for run in sweep.runs]
    broken = [
        {"sweep": sweep.name, "run": run.name, "status": run.problem}
        for sweep in results.sweeps
        for run in sweep.broken
    ]
    columns = list(rows[0]) if rows else ["sweep", "run", "status"]
    return _to_csv(columns, ([row.get(column) for column in columns] for row in [*rows, *broken]))


def _differences_csv(findings: Findings) -> str:
    rows = [
        [
            sweep,
            d.compared,
            d.reference,
            d.value,
            *(d.documents or (None, None)),
            *(d.seeds or (None, None)),
            d.seed_count,
            d.verdict,
        ]
        for sweep, d in [
            *((found.sweep.name, gain) for found in findings.sweeps for gain in (s.gain for s in found.streams)),
            *((found.sweep.name, d) for found in findings.sweeps for d in (*found.differences, *found.steps)),
            *(("", d) for d in findings.between),
        ]
    ]
    return _to_csv(["sweep", *_DIFFERENCE_COLUMNS, *_SEED_COLUMNS], rows)


def _curves_csv(results: Results) -> str:
    """Everything recorded over training, one value a row."""
    columns = ["sweep", "run", "P", "seed", "tokens", "quantity", "stream", "value"]
    rows = ([sweep.name, *row] for sweep in results.sweeps for run in sweep.runs for row in _curve_rows(run))
    return _to_csv(columns, rows)


def _curve_rows(run: Run) -> Iterable[list[Any]]:
    who = [run.name, run.P, run.seed]
    for quantity in ("validation_loss", "loss", "tokens_per_second"):
        for tokens, value in zip(*run.series(quantity), strict=True):
            yield [*who, tokens, quantity, None, value]
    for quantity in ("entropy", "entropy_relative", "kl_uniform", "gini", "mean_cosine_similarity"):
        for tokens, value in zip(*run.series(quantity, streams=True), strict=True):
            yield [*who, tokens, quantity, None, value]
    for quantity in ("mean_weight", "argmax_share"):
        for tokens, values in zip(*run.series(quantity, streams=True), strict=True):
            for stream, value in enumerate(values):
                yield [*who, tokens, quantity, stream, value]


def _to_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Numbers as Python writes them, so that nothing is lost; what is not known is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return out.getvalue()
