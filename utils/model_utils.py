"""Loading a backbone and making it a ParScale model: `parcontrol.parscale`."""

from parcontrol.parscale.convert import (
    convert_to_parscale_model,
    create_parscale_config,
    drop_streams,
    parscale_parameters,
)
from parcontrol.parscale.loading import load_backbone

__all__ = [
    "convert_to_parscale_model",
    "create_parscale_config",
    "drop_streams",
    "load_backbone",
    "parscale_parameters",
]
