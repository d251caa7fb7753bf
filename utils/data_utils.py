"""Streaming, tokenising and checking text: `parcontrol.data`."""

from parcontrol.data import TrainStream, context_ids, load_validation, open_corpus, verify_run

__all__ = ["TrainStream", "context_ids", "load_validation", "open_corpus", "verify_run"]
