"""Tiny runs in processes of their own, which can be killed."""

from tests.training.conftest import make_config

__all__ = ["make_config"]
