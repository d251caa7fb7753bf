"""The table: what a search, filters and sorting show, and how values are written."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from parcontrol.leaderboard.app.board import Board
from parcontrol.leaderboard.app.measures import measures
from parcontrol.leaderboard.app.table import downloads
from parcontrol.leaderboard.app.table.cells import cells_of
from parcontrol.leaderboard.app.table.part import PAGE_ROWS, group_columns, shown_columns, table_html, usual_columns
from parcontrol.leaderboard.app.table.selection import (
    AVERAGES,
    MODEL_COLUMNS,
    coverage,
    is_ascending,
    metric_columns,
    ranks,
    select_rows,
    size_class,
)
from parcontrol.leaderboard.app.view import View, view_at
from parcontrol.leaderboard.registry import registry
from parcontrol.leaderboard.table import averaged_columns


class Page(HTMLParser):
    """Cells, links, headings and text of some HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._in_cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._in_cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_cell:
            self.rows[-1][-1] += data.strip()

    def links(self) -> list[str]:
        return [str(attributes.get("href")) for tag, attributes in self.tags if tag == "a"]


def names(board: Board, view: View) -> list[str]:
    return select_rows(board, view)["name"].tolist()


class TestSearch:
    def test_words_are_literal_and_any_of_them_will_do(self, full_board: Board) -> None:
        everything = full_board.table["name"].tolist()
        for query, words in {"MODEL-3": ["model-3"], " model-31 ; base-135m ": ["model-31", "base-135m"]}.items():
            expected = {name for name in everything if any(word in name.lower() for word in words)}
            assert set(names(full_board, View(query=query))) == expected
            assert expected

    @pytest.mark.parametrize("query", [".*", "model-(1", "[", "\\", "nobody"])
    def test_what_is_not_there_is_not_found(self, full_board: Board, query: str) -> None:
        assert names(full_board, View(query=query)) == []
        assert "No model fits" in Page(table_html(full_board, View(query=query))).text

    @pytest.mark.parametrize("query", ["", "  ", ";", " ; "])
    def test_a_search_for_nothing_shows_all(self, full_board: Board, query: str) -> None:
        assert len(names(full_board, View(query=query))) == len(full_board.table)


@pytest.mark.parametrize(
    ("view", "fits"),
    [
        (View(types=("chat", "merge")), lambda row: row["model_type"] in ("💬 : chat", "🤝 : merge")),
        (View(precisions=("4bit",)), lambda row: row["precision"] == "4bit"),
        (View(streams=("none",)), lambda row: str(row["P"]) == "<NA>"),
        (View(streams=("2", "8")), lambda row: str(row["P"]) in ("2", "8")),
        (View(sizes=("0.5–2 B",)), lambda row: 0.5 <= row["params"] < 2),
        (View(sizes=("over 30 B",)), lambda row: row["params"] >= 30),
        (View(licenses=("mit", "not stated")), lambda row: row["license"] in ("mit", "not stated", "")),
        (View(chat_template="yes"), lambda row: row["chat_template"]),
        (View(chat_template="no"), lambda row: not row["chat_template"]),
        (View(coverage=100), lambda row: row["Factuality_done"] + row["Faithfulness_done"] == 15),
    ],
)
def test_filters_keep_what_fits(full_board: Board, view: View, fits: object) -> None:
    assert sum(map(len, averaged_columns().values())) == 15
    expected = {row["key"] for _, row in full_board.table.iterrows() if fits(row)}  # type: ignore[operator]
    found = set(select_rows(full_board, view)["key"])

    assert found == expected
    assert 0 < len(found) < len(full_board.table)


def test_filters_are_joined_by_and(full_board: Board) -> None:
    one, other = View(types=("chat",)), View(chat_template="yes")
    both = View(types=("chat",), chat_template="yes")

    assert set(names(full_board, both)) == set(names(full_board, one)) & set(names(full_board, other))


