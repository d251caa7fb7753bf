"""Where a run's weights come from: a pretrained backbone, or the checkpoint of an earlier stage."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from parcontrol.config import RunConfig
from parcontrol.data import Corpus, ValidationSet, context_ids, tokenizer_sha256
from parcontrol.parscale.convert import (
    convert_to_parscale_model,
    create_parscale_config,
    drop_streams,
)
from parcontrol.parscale.loading import load_backbone, resolve_model
from parcontrol.runs import RunDirectory
from parcontrol.training.device import Precision
from parcontrol.training.documents import read_backbone, write_documents
from parcontrol.training.evaluate import Validation, evaluate
from parcontrol.training.loss import output_head
from parcontrol.training.processes import Processes

logger = logging.getLogger(__name__)

LOCAL = "local"


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    Attributes:
        backbone: The plain model, whose own loss the run is compared with.
        parscale: A ParScale model around the same parameters, if the run continues one.
        tokenizer: The tokenizer of `model.name`.
        revision: Commit of the backbone on the Hub, or `local`.
    """

    backbone: PreTrainedModel
    parscale: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase
    revision: str


def load_start(config: RunConfig, precision: Precision, before: Mapping[str, Any]) -> Start:
    """Loads the backbone, or the checkpoint named by `training.init_from`, in the run's type.

    `init_from` is a plain model, or a ParScale model of the same streams. (A run with P = 1 and no
    prefix saves a plain model in ParScale's clothes; it counts as plain.)

    Args:
        config: The run.
        precision: Device and type of the weights.
        before: meta.json of a resumed run, whose revision of the backbone is loaded again.

    Raises:
        ValueError: A model cannot be loaded, `init_from` has other streams than the run, or another
            tokenizer than `model.name`.
    """
    init_from = config.training.init_from
    try:
        model, tokenizer = load_backbone(
            init_from or config.model.name,
            None if init_from else _revision(config, before),
            dtype=precision.backbone,
            device=precision.device,
            mirror=config.data.mirror,
        )
    except ValueError as error:
        raise ValueError(f"{'training.init_from' if init_from else 'model.name'}: {error}") from error
    if init_from:
        _check_same_tokenizer(config, tokenizer)
    commit = getattr(model.config, "_commit_hash", None) or LOCAL
    if not hasattr(model.config, "parscale_n"):
        return Start(model, None, tokenizer, commit)
    backbone = drop_streams(model)
    if model.config.parscale_n == 1 and model.config.prefix_length == 0:
        return Start(backbone, None, tokenizer, commit)
    _check_same_streams(config, model)
    return Start(backbone, model, tokenizer, commit)


def measure_backbone(
    config: RunConfig,
    run: RunDirectory,
    start: Start,
    validation: ValidationSet,
    precision: Precision,
    resuming: bool,
    processes: Processes,
) -> Validation | None:
    """Returns the plain backbone's own validation, measured once in the life of a run; in rank 0 alone.

    Raises:
        ValueError: The loss cannot be computed from the output head of this model.
    """
    if resuming:
        return read_backbone(run) if processes.main else None
    output_head(start.backbone)
    logger.info("measuring the backbone alone on %d validation tokens", validation.blocks.size)
    result = evaluate(
        start.backbone,
        validation,
        precision,
        batch_size=config.training.microbatch_size,
        processes=processes,
    )
    if not processes.main:
        return None
    write_documents(run.validation_documents_path, result, None)
    record = {"backbone_validation_loss": result.loss, "backbone_validation_perplexity": result.perplexity}
    run.append_metrics({"step": 0, "tokens": 0, **record})
    logger.info("backbone alone: validation loss %.4f nats, perplexity %.2f", result.loss, result.perplexity)
    return result


def build_model(config: RunConfig, start: Start, corpus: Corpus | None) -> PreTrainedModel:
    """Returns the ParScale model at the start of the run, sharing the backbone's parameters.

    `training.seed` decides all of its randomness: the texts that prefixes start from, or their
    noise, and the aggregator. Without a corpus prefixes are noise: a process other than rank 0 gets
    its parameters from there.
    """
    if start.parscale is not None:
        return start.parscale
    parscale = config.parscale
    context = None
    if corpus is not None and parscale.prefix_init == "context" and parscale.prefix_length > 0:
        context = context_ids(
            corpus,
            start.tokenizer,
            P=parscale.P,
            length=parscale.prefix_length,
            seed=config.training.seed,
        )
    torch.manual_seed(config.training.seed)
    streams = create_parscale_config(parscale.P, parscale.prefix_length, parscale.attn_smooth)
    model = convert_to_parscale_model(start.backbone, streams, context)
    model.config.parscale_base_model = config.training.init_from or config.model.name
    return model


def _revision(config: RunConfig, before: Mapping[str, Any]) -> str | None:
    recorded = before.get("model_revision", LOCAL)
    return config.model.revision if recorded == LOCAL else recorded


def _check_same_streams(config: RunConfig, model: PreTrainedModel) -> None:
    wanted = config.parscale
    for key, ours, theirs in (
        ("P", wanted.P, model.config.parscale_n),
        ("prefix_length", wanted.prefix_length, model.config.prefix_length),
        ("attn_smooth", wanted.attn_smooth, model.config.parscale_attn_smooth),
    ):
        if ours != theirs:
            raise ValueError(
                f"training.init_from: {config.training.init_from!r} has {key} {theirs}, but "
                f"parscale.{key} is {ours}: a plain model or one with the same streams is needed"
            )


def _check_same_tokenizer(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    name = config.model.name
    try:
        expected = AutoTokenizer.from_pretrained(
            resolve_model(name, config.data.mirror), revision=config.model.revision
        )
    except OSError as error:
        raise ValueError(
            f"model.name: the tokenizer of {name!r} cannot be loaded: {' '.join(str(error).split())}"
        ) from error
    if tokenizer_sha256(tokenizer) != tokenizer_sha256(expected):
        raise ValueError(
            f"training.init_from: {config.training.init_from!r} has another tokenizer than "
            f"model.name {name!r}: name the model that it was trained from"
        )
