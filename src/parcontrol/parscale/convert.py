"""From a loaded backbone to a ParScale model and back, sharing every parameter of the backbone."""

import copy
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from parcontrol.parscale.configuration_parscale import parscale_config_class
from parcontrol.parscale.loading import base_model_license
from parcontrol.parscale.modeling_parscale import (
    ParScaleForCausalLMMixin,
    ParScalePreTrainedMixin,
    parscale_model_class,
    plain_attention,
)


@dataclass(frozen=True)
class ParScaleConfig:
    """What turns a backbone into a ParScale model; see `create_parscale_config`."""

    P: int
    prefix_length: int
    attn_smooth: float


def create_parscale_config(P: int, prefix_length: int = 48, attn_smooth: float = 0.1) -> ParScaleConfig:
    """Describe a ParScale model independently of its backbone.

    Args:
        P: parallel streams, at least 1.
        prefix_length: learned prefix tokens K of each stream. At P = 1 it may be 0, which is the plain backbone.
        attn_smooth: label smoothing ε of the aggregation weights, in [0, 1) (paper, section 3.2: 0.1).

    Raises:
        ValueError: naming the value and what is allowed.
    """
    if isinstance(P, bool) or not isinstance(P, int) or P < 1:
        raise ValueError(f"P is {P!r}; the number of streams must be an integer >= 1")
    shortest = 1 if P > 1 else 0
    if isinstance(prefix_length, bool) or not isinstance(prefix_length, int) or prefix_length < shortest:
        reason = " (without prefixes all streams are equal)" if P > 1 else ""
        raise ValueError(f"prefix_length is {prefix_length!r}; at P = {P} it must be an integer >= {shortest}{reason}")
    if isinstance(attn_smooth, bool) or not isinstance(attn_smooth, int | float) or not 0 <= attn_smooth < 1:
        raise ValueError(f"attn_smooth is {attn_smooth!r}; it must be a number in [0, 1)")
    return ParScaleConfig(P, prefix_length, attn_smooth)


def convert_to_parscale_model(
    model: PreTrainedModel, config: ParScaleConfig, context_ids: Any = None
) -> PreTrainedModel:
    """Put streams around a loaded backbone.

    The result shares the backbone's parameters: no second copy exists, and training one in full changes both.
    `drop_streams` gives the backbone back.

    Args:
        model: a decoder of transformers with standard attention, for example `LlamaForCausalLM`.
        config: from `create_parscale_config`.
        context_ids: integers [P, K], different text for each stream. Each prefix then starts as the keys and values of
            its text at positions −K … −1, rotated as true context would be, so that each stream starts as the backbone
            with K tokens of context. Without it, prefixes are drawn from N(0, 0.02²).

    Returns:
        an `XxxParScaleForCausalLM` on the backbone's device and in its type. The aggregator gives equal weights.

    Raises:
        ValueError: for a model that is not supported, by name and with the reason, or unusable context ids.
    """
    check_supported(model)
    P, K = config.P, config.prefix_length
    context = None if context_ids is None else _check_context_ids(context_ids, P, K, model)

    backbone_class: Any = type(model)
    name = model.config.name_or_path
    config_class = parscale_config_class(backbone_class.config_class, P == 1 and K > 0)
    fields = {
        **_plain_fields(model.config),
        "parscale_n": P,
        "parscale_n_tokens": K,
        "parscale_attn_smooth": config.attn_smooth,
        "parscale_base_model": name or None,
        "parscale_base_license": base_model_license(name) if name else None,
    }
    converted = _rebuild(model, parscale_model_class(backbone_class, config_class), config_class(**fields))
    _initialise_new_parameters(converted, like=next(model.parameters()))
    if context is not None:
        _initialise_prefixes_from_context(converted, model, context)
    return converted


def drop_streams(model: PreTrainedModel) -> PreTrainedModel:
    """The plain backbone inside a ParScale model, sharing its parameters; the inverse of conversion.

    Raises:
        ValueError: if the model has no streams.
    """
    if not isinstance(model, ParScaleForCausalLMMixin):
        raise ValueError(f"{type(model).__name__} is not a ParScale model; there are no streams to drop")
    backbone_class: Any = type(model).__bases__[1]
    fields = {k: v for k, v in _plain_fields(model.config).items() if not k.startswith("parscale_")}
    backbone = _rebuild(model, backbone_class, backbone_class.config_class(**fields))
    backbone.config.name_or_path = model.config.parscale_base_model or ""
    return backbone


