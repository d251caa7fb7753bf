"""The Qwen2 ParScale model: `parcontrol.parscale.modeling_parscale`."""

from parcontrol.parscale.modeling_parscale import Qwen2ParScaleForCausalLM, Qwen2ParScaleModel

__all__ = ["Qwen2ParScaleForCausalLM", "Qwen2ParScaleModel"]
