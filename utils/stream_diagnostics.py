"""How a model uses its streams: `parcontrol.diagnostics.streams`."""

from parcontrol.diagnostics.streams import (
    CollapseWatch,
    StreamAccumulator,
    collapsed,
    entropy,
    gini,
    kl_uniform,
    minimum_entropy,
    relative_entropy,
)

__all__ = [
    "CollapseWatch",
    "StreamAccumulator",
    "collapsed",
    "entropy",
    "gini",
    "kl_uniform",
    "minimum_entropy",
    "relative_entropy",
]
