"""ParScale over any decoder of transformers with standard attention (arXiv 2505.10475).

P copies of the input, each with its own learned prefix, pass through one shared backbone; a small aggregator mixes the
P outputs token by token. Three pieces, and the backbone's own code is never touched:

1. `ParScaleModelMixin.forward` repeats the embeddings P times, runs the backbone once over P·B rows (stream-major:
   row = p·B + b) and aggregates.
2. `prefix_attention` is the attention function that the backbone calls by name. It puts each stream's prefix keys and
   values, kept in the attention module, in front of the real ones. A dynamic cache therefore holds real tokens only;
   the static one of `generate` has the prefixes in front from the start (`PrefixedStaticLayer`).
3. `parscale_model_class` joins the mix-ins with a backbone class. Any name `XxxParScaleForCausalLM` of this module is
   made on demand from transformers' `XxxForCausalLM`.

Shapes: P streams, B batch, T query tokens, S keys (cached and new), K prefix tokens, D hidden, H heads, G key/value
heads, d head size. This file travels with every saved checkpoint, so it imports torch and transformers only.
"""

import copy
import re
import weakref
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import StaticLayer
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from .configuration_parscale import parscale_config_class

logger = logging.get_logger(__name__)

_NAME = re.compile(r"(?P<base>[A-Z]\w*?)ParScale(?P<prefix>Prefix)?(?P<head>Model|ForCausalLM)")
# Our attention functions by the name of the plain one. The names belong to this copy of the file: a process may hold
# several (the installed one and those that came with checkpoints), and none may take another's calls.
_COPY = f"{zlib.crc32(__name__.encode()):08x}"
ATTENTION = {plain: f"parscale_{plain}_{_COPY}" for plain in ("sdpa", "eager")}
PREFIX_STD = 0.02
# From this many queries on, K dummy queries that make the problem square and causal cost less on a CPU than a mask,
# which makes the kernel compute what it hides (forward and backward at 256 / 1,024 queries: mask 1.0 / 1.6 ×, dummy
# queries 1.3 / 1.3 × plain causal attention; benchmarks/training_step.py times whole steps). On CUDA flash kernels take
# no mask at all.
DUMMY_QUERIES_FROM = 512


@dataclass
class ParScaleModelOutput(BaseModelOutputWithPast):
    """What the inner model returns.

    Attributes:
        last_hidden_state: [B, T, D], aggregated over the streams.
        hidden_states: if asked for, per layer [P·B, T, D], stream-major, before aggregation.
        attentions: if asked for, per layer [P·B, H, T, K + S]: the first K columns are the stream's prefix.
        stream_weights: [B, T, P] in float32, smoothed, summing to 1; None where there is nothing to weigh (P = 1).
        stream_hidden_states: [P, B, T, D], each stream's final hidden states after the last norm.
    """

    stream_weights: torch.Tensor | None = None
    stream_hidden_states: torch.Tensor | None = None


class ParScaleCache(DynamicCache):
    """A dynamic cache of P·B rows whose public batch operations count rows of B, as callers do."""

    def __init__(self, num_streams: int, **kwargs):
        super().__init__(**kwargs)
        self.num_streams = num_streams

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Move all P rows of each beam. beam_idx: [B]."""
        super().reorder_cache(self._rows(beam_idx))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep all P rows of each batch entry. indices: [B']."""
        super().batch_select_indices(self._rows(indices))

    def _rows(self, batch_idx: torch.Tensor) -> torch.Tensor:
        return stream_major_rows(batch_idx, self.num_streams, self.layers[0].keys.shape[0])


