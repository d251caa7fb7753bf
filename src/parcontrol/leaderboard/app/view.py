"""The state of the page, which is its address: a view can be shared, opened again and gone back to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args
from urllib.parse import parse_qs, urlencode

Tab = Literal["leaderboard", "model", "compare", "scaling", "plots", "submit", "about"]
TABS: tuple[Tab, ...] = get_args(Tab)
ChatTemplate = Literal["any", "yes", "no"]

# Of what an address may hold.
_MOST_VALUES, LONGEST = 100, 300
_LONGEST_ADDRESS, _MOST_FIELDS = 20_000, 500


@dataclass(frozen=True)
class View:
    """What is shown.

    Attributes:
        tab: The part of the page.
        query: Search: parts of names, with `;` between alternatives.
        columns: Labels of the columns that are shown, None for the usual ones.
        types, precisions, sizes, streams, licenses: Only models with one of these; empty for all.
        coverage: Least share of the averaged columns that a model must have, in percent.
        chat_template: Whether models were asked through their chat templates.
        sort: Label of the column that is sorted by.
        ascending: Smallest first; None is best first.
        sheet: Page of the table, from 1; `page` is a parameter of Gradio's own.
        rows: Keys of the rows that are looked at: one in `model`, up to five in `compare`.
        task: Name of the task whose samples are shown, or label of the column that is plotted.
        errors: Whether standard errors stand beside the values.
    """

    tab: Tab = "leaderboard"
    query: str = ""
    columns: tuple[str, ...] | None = None
    types: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()
    licenses: tuple[str, ...] = ()
    coverage: int = 0
    chat_template: ChatTemplate = "any"
    sort: str = ""
    ascending: bool | None = None
    sheet: int = 1
    rows: tuple[str, ...] = ()
    task: str = ""
    errors: bool = False

    def changed(self, **values: Any) -> View:
        """Returns the view with other values."""
        return replace(self, **values)

    @property
    def filtered(self) -> bool:
        """Whether the filters leave models out."""
        usual = View()
        names = ("types", "precisions", "sizes", "streams", "licenses", "coverage", "chat_template")
        return any(getattr(self, name) != getattr(usual, name) for name in names)

    def same_controls(self, other: View) -> bool:
        """Whether the table's controls hold the same for both: they differ in order, page and chosen rows at most."""
        links = {"sort": "", "ascending": None, "sheet": 1, "rows": ()}
        return self.tab == other.tab == "leaderboard" and self.changed(**links) == other.changed(**links)

    @property
    def address(self) -> str:
        """The query string without `?`: only what differs from the usual view."""
        usual = View()
        return urlencode(
            [
                (field.name, part)
                for field in fields(self)
                if (value := getattr(self, field.name)) != getattr(usual, field.name)
                for part in _parts(value)
            ]
        )

    @property
    def href(self) -> str:
        """A link to the view, from anywhere on the page."""
        return f"?{self.address}"

    @property
    def prefix(self) -> str:
        """The beginning of a link to the view with more parameters, which follow."""
        address = self.address
        return f"?{address}&" if address else "?"


def view_at(address: str) -> View:
    """Reads a view from a query string, with or without `?`."""
    query = address[:_LONGEST_ADDRESS].removeprefix("?")
    try:
        return parse_view(parse_qs(query, keep_blank_values=True, max_num_fields=_MOST_FIELDS))
    except ValueError:  # more fields than any view of ours has
        return View()


def _parts(value: Any) -> list[str]:
    if isinstance(value, tuple):
        return list(value) or [""]  # chosen to be empty is another view than not chosen
    return [str(value).lower() if isinstance(value, bool) else str(value)]


def parse_view(query: Mapping[str, list[str]]) -> View:
    """Reads a view from the parameters of an address, as `urllib.parse.parse_qs(…, keep_blank_values=True)` gives them.

    Addresses come from anywhere: what cannot be a value of a parameter is left out, as are unknown parameters.
    """
    usual = View()
    values: dict[str, Any] = {}
    for field in fields(View):
        given = [text[:LONGEST] for text in query.get(field.name, [])[:_MOST_VALUES]]
        if given:
            value = _value(field.name, given, getattr(usual, field.name))
            values |= {} if value is None else {field.name: value}
    return View(**values)


def _value(name: str, given: list[str], usual: Any) -> Any:
    first = given[0]
    match name:
        case "tab":
            return first if first in TABS else None
        case "chat_template":
            return first if first in get_args(ChatTemplate) else None
        case "ascending" | "errors":
            return {"true": True, "false": False}.get(first)
        case "coverage" | "sheet":
            least, most = (0, 100) if name == "coverage" else (1, 10**6)
            return min(max(int(first), least), most) if first.isascii() and first.isdigit() else None
        case _ if isinstance(usual, str):
            return first
        case _:
            return tuple(dict.fromkeys(text for text in given if text))
