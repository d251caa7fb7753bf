"""Logging to Weights & Biases: `parcontrol.training.wandb`."""

from parcontrol.training.wandb import WandbCallback

__all__ = ["WandbCallback"]