class PrefixedStaticLayer(StaticLayer):
    """Keys and values of one layer, [P·B, G, K + S, d], with the prefixes in front.

    To put them there once costs less than to join them to a static cache in every step, which copies all of the cache.
    To the outside it holds real tokens only: lengths and masks leave the prefixes out.
    """

    def __init__(
        self,
        max_cache_len: int,
        prefix_k: torch.Tensor,
        prefix_v: torch.Tensor,
        used: "PrefixedStaticLayer | None" = None,
    ):
        """Prepares; memory is taken when the first keys come. prefix_k, prefix_v: [P, G, K, d].

        used: a layer that nobody needs any more. Where its memory is of the right kind it serves again: CUDA graphs are
        bound to addresses, and torch gives up recording them anew after some 128 times.
        """
        super().__init__(max_cache_len)
        self.prefix_k, self.prefix_v, self.prefix_length = prefix_k, prefix_v, prefix_k.shape[2]
        self.used = used

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        used, self.used = self.used, None
        if used is not None and used._can_hold(key_states, self.max_cache_len + self.prefix_length):
            vars(self).update(vars(used), prefix_k=self.prefix_k, prefix_v=self.prefix_v)
            self.reset()
            return
        self.max_cache_len += self.prefix_length
        super().lazy_initialization(key_states, value_states)
        self.max_cache_len -= self.prefix_length
        self._put_prefixes()

    def _can_hold(self, key_states: torch.Tensor, length: int) -> bool:
        rows, groups, _, head_size = key_states.shape
        kind = (self.keys.shape, self.keys.dtype, self.keys.device)
        needed = ((rows, groups, length, head_size), key_states.dtype, key_states.device)
        # Tensors of inference mode cannot be written to outside of it.
        return kind == needed and self.keys.is_inference() == torch.is_inference_mode_enabled()

    def reset(self) -> None:
        super().reset()
        if self.is_initialized:
            self._put_prefixes()

    def get_seq_length(self):
        return self.cumulative_length - self.prefix_length if self.is_initialized else 0

    def _put_prefixes(self) -> None:
        self.keys[:, :, : self.prefix_length] = _prefix_rows(self.prefix_k, self.keys)
        self.values[:, :, : self.prefix_length] = _prefix_rows(self.prefix_v, self.values)
        self.cumulative_length.fill_(self.prefix_length)  # where the next token goes


# Of a model the layers of a static cache that nobody needs any more, for its next `generate`. Not in the model, which
# is copied and pickled.
_spare_layers: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _with_prefixes(
    plain: StaticLayer, prefix_k: torch.Tensor, prefix_v: torch.Tensor, used: PrefixedStaticLayer | None
) -> PrefixedStaticLayer:
    """An empty layer of the same size, and in memory already where the plain one is."""
    assert type(plain) is StaticLayer, f"{plain} keeps another choice of tokens; conversion refuses such backbones"
    layer = PrefixedStaticLayer(plain.max_cache_len, prefix_k.detach(), prefix_v.detach(), used)
    if plain.is_initialized:
        layer.lazy_initialization(plain.keys, plain.values)
    return layer


def plain_attention(attn_implementation: str) -> str:
    """The name that a backbone of the same kind of attention would have in its configuration."""
    return {ours: plain for plain, ours in ATTENTION.items()}.get(attn_implementation, attn_implementation)


def stream_major_rows(batch_idx: torch.Tensor, num_streams: int, num_rows: int) -> torch.Tensor:
    """Rows p·B + b of a stream-major tensor with P·B rows, for the batch indices b. [B'] -> [P·B']."""
    batch_size = num_rows // num_streams
    offsets = torch.arange(num_streams, device=batch_idx.device) * batch_size
    return (offsets[:, None] + batch_idx[None, :]).flatten()


