"""Datasets of the tasks, from the files that their authors publish to the repositories that the tasks read.

One converter per dataset turns original files into splits; `publish` writes splits as parquet, with the card that
`datasets.load_dataset` needs, to a dataset repository of the Hub or to a directory of the same layout.
"""

from __future__ import annotations

from parcontrol.leaderboard.uploads import averitec, fever, halueval, isp, nqswap, shroom, truefalse
from parcontrol.leaderboard.uploads.converter import Converter

CONVERTERS: dict[str, Converter] = {
    converter.name: converter
    for converter in (
        halueval.CONVERTER,
        fever.CONVERTER,
        shroom.CONVERTER,
        truefalse.CONVERTER,
        isp.CONVERTER,
        nqswap.CONVERTER,
        averitec.CONVERTER,
    )
}
