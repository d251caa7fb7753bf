"""The table of all models: search, filters, columns, sorting, pages, and the choice of models to compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import gradio as gr

from parcontrol.leaderboard.app.board import Board
from parcontrol.leaderboard.app.markup import render
from parcontrol.leaderboard.app.measures import GROUPS
from parcontrol.leaderboard.app.part import QUIET, Context, Part
from parcontrol.leaderboard.app.table.cells import cells_of
from parcontrol.leaderboard.app.table.headings import headings
from parcontrol.leaderboard.app.table.selection import (
    AVERAGES,
    MODEL_COLUMNS,
    choices,
    ranks,
    select_places,
)
from parcontrol.leaderboard.app.view import LONGEST, View
from parcontrol.leaderboard.registry import registry

PAGE_ROWS = 50
MOST_COMPARED = 5
MODEL = "Model"  # the group of the columns that say something of the model itself


@cache
def group_columns() -> Mapping[str, Sequence[str]]:
    """Returns the headings that can be chosen, by group, in the order of the table."""
    groups: dict[str, Sequence[str]] = {MODEL: list(MODEL_COLUMNS)}
    for group in GROUPS:
        groups[group] = [column.label for spec in registry() if spec.group == group for column in spec.columns]
    return groups


@cache
def usual_columns() -> tuple[str, ...]:
    """Returns the headings that are shown when nobody has chosen any: what the averages are made of."""
    averaged = {column.label for spec in registry() for column in spec.columns if column.averaged}
    return ("Size", *(label for labels in group_columns().values() for label in labels if label in averaged))


def shown_columns(view: View) -> dict[str, list[str]]:
    """Returns the headings of a view by group, in the order of the table; unknown ones are left out."""
    chosen = set(usual_columns() if view.columns is None else view.columns)
    return {group: [label for label in labels if label in chosen] for group, labels in group_columns().items()}


def table_html(board: Board, view: View) -> str:
    """Returns the table of a view, with what stands around it."""
    places = select_places(board.table, view)
    pages = max(-(-len(places) // PAGE_ROWS), 1)
    page = min(view.sheet, pages)
    first = (page - 1) * PAGE_ROWS
    here = slice(first, first + PAGE_ROWS)
    rank = ranks(board.table, places, view)[here]
    compared = {key: row["name"] for key in view.rows if (row := board.row(key)) is not None}
    shown = shown_columns(view)
    head = render(
        "table_head",
        view=view,
        found=len(places),
        total=len(board.table),
        first=first + 1,
        last=first + len(rank),
        pages=_pages(view, page, pages),
        compared=[(name, _without(view, key).href) for key, name in compared.items()],
        compare=View(tab="compare", rows=tuple(compared)).href if len(compared) > 1 else None,
        groups=[("Averages", len(AVERAGES)), *((group, len(labels)) for group, labels in shown.items() if labels)],
        headings=headings(view, _kinds(shown)),
        download=view.changed(tab="leaderboard", sheet=1, rows=()).address,
    )
    return f"{head}{''.join(_body(board, view, places[here].tolist(), rank))}</tbody></table></div>"


def _kinds(shown: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """The headings of the columns that are shown, each with its CSS class."""
    kinds = [("Model", "model"), ("P", "number"), *((label, "number average") for label in AVERAGES)]
    for group, labels in shown.items():
        first, others = ("fact", "fact") if group == MODEL else ("number first", "number")
        kinds += [(label, others if place else first) for place, label in enumerate(labels)]
    return kinds


def _body(board: Board, view: View, places: list[int], ranks: list[int | None]) -> list[str]:
    cells = cells_of(board)
    labels = ["P", *AVERAGES, *(label for found in shown_columns(view).values() for label in found)]
    columns = [cells.column(label, view.errors) for label in labels]
    models = cells.column("Model", False)
    toggles = _toggles(view, [(cells.keys[place], cells.quoted_keys[place]) for place in places])
    rows = []
    for place, rank, toggle in zip(places, ranks, toggles, strict=True):
        values = "".join([column[place] for column in columns])
        rows.append(f'<tr><td class="rank">{rank or "–"}</td>{models[place]}{toggle}{values}</tr>')
    return rows


def _toggles(view: View, keys: Iterable[tuple[str, str]]) -> list[str]:
    """The cell of every row, by key and quoted key, that takes it to the models to compare, or out of them."""
    here = view.prefix.replace("&", "&amp;")
    full = len(view.rows) >= MOST_COMPARED
    cells = []
    for key, quoted in keys:
        if key in view.rows:
            href, sign, words = _without(view, key).href.replace("&", "&amp;"), "✓", "do not compare"
        elif full:
            cells.append(f'<td class="toggle" title="at most {MOST_COMPARED} models are compared">·</td>')
            continue
        else:
            href, sign, words = f"{here}rows={quoted}", "+", "compare"
        cells.append(
            f'<td class="toggle"><a href="{href}" data-keep="compare-{quoted}" aria-label="{words}" '
            f'title="{words}">{sign}</a></td>'
        )
    return cells


def _without(view: View, key: str) -> View:
    return view.changed(rows=tuple(row for row in view.rows if row != key))


def _pages(view: View, page: int, pages: int) -> list[tuple[str, str | None]]:
    """Links to the pages around this one; None for this one and for gaps."""
    near = sorted({1, pages, *range(max(page - 2, 1), min(page + 2, pages) + 1)})
    links: list[tuple[str, str | None]] = []
    for before, number in zip([0, *near], near, strict=False):
        if number > before + 1:
            links.append(("…", None))
        links.append((str(number), None if number == page else view.changed(sheet=number).href))
    return links if pages > 1 else []


def build(context: Context) -> Part:
    """Makes the part."""
    offered = choices(context.live.board.table)
    with gr.Row(elem_classes="controls"):
        search = gr.Textbox(
            placeholder="Search models: part of a name, several with ; between them",
            label="Search models",
            show_label=False,
            max_lines=1,
            max_length=LONGEST,
            elem_id="search",
            scale=4,
        )
        errors = gr.Checkbox(label="Show ± standard errors", container=False, elem_id="errors", scale=1, min_width=220)
    with gr.Accordion("Filters", open=False, elem_classes="fold") as fold, gr.Row():
        types = gr.CheckboxGroup(offered["types"], label="Type", min_width=300)
        sizes = gr.CheckboxGroup(offered["sizes"], label="Size in parameters", min_width=300)
        precisions = gr.CheckboxGroup(offered["precisions"], label="Precision", min_width=300)
        streams = gr.CheckboxGroup(offered["streams"], label="P, parallel streams", min_width=300)
        template = gr.Radio(["any", "yes", "no"], value="any", label="Chat template", min_width=300)
        licenses = gr.Dropdown(offered["licenses"], label="Licence", multiselect=True, min_width=300)
        coverage = gr.Slider(
            0, 100, 0, step=5, label="Coverage: least % of the averaged tasks with a result", min_width=300
        )
    with gr.Accordion("Columns", open=False, elem_classes="fold"):
        columns = [gr.CheckboxGroup(labels, label=group) for group, labels in group_columns().items()]
    table = gr.HTML(elem_id="table", apply_default_css=False, min_height=600)
    filters = [types, precisions, sizes, streams, licenses]
    controls: list[Any] = [search, errors, *filters, coverage, template, *columns]

    def show(board: Board, view: View) -> list[Any]:
        found = choices(board.table)
        chosen = shown_columns(view)
        return [
            gr.update(open=True) if view.filtered else gr.skip(),
            view.query,
            view.errors,
            *(_offer(found[name], getattr(view, name)) for name in _FILTERS),
            view.coverage,
            view.chat_template,
            *chosen.values(),
            table_html(board, view),
        ]

    def change(address: str, *values: Any) -> list[Any]:
        query, errors, types, precisions, sizes, streams, licenses, coverage, template, *columns = values
        labels = tuple(label for group in columns for label in group)
        before = context.view(address)
        view = before.changed(
            query=query,
            errors=errors,
            types=tuple(types),
            precisions=tuple(precisions),
            sizes=tuple(sizes),
            streams=tuple(streams),
            licenses=tuple(licenses),
            coverage=int(coverage),
            chat_template=template,
            columns=None if set(labels) == set(usual_columns()) else labels,
        )
        if view == before:  # the search was changed by a link, which has shown everything
            return [gr.skip(), gr.skip()]
        view = view.changed(sheet=1)
        return [view.address, table_html(context.live.board, view)]

    # Not `input`, which Gradio does not fire for text that is pasted or dictated.
    gr.on(
        [search.change, *(control.input for control in controls[1:])],
        change,
        [context.address, *controls],
        [context.address, table],
        trigger_mode="always_last",
        js=_as_sent(controls.index(coverage)),
        **QUIET,
    )

    def refresh(board: Board, view: View) -> list[Any]:
        return [gr.skip(), *[gr.skip()] * len(controls), table_html(board, view)]

    return Part([fold, *controls, table], show, refresh)


def _as_sent(coverage: int) -> str:
    """Returns what a browser does with address and controls before it sends them; `coverage` is the slider's place.

    The address is what it is now, also when the answer to a link is still on its way. The slider's number may be empty
    or out of range while somebody types: Gradio would refuse it, and with it whatever else is changed meanwhile.
    """
    return f"""(address, ...values) => {{
      values[{coverage}] = Math.min(Math.max(Math.round(values[{coverage}]) || 0, 0), 100);
      return [location.search, ...values];
    }}"""


def _offer(known: Sequence[str], chosen: Sequence[str]) -> Any:
    """What a filter offers: also what an address has chosen that the board does not have, so that it can be undone."""
    return gr.update(choices=list(dict.fromkeys([*known, *chosen])), value=list(chosen))


_FILTERS = ("types", "precisions", "sizes", "streams", "licenses")
