"""The Qwen2 ParScale configuration: `parcontrol.parscale.configuration_parscale`."""

from parcontrol.parscale.configuration_parscale import Qwen2ParScaleConfig

__all__ = ["Qwen2ParScaleConfig"]
