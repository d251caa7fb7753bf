"""ParControl: a local replication of ParScale (arXiv 2505.10475).

Importing the package is cheap: heavy libraries are imported where they are used.
"""

__version__ = "0.1.0"

# Registration of the ParScale classes with transformers' Auto classes goes here (lazily: it must
# not import torch or transformers).
