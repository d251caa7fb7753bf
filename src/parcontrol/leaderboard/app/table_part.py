"""The table of all models: search, filters, columns, sorting, pages, and the choice of models to compare."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote_plus

import gradio as gr
import pandas as pd

from parcontrol.leaderboard.app.board import Board
from parcontrol.leaderboard.app.markup import render
from parcontrol.leaderboard.app.part import QUIET, Context, Part
from parcontrol.leaderboard.app.selection import (
    AVERAGES,
    MODEL_COLUMNS,
    USUAL_SORT,
    choices,
    is_ascending,
    metric_columns,
    ranks,
    select_rows,
    sort_field,
)
from parcontrol.leaderboard.app.table_cells import cells_of
from parcontrol.leaderboard.app.view import ChatTemplate, View
from parcontrol.leaderboard.registry import GROUPS, registry

PAGE_ROWS = 50
MOST_COMPARED = 5
MODEL = "Model"  # the group of the columns that say something of the model itself
# Columns of tasks in the order in which they stand: what the page is for comes first.
COLUMN_GROUPS = (MODEL, "Faithfulness", "Factuality", "Other")
assert set(COLUMN_GROUPS) == {MODEL, *GROUPS}


def group_columns() -> dict[str, list[str]]:
    """Returns the headings that can be chosen, by group, in the order of the table."""
    tasks = {group: [c.label for spec in registry() if spec.group == group for c in spec.columns] for group in GROUPS}
    return {MODEL: list(MODEL_COLUMNS)} | {group: tasks[group] for group in COLUMN_GROUPS if group != MODEL}  # type: ignore[index]


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
    rows = select_rows(board, view)
    pages = max(-(-len(rows) // PAGE_ROWS), 1)
    page = min(view.page, pages)
    first = (page - 1) * PAGE_ROWS
    rank = ranks(rows, view).iloc[first : first + PAGE_ROWS]
    here = rows.iloc[first : first + PAGE_ROWS]
    compared = [key for key in view.rows if board.row(key) is not None]
    head = render(
        "table_head",
        view=view,
        found=len(rows),
        total=len(board.table),
        first=first + 1,
        last=first + len(here),
        pages=_pages(view, page, pages),
        compared=[(board.row(key)["name"], _without(view, key).href) for key in compared],  # type: ignore[index]
        compare=View(tab="compare", rows=tuple(compared)).href if len(compared) > 1 else None,
        groups=_heads(view),
        averages=[_head(view, label, True) for label in AVERAGES],
        fixed=[_head(view, label, None) for label in ("Model", "P")],
        download=view.changed(tab="leaderboard", page=1, rows=()).address,
    )
    return f"{head}{''.join(_body(board, view, here, rank))}</tbody></table></div>"


def _body(board: Board, view: View, here: pd.DataFrame, rank: pd.Series) -> list[str]:
    cells = cells_of(board)
    labels = ["P", *shown_columns(view)[MODEL], *AVERAGES]
    labels += [label for group, found in shown_columns(view).items() if group != MODEL for label in found]
    columns = [cells.column(label, view.errors) for label in labels]
    models = cells.column("Model", False)
    toggles = _toggles(view, here["key"].tolist())
    rows = []
    for place, number, toggle, mark in zip(cells.places(here.index), rank, toggles, here["mark"], strict=True):
        marked = f' class="marked-{mark}"' if mark else ""
        shown = "–" if pd.isna(number) else number
        values = "".join([column[place] for column in columns])
        rows.append(f'<tr{marked}><td class="rank">{shown}</td>{models[place]}{toggle}{values}</tr>')
    return rows


def _toggles(view: View, keys: list[str]) -> list[str]:
    """The cell of every row that takes it to the models to compare, or out of them."""
    base = view.address
    joint = "&amp;" if base else ""
    full = len(view.rows) >= MOST_COMPARED
    escaped = base.replace("&", "&amp;")
    cells = []
    for key in keys:
        if key in view.rows:
            href, sign, words = _without(view, key).href.replace("&", "&amp;"), "✓", "do not compare"
        elif full:
            cells.append(f'<td class="toggle" title="at most {MOST_COMPARED} models are compared">·</td>')
            continue
        else:
            href, sign, words = f"?{escaped}{joint}rows={quote_plus(key)}", "+", "compare"
        cells.append(
            f'<td class="toggle"><a href="{href}" data-keep="compare-{quote_plus(key)}" aria-label="{words}" '
            f'title="{words}">{sign}</a></td>'
        )
    return cells


def _without(view: View, key: str) -> View:
    return view.changed(rows=tuple(row for row in view.rows if row != key))


def _heads(view: View) -> list[tuple[str, list[dict[str, Any]]]]:
    found = shown_columns(view).items()
    return [(group, [_head(view, label, metric_columns().get(label)) for label in labels]) for group, labels in found]


def _head(view: View, label: str, higher_is_better: bool | None) -> dict[str, Any]:
    """A heading, and where a click on it leads: sorted by it, or the other way round."""
    sorted_by = view.sort if sort_field(view.sort) else USUAL_SORT
    ascending = is_ascending(sorted_by) if view.ascending is None else view.ascending
    name, _, metric = label.partition("/")
    is_sorted = label == sorted_by
    return {
        "label": label,
        "name": name,
        "metric": metric,
        "direction": {True: "↑", False: "↓", None: ""}[higher_is_better],
        "direction_words": {True: "higher is better", False: "lower is better", None: ""}[higher_is_better],
        "sort": ("ascending" if ascending else "descending") if is_sorted else "none",
        "href": view.changed(sort=label, ascending=not ascending if is_sorted else None, page=1).href,
    }


def _pages(view: View, page: int, pages: int) -> list[tuple[str, str | None]]:
    """Links to the pages around this one; None for this one and for gaps."""
    near = sorted({1, pages, *range(max(page - 2, 1), min(page + 2, pages) + 1)})
    links: list[tuple[str, str | None]] = []
    for before, number in zip([0, *near], near, strict=False):
        if number > before + 1:
            links.append(("…", None))
        links.append((str(number), None if number == page else view.changed(page=number).href))
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
            elem_id="search",
            scale=4,
        )
        errors = gr.Checkbox(label="Show ± standard errors", container=False, elem_id="errors", scale=1, min_width=220)
    with gr.Accordion("Filters", open=False, elem_classes="fold"), gr.Row():
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
            view.query,
            view.errors,
            *(gr.update(choices=found[name], value=list(getattr(view, name))) for name in _FILTERS),
            view.coverage,
            view.chat_template,
            *chosen.values(),
            table_html(board, view),
        ]

    def change(
        address: str, query: str, errors: bool, types: list[str], precisions: list[str], sizes: list[str],
        streams: list[str], licenses: list[str], coverage: int, template: ChatTemplate, *columns: list[str],
    ) -> list[Any]:  # fmt: skip
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
        view = view.changed(page=1)
        return [view.address, table_html(context.live.board, view)]

    # Not `input`, which Gradio does not fire for text that is pasted or dictated.
    gr.on(
        [search.change, *(control.input for control in controls[1:])],
        change,
        [context.address, *controls],
        [context.address, table],
        trigger_mode="always_last",
        **QUIET,
    )

    def refresh(board: Board, view: View) -> list[Any]:
        return [*[gr.skip()] * len(controls), table_html(board, view)]

    return Part([*controls, table], show, refresh)


_FILTERS = ("types", "precisions", "sizes", "streams", "licenses")
