"""The headings of the big table, each a link that sorts by it.

Put together here and not by a template: what does not depend on the view is made once, as the cells are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from urllib.parse import quote_plus

from markupsafe import Markup

from parcontrol.leaderboard.app.table.selection import AVERAGES, metric_columns, order
from parcontrol.leaderboard.app.view import View

_SIGNS = {True: "↑", False: "↓"}
_WORDS = {True: "higher is better", False: "lower is better"}


def headings(view: View, kinds: Sequence[tuple[str, str]]) -> Iterator[Markup]:
    """Gives a heading for every (label, CSS class): a click on it sorts by it, or the other way round.

    Args:
        view: Its order is said by the headings, everything else of it stays in their links.
        kinds: Labels, each with the class of its cell.
    """
    label_now, ascending_now = order(view)
    unsorted = view.changed(sort="", ascending=None, sheet=1).prefix.replace("&", "&amp;")
    now = "ascending" if ascending_now else "descending"
    other_way = f"&amp;ascending={str(not ascending_now).lower()}"
    for label, kind in kinds:
        sort, way = (now, other_way) if label == label_now else ("none", "")
        quoted, rest = _constant(label)
        href = f"{unsorted}sort={quoted}{way}"
        yield Markup(f'<th scope="col" class="{kind}" aria-sort="{sort}"><a href="{href}" {rest}')


@cache
def _constant(label: str) -> tuple[str, str]:
    """What a heading is made of in any view: its label as it stands in addresses, and everything after its address."""
    name, _, metric = label.partition("/")
    higher_is_better = _directions().get(label)
    title, sign = label, Markup("")
    if higher_is_better is not None:
        words = _WORDS[higher_is_better]
        title = f"{label}: {words}"
        sign = Markup(' <span aria-label="{}">{}</span>').format(words, _SIGNS[higher_is_better])
    rest = Markup('data-keep="sort-{}" title="{}"><span>{}</span><small>{}{}</small></a></th>')
    return quote_plus(label), rest.format(label, title, name, metric, sign)


@cache
def _directions() -> Mapping[str, bool]:
    return dict.fromkeys(AVERAGES, True) | dict(metric_columns())