class TestSorting:
    def test_the_best_is_first_whatever_the_direction(self, full_board: Board) -> None:
        for label, higher_is_better in metric_columns().items():
            values = [value for value in select_rows(full_board, View(sort=label))[label] if value == value]
            assert values == sorted(values, reverse=higher_is_better), label

    def test_missing_values_are_last_in_both_orders(self, full_board: Board) -> None:
        for ascending in (True, False):
            rows = select_rows(full_board, View(sort="XSum/ROUGE-L", ascending=ascending))
            missing = rows["XSum/ROUGE-L"].isna().tolist()
            assert missing == sorted(missing)
            assert any(missing)

    @pytest.mark.parametrize("label", ["Model", "P", *AVERAGES, *MODEL_COLUMNS])
    def test_every_heading_sorts(self, full_board: Board, label: str) -> None:
        assert len(select_rows(full_board, View(sort=label))) == len(full_board.table)

    def test_an_unknown_heading_sorts_as_usual(self, full_board: Board) -> None:
        assert names(full_board, View(sort="mark_reason")) == names(full_board, View())

    def test_equal_values_share_a_rank_and_the_next_is_counted_on(self, full_board: Board) -> None:
        rows = full_board.table.iloc[:4].assign(Factuality=[70.0, 80.0, 80.0, math.nan])

        assert ranks(rows, np.arange(4), View()) == [3, 1, 1, None]

    def test_ranks_say_who_is_better_also_when_the_worst_is_first(self, full_board: Board) -> None:
        label = "WikiText/Word perplexity"
        assert is_ascending(label)
        rows = select_rows(full_board, View(sort=label, ascending=False))
        places = np.arange(len(rows))
        known = [rank for rank in ranks(rows, places, View(sort=label, ascending=False)) if rank]

        assert known[-1] == 1
        assert known[0] == len(known)

    def test_flagged_and_withdrawn_models_have_no_rank_and_take_none(self, full_board: Board) -> None:
        rows = select_rows(full_board, View())
        found = dict(zip(rows["key"], ranks(rows, np.arange(len(rows)), View()), strict=True))
        marked = set(rows["key"][rows["mark"] != ""])

        assert {found[key] for key in marked} == {None}
        assert sorted(rank for rank in found.values() if rank) == list(range(1, 1 + sum(map(bool, found.values()))))

    def test_an_alphabet_ranks_nobody(self, full_board: Board) -> None:
        assert set(ranks(full_board.table, np.arange(3), View(sort="Model"))) == {None}

    def test_rows_are_where_pandas_puts_them(self, full_board: Board) -> None:
        for label, ascending in itertools.product(["Factuality", "P", "Model", "XSum/FactKB"], [True, False]):
            field = {"Model": "name"}.get(label, label)
            expected = full_board.table.sort_values(field, ascending=ascending, kind="stable", na_position="last")
            found = select_rows(full_board, View(sort=label, ascending=ascending))
            assert found["key"].tolist() == expected["key"].tolist()

    @pytest.mark.parametrize("label", ["Type", "License", "Base model", "Commit", "Coverage", "Size"])
    @pytest.mark.parametrize("ascending", [True, False])
    def test_rows_are_in_the_order_of_what_stands_there_and_dashes_are_last(
        self, full_board: Board, label: str, ascending: bool
    ) -> None:
        table = full_board.table.copy()
        table.iloc[3, table.columns.get_loc("params")] = 0.0
        table.iloc[5, table.columns.get_loc("model_type")] = "z"
        board = replace(full_board, table=table)
        rows = select_rows(board, View(sort=label, ascending=ascending))
        if label in ("Coverage", "Size"):
            shown = (coverage(rows) if label == "Coverage" else rows["params"].where(rows["params"] > 0)).tolist()
        else:
            html = (cells_of(board).column(label, False)[table.index.get_loc(index)] for index in rows.index)
            shown = ["".join(Page(f"<tr>{cell}").rows[0]).casefold() for cell in html]
            shown = [math.nan if text in ("–", "?", "not stated") else text for text in shown]
        known = [value for value in shown if value == value]

        assert known == sorted(known, reverse=not ascending)
        assert shown[: len(known)] == known