def parscale_parameters(model: PreTrainedModel) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters of the prefixes and the aggregator: what PEFT training trains."""
    for name, parameter in model.named_parameters():
        if name.endswith((".prefix_k", ".prefix_v")) or ".aggregate_layer." in name:
            yield name, parameter


def check_supported(model: Any) -> None:
    """Refuse, by name and with the reason, what is not a decoder with standard attention.

    Raises:
        ValueError: naming the model's class and the reason.
    """
    if reason := _unsupported_reason(model):
        raise ValueError(f"{type(model).__name__} cannot become a ParScale model: {reason}")


def _unsupported_reason(model: Any) -> str | None:
    if isinstance(model, ParScaleForCausalLMMixin):
        return "it is one already; take drop_streams(model) first"
    if not isinstance(model, PreTrainedModel):
        return "it is not a model of transformers (merge a PEFT adapter into its base model first)"
    name = type(model).__name__
    if not name.endswith("ForCausalLM") or getattr(transformers, name, None) is not type(model):
        return "only the ...ForCausalLM decoder classes of transformers are supported"
    if getattr(model, "hf_quantizer", None) is not None:
        return "its weights are quantised; load it without quantisation"
    config, inner = model.config, getattr(model, "model", None)
    layers = getattr(inner, "layers", None)
    if layers is None or not all(hasattr(layer, "self_attn") for layer in layers):
        return "its layers are not model.layers[i].self_attn throughout"
    if not model._supports_attention_backend:
        return "its attention is not called through transformers' attention interface"
    if any(_attention_calls(layer.self_attn) != 1 for layer in layers):
        return "its attention is not one call of transformers' attention interface"
    if not hasattr(inner, "rotary_emb"):
        return "it has no rotary position embedding, so a prefix has no place in front of position 0"
    other = sorted(set(getattr(config, "layer_types", None) or []) - {"full_attention"})
    if other:
        return f"it has layers of type {', '.join(other)}; only full_attention is supported"
    if getattr(config, "sliding_window", None):
        return f"its attention has a sliding window of {config.sliding_window} tokens"
    if getattr(config, "v_head_dim", None):
        return "its keys and values differ in size (multi-head latent attention)"
    if any(getattr(config, field, None) for field in ("num_experts", "num_local_experts", "n_routed_experts")):
        return "it is a mixture of experts, whose routing statistics would count every token P times"
    return None


def _attention_calls(attention: nn.Module) -> int:
    """How often a layer calls the attention interface: once, but for differential attention and the like."""
    return inspect.getsource(type(attention).forward).count("attention_interface(")


def _plain_fields(config: transformers.PreTrainedConfig) -> dict[str, Any]:
    """The fields that the configuration's constructor takes, without what names the class or the place of saving."""
    fields = config.to_dict()
    for name in (
        "model_type",
        "architectures",
        "auto_map",
        "transformers_version",
        "_name_or_path",
    ):
        fields.pop(name, None)
    fields.pop("rope_scaling", None)
    return {**fields, "attn_implementation": plain_attention(config._attn_implementation)}


def _rebuild(source: PreTrainedModel, target_class: type, config: transformers.PreTrainedConfig) -> PreTrainedModel:
    """A model of another class whose parameters and buffers are the source's own, where it has them."""
    with torch.device("meta"):
        target = target_class(config)
    for name, parameter in source.named_parameters(remove_duplicate=False):
        _place(target, name, parameter)
    for name, buffer in source.named_buffers(remove_duplicate=False):
        _place(target, name, buffer)
    target.generation_config = copy.deepcopy(source.generation_config)
    return target.train(source.training)


def _place(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    try:
        owner = model.get_submodule(path)
    except AttributeError:
        return  # the aggregator, when streams are dropped
    places: list[dict[str, Any]] = [owner._parameters, owner._buffers]
    for tensors in places:
        if leaf in tensors:
            tensors[leaf] = tensor


def _initialise_new_parameters(model: PreTrainedModel, like: torch.Tensor) -> None:
    """Give prefixes and aggregator storage and first values; they are on the meta device until here."""
    new = dict(parscale_parameters(model))
    for name, parameter in new.items():
        assert parameter.is_meta, name
        _place(
            model,
            name,
            nn.Parameter(torch.empty_like(parameter, device=like.device, dtype=like.dtype)),
        )
    for path in sorted({name.rpartition(".")[0] for name in new}):
        module = model.get_submodule(path)
        # An attention module also holds parameters of the backbone, which its own initialisation would draw anew.
        with torch.no_grad():
            if ".aggregate_layer." in path:
                model._init_weights(module)
            else:
                ParScalePreTrainedMixin.init_streams(module)


def _check_context_ids(context_ids: Any, P: int, K: int, model: PreTrainedModel) -> torch.Tensor:
    ids = torch.as_tensor(context_ids, dtype=torch.long, device=next(model.parameters()).device)
    if tuple(ids.shape) != (P, K) or K == 0:
        raise ValueError(f"context_ids has shape {list(ids.shape)}; [P, prefix_length] = [{P}, {K}] is needed")
    embeddings: Any = model.get_input_embeddings()
    vocabulary = embeddings.num_embeddings
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise ValueError(
            f"context_ids has values in {ids.min().item()} … {ids.max().item()}; the vocabulary is 0 … {vocabulary - 1}"
        )
    if torch.unique(ids, dim=0).shape[0] < P:
        raise ValueError("context_ids has two equal rows; streams differ only by their texts, so each needs its own")
    return ids


@torch.no_grad()
def _initialise_prefixes_from_context(
    converted: PreTrainedModel, backbone: PreTrainedModel, context_ids_PK: torch.Tensor
) -> None:
    K = context_ids_PK.shape[1]
    positions = torch.arange(-K, 0, device=context_ids_PK.device)[None]
    was_training = backbone.training
    backbone.eval()
    cache = backbone.model(input_ids=context_ids_PK, position_ids=positions, use_cache=True).past_key_values
    backbone.train(was_training)
    for layer, cached in zip(converted.model.layers, cache.layers, strict=True):
        layer.self_attn.prefix_k.copy_(cached.keys)
        layer.self_attn.prefix_v.copy_(cached.values)