def prefix_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    num_streams: int = 1,
    streams: torch.Tensor | None = None,
    prefix_in_cache: bool = False,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention in which every query also sees its stream's whole prefix.

    Query i of T, after S − T cached keys, sees the K prefix keys and real keys 0 … S − T + i: a causal mask aligned to
    the bottom right of [T, K + S]. Prefix keys are not rotated by RoPE; real tokens start at position 0.

    Args:
        query: [P·B, H, T, d]; key, value: [P·B, G, S, d], already rotated; K + S with `prefix_in_cache`.
        attention_mask: boolean or additive [P·B or 1, 1, T, S] over real keys; None for causal or a single query.
        num_streams: streams P in the rows.
        streams: which of the module's streams they are [P], int64; None for the first ones. A tensor, as a number
            would have torch.compile make kernels for every value of it.
        prefix_in_cache: key and value begin with the prefixes.

    Returns:
        output [P·B, T, H, d] and, with eager attention, the probabilities [P·B, H, T, K + S].
    """
    attend = _eager_attention if _is_eager(module) else sdpa_attention_forward
    if getattr(module, "prefix_k", None) is None:
        return attend(module, query, key, value, attention_mask, **kwargs)

    num_queries, prefix_length = query.shape[2], module.prefix_k.shape[2]
    if attention_mask is None and num_queries > 1:
        # Without a mask the keys are exactly the queries' own; a static cache hands over its unused tail as well.
        num_keys = num_queries + (prefix_length if prefix_in_cache else 0)
        key, value = key[:, :, :num_keys], value[:, :, :num_keys]
    if not prefix_in_cache:
        prefix_k, prefix_v = (
            x[:num_streams] if streams is None else x.index_select(0, streams)
            for x in (module.prefix_k, module.prefix_v)
        )
        key = torch.cat([_prefix_rows(prefix_k, key), key], dim=2)
        value = torch.cat([_prefix_rows(prefix_v, value), value], dim=2)
    kernel = getattr(module, "causal_kernel", None)
    if kernel is not None and _takes_kernel(module, query, attention_mask, **kwargs):
        return kernel(query, key, value, kwargs.get("scaling")), None
    if attention_mask is None and _takes_dummy_queries(query) and not _is_eager(module):
        query = F.pad(query, (0, 0, prefix_length, 0))
        output, _ = attend(module, query, key, value, None, **{**kwargs, "is_causal": True})
        return output[:, prefix_length:], None
    if attention_mask is not None:
        visible = True if attention_mask.dtype == torch.bool else 0.0
        attention_mask = F.pad(attention_mask, (prefix_length, 0), value=visible)
    elif num_queries > 1:
        attention_mask = _bottom_right_mask(num_queries, prefix_length, query.device)
    if num_queries == 1 and not _is_eager(module):
        return _one_query_attention(query, key, value, attention_mask, **kwargs), None
    kwargs["is_causal"] = False
    return attend(module, query, key, value, attention_mask, **kwargs)


def _takes_dummy_queries(query: torch.Tensor) -> bool:
    if query.is_cuda:
        # Not float16: GPUs before Ampere have no flash kernel for it, and without a mask torch would build the scores.
        return query.shape[2] > 1 and query.dtype == torch.bfloat16
    return query.shape[2] >= DUMMY_QUERIES_FROM


def _takes_kernel(
    module: nn.Module,
    query: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    softcap: float | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs,
) -> bool:
    """Whether a call is one for the kernel that training may put into `module.causal_kernel`."""
    autocast = torch.is_autocast_enabled(query.device.type)
    dtype = torch.get_autocast_dtype(query.device.type) if autocast else query.dtype
    plain = attention_mask is None and dropout == 0 and softcap is None and position_bias is None
    return plain and module.training and query.shape[2] > 1 and dtype == torch.bfloat16 and not _is_eager(module)


def _one_query_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs,
) -> torch.Tensor:
    """A decoding step: the H/G heads that share a key/value head are queries of it, so nothing is repeated for them.

    transformers does the same, but not while it is being compiled; there it writes H/G copies of all keys and values.

    Returns:
        output [P·B, 1, H, d].
    """
    rows, num_heads, _, _ = query.shape
    groups = key.shape[1]
    if attention_mask is not None and attention_mask.shape[1] != 1:  # a mask for each head
        attention_mask = attention_mask.reshape(len(attention_mask), groups, num_heads // groups, -1)
    output = F.scaled_dot_product_attention(
        query.reshape(rows, groups, num_heads // groups, -1), key, value, attention_mask, dropout, scale=scaling
    )
    return output.reshape(rows, 1, num_heads, -1)


def _is_eager(module: nn.Module) -> bool:
    return module.config._attn_implementation == ATTENTION["eager"]


def _prefix_rows(prefix_PGKd: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Every stream's prefix for each of its B rows: [P, G, K, d] -> [P·B, G, K, d]."""
    return prefix_PGKd.to(like.dtype).repeat_interleave(like.shape[0] // len(prefix_PGKd), dim=0)


def _bottom_right_mask(num_queries: int, prefix_length: int, device: torch.device) -> torch.Tensor:
    num_keys = prefix_length + num_queries
    return torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(prefix_length)


def _eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention that keeps its probabilities, softmax in float32. Masks are boolean or additive."""
    key = repeat_kv(key, module.num_key_value_groups)
    value = repeat_kv(value, module.num_key_value_groups)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    probabilities = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    output = F.dropout(probabilities, p=dropout, training=module.training) @ value
    return output.transpose(1, 2).contiguous(), probabilities


for _name, _mask in (("sdpa", sdpa_mask), ("eager", eager_mask)):
    AttentionInterface.register(ATTENTION[_name], prefix_attention)
    AttentionMaskInterface.register(ATTENTION[_name], _mask)


class _EqualWeights(nn.Linear):
    """The aggregator's last layer: zero at first, so that training starts from equal weights."""


class ParScalePreTrainedMixin:
    """What the inner and the outer model share: attention by our functions, initialisation of the new parameters."""

    def _check_and_adjust_attn_implementation(self, attn_implementation, *args, **kwargs):
        plain = plain_attention(attn_implementation or "sdpa")
        if plain not in ATTENTION:
            raise ValueError(
                f"attn_implementation is {attn_implementation!r}; a ParScale model takes one of {sorted(ATTENTION)} "
                "(sdpa runs flash kernels on CUDA by itself)"
            )
        # A backbone that cannot use sdpa falls back to eager in here.
        return ATTENTION[super()._check_and_adjust_attn_implementation(plain, *args, **kwargs)]

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        self.init_streams(module)

    @staticmethod
    def init_streams(module: nn.Module) -> None:
        """Give first values to what ParScale adds to a module, and to nothing else of it."""
        if isinstance(module, _EqualWeights):
            init.zeros_(module.weight)
        if getattr(module, "prefix_k", None) is not None:
            init.normal_(module.prefix_k, std=PREFIX_STD)
            init.normal_(module.prefix_v, std=PREFIX_STD)


class ParScaleModelMixin(ParScalePreTrainedMixin):
    """The inner model: repeat, run the backbone, aggregate."""

    def __init__(self, config):
        super().__init__(config)
        self.active_streams = config.parscale_n
        if config.prefix_length:
            for layer in self.layers:
                _add_prefix(layer.self_attn, config)
        if config.parscale_n > 1:
            hidden = config.hidden_size
            self.aggregate_layer = nn.Sequential(
                nn.Linear(config.parscale_n * hidden, hidden),
                nn.SiLU(),
                _EqualWeights(hidden, config.parscale_n),
            )

    @merge_with_config_defaults
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | dict | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        streams: range | None = None,
        **kwargs,
    ) -> ParScaleModelOutput:
        """Run P streams and aggregate them.

        Args and outputs are the backbone's, over B rows; see `ParScaleModelOutput` for what differs. Positions that
        are not given follow from a two-dimensional attention mask, so that a left-padded row gives what it gives
        alone: prefix keys are unrotated, hence absolute positions matter.

        Args:
            streams: run only these neighbouring streams of a model that has prefixes and aggregate nothing; of the
                output, `last_hidden_state` is then None and `stream_hidden_states` theirs. `aggregate` mixes the
                collected hidden states of all streams.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if streams is not None:
            self._check_streams(streams)
        P = self.active_streams if streams is None else len(streams)
        inputs = {"past_key_values": past_key_values, "use_cache": use_cache, **kwargs}
        if not self.config.prefix_length:
            # P = 1 of the official checkpoints: the plain backbone, in its own words.
            out = super().forward(input_ids, attention_mask, position_ids, inputs_embeds=inputs_embeds, **inputs)
            return ParScaleModelOutput(**out, stream_hidden_states=out.last_hidden_state[None])

        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        B, T, _ = inputs_embeds.shape
        if position_ids is None and isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -T:]
        if use_cache and past_key_values is None:
            inputs["past_key_values"] = ParScaleCache(P, config=self.config)
        _check_cache_rows(past_key_values, P, B)

        out = super().forward(
            inputs_embeds=_repeat_rows(inputs_embeds, P, B),
            attention_mask=_repeat_rows(attention_mask, P, B),
            position_ids=_repeat_rows(position_ids, P, B),
            num_streams=P,
            prefix_in_cache=getattr(past_key_values, "holds_prefixes", False),
            streams=None if streams is None else torch.arange(P, device=inputs_embeds.device) + streams.start,
            **inputs,
        )
        h_PBTD = out.last_hidden_state.unflatten(0, (P, B))
        if streams is not None:
            return ParScaleModelOutput(**{**out, "last_hidden_state": None}, stream_hidden_states=h_PBTD)
        mixed, weights = self.aggregate(h_PBTD) if P > 1 else (h_PBTD[0], None)
        return ParScaleModelOutput(
            **{**out, "last_hidden_state": mixed},
            stream_weights=weights,
            stream_hidden_states=h_PBTD,
        )

    def _check_streams(self, streams: range) -> None:
        if not streams or streams.step != 1 or streams.start < 0 or streams.stop > self.active_streams:
            raise ValueError(f"streams is {streams!r}; neighbours in range(0, {self.active_streams}) are needed")
        if not self.config.prefix_length:
            raise ValueError(f"streams is {streams!r}, but this model has no prefixes: it is the plain backbone")

    def aggregate(self, h_PBTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix the streams with weights that depend on all of them, token by token (paper, section 3.1).

        The aggregator reads features-major, streams-minor input (index h·P + p). Softmax, smoothing
        w·(1 − ε) + ε/P and the weighted sum are float32; the two linear layers run in the hidden states' own type.

        With fewer active streams p < P the input columns and output rows of the others are left out.

        Returns:
            the mixture [B, T, D] in the type of h_PBTD, and the weights [B, T, P] in float32.
        """
        P, _, _, D = h_PBTD.shape
        first, _, last = self.aggregate_layer
        first_weight = first.weight.view(-1, D, self.config.parscale_n)[..., :P].flatten(1).to(h_PBTD.dtype)
        x = h_PBTD.permute(1, 2, 3, 0).flatten(2)
        x = F.silu(F.linear(x, first_weight, first.bias.to(x.dtype)))
        scores = F.linear(x, last.weight[:P].to(x.dtype), last.bias[:P].to(x.dtype))
        smooth = self.config.parscale_attn_smooth
        weights = scores.softmax(-1, dtype=torch.float32) * (1 - smooth) + smooth / P
        mixed = (h_PBTD.float() * weights.permute(2, 0, 1)[..., None]).sum(0)
        return mixed.to(h_PBTD.dtype), weights