class TestCells:
    def test_values_are_those_of_the_table(self, full_board: Board) -> None:
        view = View(query="org5/model-12", columns=("WikiText/Word perplexity", "SHROOM DM/rho", "Precision"))
        (row,) = [row for row in Page(table_html(full_board, view)).rows if "org5/model-12" in "".join(row)]
        there = full_board.table[full_board.table["model"] == "org5/model-12"].iloc[0]

        assert row[0] == "1"
        assert row[1].endswith("org5/model-12")
        assert row[3:] == [
            "–",
            f"{there['Faithfulness']:.1f}",
            f"{there['Factuality']:.1f}",
            "bfloat16",
            f"{there['SHROOM DM/rho']:.2f}",
            f"{there['WikiText/Word perplexity']:.1f}",
        ]

    def test_standard_errors_are_under_the_pointer_and_beside_the_value_when_asked_for(self, full_board: Board) -> None:
        row = full_board.table[full_board.table["model"] == "org5/model-12"].iloc[0]
        stderr = full_board.scores(row).loc["TrueFalse/Acc", "stderr"]
        view = View(query="org5/model-12", columns=("TrueFalse/Acc",))

        assert f'title="± {stderr:.1f}, n = 60"' in table_html(full_board, view)
        assert f"<small>±{stderr:.1f}</small>" not in table_html(full_board, view)
        assert f"<small>±{stderr:.1f}</small>" in table_html(full_board, view.changed(errors=True))

    def test_the_error_of_an_average_is_that_of_independent_tasks(self, full_board: Board) -> None:
        for group, labels in averaged_columns().items():
            for _, row in full_board.table.head(5).iterrows():
                errors = full_board.scores(row)["stderr"].reindex(labels)
                expected = math.sqrt(sum(error**2 for error in errors)) / len(labels)
                assert row[f"{group}_stderr"] == pytest.approx(expected, nan_ok=True)

    def test_an_average_without_all_its_tasks_is_said_to_be_partial(self, full_board: Board) -> None:
        partial = full_board.table[
            full_board.table["Faithfulness"].isna() & (full_board.table["Faithfulness_done"] > 0)
        ]
        page = Page(table_html(full_board, View(query=partial.iloc[0]["name"], columns=())))

        assert "partial" in page.rows[-1]

    def test_marks_are_shown_with_their_reason_and_reasons_are_text(self, full_board: Board) -> None:
        html = table_html(full_board, View(query="org1/model-1;org2/model-2"))
        tags = [
            attributes for tag, attributes in Page(html).tags if tag == "span" and "tag" in str(attributes.get("class"))
        ]

        assert {tag["class"]: str(tag["title"])[:32] for tag in tags} == {
            "tag flagged": "flagged: trained on the test set",
            "tag withdrawn": "withdrawn: by its authors",
        }
        assert not [tag for tag, _ in Page(html).tags if tag == "img"]
        # An HTML component takes these for its template's.
        assert not re.search(r"[{}$`]", html)

    def test_every_heading_says_which_way_is_better(self, full_board: Board) -> None:
        view = View(columns=tuple(metric_columns()))
        heads = next(row for row in Page(table_html(full_board, view)).rows if row and row[0] == "Rank")

        for spec in registry():
            for column in spec.columns:
                arrow = "↑" if column.higher_is_better else "↓"
                assert any(head == column.label.replace("/", "") + arrow for head in heads), column.label

    def test_size_classes_have_no_gaps(self, full_board: Board) -> None:
        params = full_board.table["params"].iloc[:6].copy()
        params.iloc[:] = [0.4999, 0.5, 2.0, 30.0, 0.0, math.nan]

        assert size_class(params).tolist() == [
            "under 0.5 B", "0.5–2 B", "2–8 B", "over 30 B", "unknown size", "unknown size",
        ]  # fmt: skip


class TestColumns:
    def test_every_column_of_the_registry_can_be_chosen_once(self) -> None:
        offered = [label for labels in group_columns().values() for label in labels]

        assert sorted(offered) == sorted([*metric_columns(), *MODEL_COLUMNS])

    def test_usual_columns_are_those_of_the_averages(self) -> None:
        averaged = [label for labels in averaged_columns().values() for label in labels]

        assert set(usual_columns()) == {"Size", *averaged}

    def test_unknown_columns_of_an_address_are_left_out(self, full_board: Board) -> None:
        view = view_at("columns=Nonsense&columns=FEVER/Acc&columns=key")

        assert [label for labels in shown_columns(view).values() for label in labels] == ["FEVER/Acc"]
        assert table_html(full_board, view)


