"""Sentences of English prose, with NLTK's Punkt and a list of abbreviations of our own: nothing is downloaded."""

from __future__ import annotations

import re
from functools import cache

from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

# After these a period ends no sentence. Punkt itself recognises initials, as in "J. R. R. Tolkien".
_ABBREVIATIONS = (
    "mr mrs ms dr prof rev hon st sr jr gen col maj capt lt sgt cpl adm cmdr gov sen rep pres amb "
    "jan feb mar apr jun jul aug sep sept oct nov dec "
    "ave blvd rd mt ft no nos vol pp ed eds inc ltd co corp bros dept univ assn "
    "b d ca c fl approx est etc vs e.g i.e al cf u.s u.k u.s.a u.n d.c ph.d m.d b.a m.a b.sc m.sc a.m p.m"
).split()
_WORD = re.compile(r"\w")


def split_sentences(text: str) -> list[str]:
    """Returns the sentences that have a letter or digit. A line break always ends a sentence."""
    found = [sentence for line in text.splitlines() for sentence in _punkt().tokenize(line.strip())]
    return [sentence for sentence in found if _WORD.search(sentence)]


@cache
def _punkt() -> PunktSentenceTokenizer:
    parameters = PunktParameters()
    parameters.abbrev_types = set(_ABBREVIATIONS)
    return PunktSentenceTokenizer(parameters)