class ParScaleForCausalLMMixin(ParScalePreTrainedMixin):
    """The outer model: the backbone's own head, loss and generation over aggregated hidden states."""

    def __init__(self, config):
        super().__init__(config)
        # The backbone's constructor has made a plain inner model; it offers no hook for another class.
        self.model = parscale_model_class(type(self.model), self.config_class)(config)
        self.post_init()

    def set_streams(self, num_streams: int) -> None:
        """Answer with the first `num_streams` streams from now on (dynamic P); P of the config restores all.

        The other streams' input columns and output rows of the aggregator drop out, the softmax runs over
        `num_streams` and the smoothing is ε/`num_streams`; 1 is stream 0 alone. A number of streams that the model
        was not trained with is just that: untrained. Caches made with another number are refused.

        Raises:
            ValueError: no integer in 1 … P.
        """
        if type(num_streams) is not int or not 1 <= num_streams <= self.config.parscale_n:
            raise ValueError(
                f"num_streams is {num_streams!r}; this model has {self.config.parscale_n} streams, "
                f"so it must be an integer in 1 … {self.config.parscale_n}"
            )
        self.model.active_streams = num_streams

    def save_pretrained(self, save_directory, *args, **kwargs) -> None:
        """Save weights, configuration, the code that loads them and, where none is there, a model card."""
        super().save_pretrained(save_directory, *args, **kwargs)
        card = Path(save_directory, "README.md")
        if not card.exists():
            card.write_text(_model_card(self.config), encoding="utf-8")

    def _reorder_cache(self, past_key_values, beam_idx: torch.LongTensor):
        """Called by beam search: a beam owns one row in each stream."""
        if not isinstance(past_key_values, ParScaleCache):
            num_rows = past_key_values.layers[0].keys.shape[0]
            beam_idx = stream_major_rows(beam_idx, self.model.active_streams, num_rows)
        past_key_values.reorder_cache(beam_idx)
        return past_key_values

    def _prepare_static_cache(self, cache_implementation: str, batch_size: int, *args, **kwargs):
        """Called by `generate` for a static cache: its rows are P·B, and it serves this number of streams only."""
        num_streams = self.model.active_streams
        cache = super()._prepare_static_cache(cache_implementation, num_streams * batch_size, *args, **kwargs)
        cache.num_streams = num_streams
        cache.holds_prefixes = bool(self.config.prefix_length)
        if cache.holds_prefixes:
            attentions = [layer.self_attn for layer in self.model.layers]
            used = _spare_layers.pop(self, None) or [None] * len(attentions)
            cache.layers = [
                _with_prefixes(layer, attention.prefix_k[:num_streams], attention.prefix_v[:num_streams], of_used)
                for layer, attention, of_used in zip(cache.layers, attentions, used, strict=True)
            ]
        return cache

    def _sample(self, *args, generation_config, **kwargs):
        """Called by `generate` for all but beams: the memory of a static cache that the caller never sees is kept."""
        output = super()._sample(*args, generation_config=generation_config, **kwargs)
        cache = kwargs.get("past_key_values")
        returned = generation_config.return_dict_in_generate or getattr(cache, "_is_user_defined", False)
        if getattr(cache, "holds_prefixes", False) and not returned:
            _spare_layers[self] = cache.layers
        return output

    def _valid_auto_compile_criteria(self, model_kwargs: dict, generation_config) -> bool:
        """Called by `generate`: whether decoding steps run compiled. A `compile_config` asks for it on any device.

        transformers alone would ignore a `compile_config` on a CPU. There, the default backend writes C++; without a
        compiler for it the steps run as they are, and one message says so.
        """
        config = generation_config.compile_config
        if config is not None and not generation_config.disable_compile:
            if self.device.type == "cpu" and config.backend == "inductor" and not has_cpp_compiler():
                logger.warning_once(
                    "compile_config is set, but there is no C++ compiler: decoding runs uncompiled. Install g++, or "
                    "name a compiler in the environment variable CXX."
                )
                return False
            generation_config.compile_config = copy.copy(config)  # the caller's own stays as it is
            generation_config.compile_config._compile_all_devices = True
        return super()._valid_auto_compile_criteria(model_kwargs, generation_config)