class TestPages:
    def test_every_model_is_on_one_page(self, full_board: Board) -> None:
        pages = -(-len(full_board.table) // PAGE_ROWS)
        assert pages > 1
        shown = [
            row[1].lstrip()
            for page in range(1, pages + 1)
            for row in Page(table_html(full_board, View(sheet=page))).rows
            if row and (row[0].isdigit() or row[0] == "–")
        ]

        assert len(shown) == len(full_board.table)
        assert len(set(shown)) == len(shown)

    def test_a_page_behind_the_last_is_the_last(self, full_board: Board) -> None:
        last = -(-len(full_board.table) // PAGE_ROWS)
        rows = [
            row
            for row in Page(table_html(full_board, View(sheet=99))).rows
            if row and (row[0].isdigit() or row[0] == "–")
        ]

        assert len(rows) == len(full_board.table) - (last - 1) * PAGE_ROWS


class TestComparing:
    def test_a_row_is_added_and_taken_out_by_its_link(self, full_board: Board) -> None:
        key = full_board.table.iloc[0]["key"]
        added = view_at(
            next(
                link for link in Page(table_html(full_board, View())).links() if "rows=" in link and "tab=" not in link
            )
        )
        removed = [view_at(link) for link in Page(table_html(full_board, added)).links() if "tab=" not in link]

        assert added.rows == (key,)
        assert View() in removed

    def test_two_can_be_compared_and_no_more_than_five(self, full_board: Board) -> None:
        keys = tuple(full_board.table["key"].iloc[:5])
        compare = View(tab="compare", rows=keys).href
        adding = [view_at(link) for link in Page(table_html(full_board, View(rows=keys))).links()]

        assert compare in Page(table_html(full_board, View(rows=keys))).links()
        assert not [view for view in adding if len(view.rows) > 5]
        assert not any("compare" in link for link in Page(table_html(full_board, View(rows=keys[:1]))).links())

    def test_rows_that_are_no_longer_there_are_not_compared(self, full_board: Board) -> None:
        assert not any(
            "tab=compare" in link for link in Page(table_html(full_board, View(rows=("a/b@1", "c")))).links()
        )


def test_an_empty_board_says_so(empty_board: Board) -> None:
    page = Page(table_html(empty_board, View()))

    assert "No model has been evaluated yet" in page.text
    filters = View(
        query="a", types=("chat",), precisions=("4bit",), sizes=("2–8 B",), streams=("2",), licenses=("mit",)
    )
    for label in ("Model", "P", *AVERAGES, *MODEL_COLUMNS, *metric_columns()):
        view = filters.changed(coverage=50, chat_template="yes", sort=label, sheet=7, rows=("a/b@1",))
        assert "No model has been evaluated yet" in Page(table_html(empty_board, view)).text
    assert downloads.csv(empty_board, filters).decode().startswith("model,")
    assert json.loads(downloads.json(empty_board, filters))["models"] == []


class TestDownloads:
    def test_csv_has_the_rows_of_the_view_with_values_and_errors(self, full_board: Board) -> None:
        view = View(query="base-135M", sort="FEVER/Acc")
        rows = list(csv.DictReader(io.StringIO(downloads.csv(full_board, view).decode())))
        expected = select_rows(full_board, view)

        assert [row["model"] for row in rows] == expected["model"].tolist()
        for row, (_, there) in zip(rows, expected.iterrows(), strict=True):
            scores = full_board.scores(there)
            assert float(row["Factuality"]) == there["Factuality"]
            assert float(row["FEVER/Acc stderr"]) == scores.loc["FEVER/Acc", "stderr"]
            assert row["WikiText/Word perplexity stderr"] == ""

    def test_json_has_the_rows_of_the_view_with_their_origin(self, full_board: Board) -> None:
        view = View(query="base-135M", sort="FEVER/Acc")
        models = json.loads(downloads.json(full_board, view))["models"]

        assert [model["model"] for model in models] == select_rows(full_board, view)["model"].tolist()
        assert models[0]["scores"]["FEVER/Acc"]["path"].startswith(models[0]["model"])

    def test_json_says_which_columns_are_percentages(self, full_board: Board) -> None:
        columns = json.loads(downloads.json(full_board, View()))["columns"]

        assert {column["label"] for column in columns if not column["percent"]} == {
            label for label, measure in measures().items() if measure.unit != "%"
        }

    def test_a_spreadsheet_gets_no_formulas(self, full_board: Board) -> None:
        table = full_board.table.assign(license="=HYPERLINK(1)", base_model="@x")
        board = Board(table, full_board.results, [], [], ("", ""), full_board.read_at)
        rows = list(csv.DictReader(io.StringIO(downloads.csv(board, View()).decode())))

        assert {(row["license"], row["base_model"]) for row in rows} == {("'=HYPERLINK(1)", "'@x")}


def test_coverage_counts_averaged_columns(full_board: Board) -> None:
    labels = [label for labels in averaged_columns().values() for label in labels]
    expected = 100 * full_board.table[labels].notna().sum(axis=1) / len(labels)

    assert coverage(full_board.table).tolist() == pytest.approx(expected.tolist())
