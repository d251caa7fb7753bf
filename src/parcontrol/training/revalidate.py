"""Measuring finished runs again, on more of the validation split than they were measured on while they trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from parcontrol.config import RunConfig
from parcontrol.data import ValidationSet, load_validation, open_corpus, tokenizer_sha256
from parcontrol.diagnostics.memory import first_line, is_out_of_memory
from parcontrol.parscale.loading import load_backbone
from parcontrol.runs import RunDirectory
from parcontrol.training.device import Precision, choose_device
from parcontrol.training.documents import write_documents
from parcontrol.training.errors import OutOfMemoryError
from parcontrol.training.evaluate import Validation, evaluate
from parcontrol.training.meta import describe_process, pinned
from parcontrol.training.model import load_start

Record = dict[str, Any]
# What is being measured, blocks done, blocks in all.
OnBatch = Callable[[str, int, int], None]
# Nats per token by which the same model may differ between devices.
_SAME_LOSS = 1e-3


class Revalidator:
    """Measures one finished run after another on the same number of validation tokens.

    A run's final model and its backbone are measured as at the end of the run: in the same types, in batches of the
    same size. Runs that start from the same backbone share its measurement.
    """

    def __init__(
        self, tokens: int, device: str | None = None, on_batch: OnBatch = lambda what, done, total: None
    ) -> None:
        """Prepares; nothing is read yet.

        Args:
            tokens: Size of the validation set, as `data.validation_tokens`.
            device: Where to compute; None takes the first there is of cuda, mps and cpu.
            on_batch: Called before each batch.

        Raises:
            ValueError: The device is unknown or not there.
        """
        self.tokens, self.device, self.on_batch = tokens, choose_device(device), on_batch
        self._backbones: dict[tuple[Any, ...], Validation] = {}
        disable_progress_bar()  # of transformers: it would tear the display of the caller

    def check(self, run: RunDirectory) -> None:
        """Says what can be said before anything is loaded.

        Raises:
            ValueError: The run was measured on more tokens while it trained, or its final model is not there.
        """
        if not run.final_dir.is_dir():
            raise ValueError(f"{run.path} cannot be measured again: its model is not there ({run.final_dir})")
        before = run.read_meta()["validation_tokens"]
        if self.tokens < before:
            raise ValueError(
                f"{self.tokens} validation tokens are too few: {run.path} was measured on {before} while it trained"
            )

    def measure(self, run: RunDirectory) -> Record:
        """Measures a run and writes `revalidation/` beside its result, which stays as it is.

        A run that has been measured on as many tokens is not measured again.

        Args:
            run: A finished run, opened by `RunDirectory.open_finished`.

        Returns:
            The record: losses in nats per predicted token, what they were measured on and with.

        Raises:
            ValueError: The run was measured on more tokens while it trained; the validation split is too short, or it,
                the backbone or the final model are not those that the run was measured with, or cannot be loaded.
            NonFiniteError: A loss is NaN or infinite.
            OutOfMemoryError: A batch of the run's size does not fit on the device.
        """
        before = run.read_revalidation()
        if before is not None and before["validation_tokens"] == self.tokens:
            return before
        self.check(run)
        try:
            return self._measure(run)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"out of memory on {self.device} ({first_line(error)}); measure on another device, or free memory there"
            ) from error

    def _measure(self, run: RunDirectory) -> Record:
        config, meta = run.read_config(), run.read_meta()
        precision = self._precision(meta)
        as_saved = replace(precision, backbone=precision.compute)
        model, tokenizer = load_backbone(str(run.final_dir), dtype=as_saved.compute, device=as_saved.device)
        validation = self._validation_set(run, config, meta, tokenizer)
        backbone = self._backbone(config, meta, precision, validation)
        final = self._evaluate("model", model, validation, as_saved, config)
        _refuse_other_losses(run, backbone, final)
        record = {
            "run_id": meta["run_id"],
            "validation_tokens": self.tokens,
            "validation_documents": validation.documents,
            "validation_predicted_tokens": int(final.tokens.sum()),
            "validation_sha256": validation.sha256,
            "backbone_validation_loss": backbone.loss,
            "backbone_validation_perplexity": backbone.perplexity,
            "final_validation_loss": final.loss,
            "final_validation_perplexity": final.perplexity,
            "process": describe_process(precision, run.read_result()["steps"]),
        }
        with run.writing_revalidation(record) as documents:
            write_documents(documents, backbone, final)
        return record

    def _precision(self, meta: Record) -> Precision:
        """The types of the run, on the device of now."""
        process = meta["processes"][-1]
        return Precision(
            self.device, getattr(torch, process["backbone_dtype"]), getattr(torch, process["compute_dtype"])
        )

    def _validation_set(
        self, run: RunDirectory, config: RunConfig, meta: Record, tokenizer: PreTrainedTokenizerBase
    ) -> ValidationSet:
        """The longer set; it begins with the one that the run was measured on."""
        data = pinned(config.data, meta)
        _refuse_other(run, "tokenizer_sha256", meta, tokenizer_sha256(tokenizer))
        load = partial(load_validation, open_corpus(data), tokenizer, sequence_length=data.sequence_length)
        _refuse_other(run, "validation_sha256", meta, load(tokens=meta["validation_tokens"]).sha256)
        return load(tokens=self.tokens)

    def _backbone(self, config: RunConfig, meta: Record, precision: Precision, validation: ValidationSet) -> Validation:
        batch = config.training.microbatch_size
        source = (config.training.init_from or config.model.name, meta["model_revision"], config.data.mirror)
        key = (*source, precision, validation.sha256, batch)
        if key not in self._backbones:
            start = load_start(config, precision, meta)
            self._backbones[key] = self._evaluate("backbone", start.backbone, validation, precision, config)
        return self._backbones[key]

    def _evaluate(
        self, what: str, model: PreTrainedModel, validation: ValidationSet, precision: Precision, config: RunConfig
    ) -> Validation:
        return evaluate(
            model,
            validation,
            precision,
            batch_size=config.training.microbatch_size,
            on_batch=lambda done, total: self.on_batch(what, done, total),
        )


def _refuse_other(run: RunDirectory, key: str, recorded: Record, found: str) -> None:
    if recorded[key] != found:
        raise ValueError(f"{run.path} cannot be measured again: its {key} was {recorded[key]!r} and is {found!r} now")


def _refuse_other_losses(run: RunDirectory, backbone: Validation, final: Validation) -> None:
    """Compares with what the run measured itself, on the documents that were whole in its shorter set."""
    with np.load(run.validation_documents_path, allow_pickle=False) as before:
        tokens = before["tokens"]
        whole = tokens == final.tokens[: len(tokens)]
        for what, was, now in (
            ("backbone", before["backbone_loss_sum"], backbone.loss_sum),
            ("final model", before["loss_sum"], final.loss_sum),
        ):
            apart = (now[: len(tokens)] - was)[whole].sum()
            if abs(apart) > _SAME_LOSS * tokens[whole].sum():
                raise ValueError(
                    f"{run.path} cannot be measured again: its {what} is another one now, whose loss on the same "
                    f"documents differs by {apart / tokens[whole].sum():+.4f} nats per token"
                )