@cache
def has_cpp_compiler() -> bool:
    """Whether torch.compile's default backend finds a C++ compiler; asked once, for it starts a process."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # slow to import, and needed here alone
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def _model_card(config) -> str:
    """What is known of a model that was saved outside a training run, which writes a fuller card."""
    base, licence = config.parscale_base_model or "not recorded", config.parscale_base_license or "not recorded"
    return f"""---
library_name: transformers
tags: [parscale]
---

# ParScale model with P = {config.parscale_n}

- Base model: {base}, licence: {licence}
- Training data: not recorded (saved outside a training run of ParControl)
- Prefix tokens a stream: {config.prefix_length}; smoothing of the aggregation weights: {config.parscale_attn_smooth}

Load it with `AutoModelForCausalLM.from_pretrained(PATH, trust_remote_code=True)`; the code lies beside the weights.
"""


def _add_prefix(attention: nn.Module, config) -> None:
    weight = next(attention.parameters())
    key_value_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    shape = (config.parscale_n, key_value_heads, config.prefix_length, attention.head_dim)
    # A parameter added from outside, so that the backbone's attention class stays the backbone's.
    attention.prefix_k = nn.Parameter(torch.empty(shape, dtype=weight.dtype, device=weight.device))
    attention.prefix_v = nn.Parameter(torch.empty(shape, dtype=weight.dtype, device=weight.device))
    attention._is_hf_initialized = False  # or transformers would leave the new parameters as they are: uninitialised


def _repeat_rows(x, num_streams: int, batch_size: int):
    """[B, …] -> [P·B, …], stream-major. One row that broadcasts stays one row; dictionaries are repeated by value."""
    if isinstance(x, dict):
        return {name: _repeat_rows(value, num_streams, batch_size) for name, value in x.items()}
    if x is None or num_streams == 1 or (x.shape[0] == 1 and batch_size > 1):
        return x
    return x.repeat(num_streams, *[1] * (x.dim() - 1))


def _check_cache_rows(past_key_values, num_streams: int, batch_size: int) -> None:
    if past_key_values is None or not past_key_values.layers or not past_key_values.layers[0].is_initialized:
        return
    keys = past_key_values.layers[0].keys
    made_with = getattr(past_key_values, "num_streams", num_streams)
    if made_with != num_streams or (keys.numel() and keys.shape[0] != num_streams * batch_size):
        raise ValueError(
            f"the cache holds {keys.shape[0]} rows, made with {made_with} streams, but {num_streams} streams of batch "
            f"{batch_size} need {num_streams * batch_size}; a cache serves only the number of streams that it was made "
            "with"
        )


@cache
def parscale_model_class(backbone: type[PreTrainedModel], config_class: type, /) -> type:
    """The ParScale class over a backbone class of transformers, inner (`XxxModel`) or outer (`XxxForCausalLM`)."""
    outer = backbone.__name__.endswith("ForCausalLM")
    mixin = ParScaleForCausalLMMixin if outer else ParScaleModelMixin
    head = "ForCausalLM" if outer else "Model"
    name = config_class.__name__.removesuffix("Config") + head
    cls = type(
        name,
        (mixin, backbone),
        {"__module__": __name__, "config_class": config_class, "config": None},
    )
    cls.config_class = config_class
    if outer:
        cls.register_for_auto_class("AutoModelForCausalLM")
    return cls


def __getattr__(name: str) -> type:
    match = _NAME.fullmatch(name)
    backbone = getattr(transformers, match["base"] + match["head"], None) if match else None
    if backbone is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return parscale_model_class(backbone, parscale_config_class(backbone.config_class, bool(match["prefix"])))
