"""The page about the leaderboard: every task of the registry, as the registry has it, and nothing that loads."""

from __future__ import annotations

import io
import re

import lxml.html
import pandas as pd
import pytest

from parcontrol.leaderboard.app.about.part import about_html, dataset_link
from parcontrol.leaderboard.registry import registry
from parcontrol.leaderboard.table import averaged_columns


@pytest.fixture(scope="module")
def page() -> lxml.html.HtmlElement:
    return lxml.html.fromstring(about_html())


@pytest.fixture(scope="module")
def tasks() -> pd.DataFrame:
    """The table as a reader of HTML gets it, spans spread over their rows."""
    (found,) = pd.read_html(io.StringIO(about_html()))
    return found


def test_the_table_has_every_column_of_every_task(tasks: pd.DataFrame) -> None:
    wanted = [(spec, column) for spec in registry() for column in spec.columns]
    assert len(tasks) == len(wanted)
    for (_, row), (spec, column) in zip(tasks.iterrows(), wanted, strict=True):
        assert row["Task"].split()[0] == spec.name
        assert ("harness" in row["Task"]) == spec.native
        assert row["Group"] == spec.group
        assert row["Data on the Hub"].startswith(spec.dataset)
        assert spec.split in row["Data on the Hub"]
        assert (row["Shots"], row["Version"]) == (spec.num_fewshot, spec.version)
        assert row["Column"] == column.label
        assert row["Average"] == ("yes" if column.averaged else "no")
        metric, direction, *_ = row["Metric"].split()
        assert metric == column.metric
        assert direction == ("higher" if column.higher_is_better else "lower")


def test_the_table_is_one_for_screen_readers(page: lxml.html.HtmlElement) -> None:
    (table,) = page.xpath("//table")
    assert table.xpath("./caption")
    assert all(head.get("scope") for head in table.xpath(".//th"))
    names = [section.get("aria-labelledby") for section in page.xpath("//section")]
    assert all(len(page.xpath(f"//*[@id='{name}']")) == 1 for name in names)


def test_links_lead_to_the_datasets_and_inside(page: lxml.html.HtmlElement) -> None:
    links = page.xpath("//a")
    out = {link.get("href") for link in links if not link.get("href").startswith("?")}
    assert out == {f"https://huggingface.co/datasets/{spec.dataset}" for spec in registry()}
    assert all("noopener" in link.get("rel", "") for link in links if link.get("href") in out)
    assert dataset_link('a"b/c d') == "https://huggingface.co/datasets/a%22b/c%20d"


def test_nothing_is_loaded_and_no_template_is_left() -> None:
    assert not re.search(r"<(img|script|iframe|link|style|object)\b", about_html())
    assert not re.search(r"[{}$`]", about_html())


def test_it_says_how_many_columns_are_averaged(page: lxml.html.HtmlElement) -> None:
    text = " ".join(page.text_content().split())
    counts = {group: len(labels) for group, labels in averaged_columns().items()}
    assert f"Factuality of {counts['Factuality']} columns, Faithfulness of {counts['Faithfulness']}" in text
    assert f"share of these {sum(counts.values())} columns" in text


def test_the_bibtex_entries_are_whole(page: lxml.html.HtmlElement) -> None:
    entries = [text for block in page.xpath("//pre") if (text := block.text_content()).startswith("@")]
    assert len(entries) == 4
    for entry in entries:
        assert entry.count("{") == entry.count("}") > 3
        assert re.match(r"@\w+\{[\w-]+,\n", entry)
        assert re.search(r"year +=", entry)
    assert {number for entry in entries for number in re.findall(r"\d{4}\.\d{5}", entry)} >= {
        "2404.05904",
        "2505.10475",
    }
