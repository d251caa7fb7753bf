"""Console and JSON-lines logs: `parcontrol.logging_setup`."""

from parcontrol.logging_setup import setup_logging

__all__ = ["setup_logging"]
