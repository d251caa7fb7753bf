"""Which rows stand as worked examples in front of a row.

One rule for all tasks: the examples come from the split that is evaluated, and never speak of the evaluated row's own
subject. So nothing depends on a train split, which mirrors often lack, and the prompt is the same everywhere.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from lm_eval.api.samplers import ContextSampler

Row = Mapping[str, Any]


class OtherRows(ContextSampler):
    """Draws rows with other subjects, each subject once.

    The draw depends on the seed of the evaluation and on the subject only: not on the rows before, so that `--limit`
    and several processes change no prompt.
    """

    _seed: int | None = None

    @staticmethod
    def subject(row: Row) -> Hashable:
        """Returns what rows must not share with their examples."""
        raise NotImplementedError

    def set_rnd(self, rnd: int | None) -> OtherRows:
        """Takes the seed; the harness calls this before each evaluation."""
        self._seed = rnd
        return self

    def sample(
        self, n: int, eval_doc: Row | None = None, df: Sequence[Row] | None = None, **_: Any
    ) -> Sequence[dict[str, Any]]:
        """Returns n rows.

        Raises:
            ValueError: There are not enough rows with other subjects.
        """
        assert eval_doc is not None, "examples come from the evaluated split"
        subject = self.subject(eval_doc)
        drawn: dict[Hashable, dict[str, Any]] = {}
        for index in self._indices(subject):
            if len(drawn) == n:
                break
            row = self.df[index]
            if (other := self.subject(row)) != subject:
                drawn.setdefault(other, row)
        if len(drawn) < n:
            raise ValueError(f"{n} examples for each row need more rows with other subjects than {len(drawn)}")
        return list(drawn.values())

    def _indices(self, subject: Hashable) -> Iterator[int]:
        """Yields all positions once, in an order of the subject's own; lazily, as few of many are looked at."""
        chosen, seen = random.Random(f"{self._seed} {subject}"), set[int]()
        while len(seen) < len(self.df):
            index = chosen.randrange(len(self.df))
            if index not in seen:
                seen.add(index)
                yield index


class OtherQuestions(OtherRows):
    """Rows with another question."""

    @staticmethod
    def subject(row: Row) -> Hashable:
        """The question."""
        return row["question"]


class OtherClaims(OtherRows):
    """Rows with another claim."""

    @staticmethod
    def subject(row: Row) -> Hashable:
        """The claim."""
        return row["claim"]


class OtherStatements(OtherRows):
    """Rows with another statement."""

    @staticmethod
    def subject(row: Row) -> Hashable:
        """The statement."""
        return row["statement"]


class OtherContexts(OtherRows):
    """Rows with another context: several questions share one."""

    @staticmethod
    def subject(row: Row) -> Hashable:
        """The context."""
        return row["context"]


class OtherDialogues(OtherRows):
    """Rows of another dialogue: a later turn quotes the turns before it."""

    @staticmethod
    def subject(row: Row) -> Hashable:
        """What the dialogue begins with."""
        return row["history"][0] if row["history"] else row["knowledge"]
