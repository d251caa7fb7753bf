"""ParControl: a local replication of ParScale (arXiv 2505.10475).

Importing the package is cheap: heavy libraries are imported where they are used. It makes transformers' Auto classes
know ParScale models, when and if those are imported.
"""

from parcontrol.parscale.register import register_auto_classes

__version__ = "0.1.0"

register_auto_classes()
