"""Configurations of ParScale models, one per backbone architecture.

`Qwen2ParScaleConfig`, `LlamaParScaleConfig`, … are the backbone's own configuration plus the three fields of the
official checkpoints. Any name `XxxParScaleConfig` is made on demand from transformers' `XxxConfig`; nothing is listed
by hand. This file travels with every saved checkpoint, so it imports transformers only.
"""

import re
from functools import cache

import transformers
from transformers import PreTrainedConfig

MODEL_TYPE_SUFFIX = "_parscale"
PREFIX_MODEL_TYPE_SUFFIX = "_parscale_prefix"
_NAME = re.compile(r"(?P<base>[A-Z]\w*?)ParScale(?P<prefix>Prefix)?Config")


class ParScaleConfigMixin:
    """What every ParScale configuration adds to its backbone's.

    Attributes:
        parscale_n: number of streams P, at least 1.
        parscale_n_tokens: prefix tokens K of each stream, at least 0.
        parscale_attn_smooth: label smoothing ε of the aggregation weights, in [0, 1). The official class defaults to
            0.01 while the paper trains with 0.1 (arXiv 2505.10475, section 3), so it is always written out.
        parscale_base_model: name of the backbone that the model was converted from, for the model card.
        parscale_base_license: its licence, likewise.
    """

    @property
    def prefix_length(self) -> int:
        """Prefix tokens K that every query sees.

        An official checkpoint with P = 1 is the plain backbone and has none. A run of ours at P = 1 may train one; it
        has a model type of its own, so that official code refuses it instead of dropping the prefix.
        """
        has_prefix = self.parscale_n > 1 or self.model_type.endswith(PREFIX_MODEL_TYPE_SUFFIX)
        return self.parscale_n_tokens if has_prefix else 0

    def to_dict(self) -> dict:
        """The configuration as saved, with RoPE also in the place where transformers 4 looks for it.

        transformers 5 writes `rope_parameters` alone; the official model code then falls back to a theta of 10,000
        without a word.
        """
        output = super().to_dict()
        rope = output.get("rope_parameters") or {}
        if "rope_theta" in rope:
            output["rope_theta"] = rope["rope_theta"]
            if rope.get("rope_type", "default") != "default":
                output["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
        return output


@cache
def parscale_config_class(backbone_config: type[PreTrainedConfig], prefix_at_one: bool, /) -> type:
    """The ParScale configuration class over a backbone's configuration class.

    Args:
        backbone_config: for example `Qwen2Config`.
        prefix_at_one: the variant for P = 1 with a trained prefix, whose model type ends in `_parscale_prefix`.
    """
    suffix = PREFIX_MODEL_TYPE_SUFFIX if prefix_at_one else MODEL_TYPE_SUFFIX

    class Config(ParScaleConfigMixin, backbone_config):
        model_type = backbone_config.model_type + suffix
        parscale_n: int = 1
        parscale_n_tokens: int = 48
        parscale_attn_smooth: float = 0.01
        parscale_base_model: str | None = None
        parscale_base_license: str | None = None

        def __post_init__(self, **kwargs):
            super().__post_init__(**kwargs)
            if type(self.parscale_n) is not int or self.parscale_n < 1:
                raise ValueError(f"parscale_n is {self.parscale_n!r}; it must be an integer >= 1")
            if prefix_at_one and self.parscale_n != 1:
                raise ValueError(f"model type {self.model_type} is for parscale_n = 1, not {self.parscale_n!r}")
            if type(self.parscale_n_tokens) is not int or self.parscale_n_tokens < 0:
                raise ValueError(f"parscale_n_tokens is {self.parscale_n_tokens!r}; it must be an integer >= 0")
            if type(self.parscale_attn_smooth) not in (int, float) or not 0 <= self.parscale_attn_smooth < 1:
                raise ValueError(
                    f"parscale_attn_smooth is {self.parscale_attn_smooth!r}; it must be a number in [0, 1)"
                )

    base = backbone_config.__name__.removesuffix("Config")
    Config.__name__ = Config.__qualname__ = f"{base}ParScale{'Prefix' if prefix_at_one else ''}Config"
    Config.register_for_auto_class("AutoConfig")
    return Config


def __getattr__(name: str) -> type:
    match = _NAME.fullmatch(name)
    backbone = getattr(transformers, match["base"] + "Config", None) if match else None
    if backbone is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return parscale_config_class(backbone, bool(match["prefix"]))
