"""The state of the page is its address."""

from __future__ import annotations

from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parcontrol.leaderboard.app.view import TABS, View, parse_view, view_at

words = st.text(min_size=1, max_size=20)
several = st.lists(words, max_size=5, unique=True).map(tuple)
views = st.builds(
    View,
    tab=st.sampled_from(TABS),
    query=words,
    columns=st.none() | several,
    types=several,
    licenses=several,
    coverage=st.integers(0, 100),
    chat_template=st.sampled_from(["any", "yes", "no"]),
    sort=words,
    ascending=st.none() | st.booleans(),
    sheet=st.integers(1, 1000),
    rows=several,
    errors=st.booleans(),
)


@given(views)
def test_an_address_brings_its_view_back(view: View) -> None:
    assert view_at(view.href) == view


def test_the_usual_view_has_an_empty_address() -> None:
    assert View().address == ""
    assert view_at("") == view_at("?") == View()


def test_chosen_to_be_empty_is_not_the_same_as_not_chosen() -> None:
    assert View(columns=()).address == "columns="
    assert view_at("columns=").columns == ()


def test_a_search_can_be_linked_to_by_hand() -> None:
    assert view_at("?query=llama;qwen").query == "llama;qwen"


@pytest.mark.parametrize(
    "address",
    [
        "tab=nowhere",
        "sheet=-3",
        "sheet=٣",
        "coverage=many",
        "ascending=maybe",
        "chat_template=1",
        "unknown=1",
        "%ff%fe",
    ],
)
def test_what_cannot_be_a_value_is_left_out(address: str) -> None:
    assert view_at(address) == View()


def test_numbers_are_kept_in_their_range() -> None:
    assert view_at("coverage=900").coverage == 100
    assert view_at("sheet=0").sheet == 1


def test_an_address_cannot_be_made_to_cost_much() -> None:
    assert len(view_at("query=" + "x" * 10**6).query) <= 300
    assert len(parse_view({"rows": [str(number) for number in range(10**5)]}).rows) <= 100
    assert view_at("&".join(f"a{number}=1" for number in range(10**5))) == View()


@given(st.text(max_size=200))
def test_any_text_is_an_address(text: str) -> None:
    view = view_at(text)

    assert parse_view(parse_qs(view.address, keep_blank_values=True)) == view
