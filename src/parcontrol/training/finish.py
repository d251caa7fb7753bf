"""The end of a run: the model as it is saved, its loss, and the result."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from parcontrol.data import ValidationSet
from parcontrol.runs import RunDirectory, atomic_directory
from parcontrol.training.callbacks import MemoryWatch, recorded_validation, validation_record
from parcontrol.training.device import Precision
from parcontrol.training.documents import write_documents
from parcontrol.training.evaluate import Validation
from parcontrol.training.loop import TrainingLoop
from parcontrol.training.model_card import model_card


def finish(
    run: RunDirectory,
    loop: TrainingLoop,
    tokenizer: PreTrainedTokenizerBase,
    validation: ValidationSet,
    backbone: Validation | None,
    memory: MemoryWatch,
) -> dict[str, Any]:
    """Casts the model to the type it computes in, measures that, saves it, writes the result.

    What is measured is what is loaded: the cast comes before the last validation. result.json is
    written last. All processes call this; rank 0, which has the backbone's validation, writes.

    Returns:
        The result.
    """
    as_saved = Precision(loop.precision.device, loop.precision.compute, loop.precision.compute)
    loop.gather_model(as_saved.compute)
    cast_parameters(loop.model, as_saved.compute)
    final = loop.validate(validation, as_saved)

    def save() -> dict[str, Any]:
        assert backbone is not None, "rank 0 has measured it or read it"
        return _save(run, loop, tokenizer, backbone, final, memory)

    result: dict[str, Any] = loop.processes.of_main(save)
    return result


def _save(
    run: RunDirectory,
    loop: TrainingLoop,
    tokenizer: PreTrainedTokenizerBase,
    backbone: Validation,
    final: Validation,
    memory: MemoryWatch,
) -> dict[str, Any]:
    """Writes the model that was measured, and the result."""
    if recorded_validation(run, loop.step) is None:
        loop.emit("validation", validation_record(final))
    write_documents(run.validation_documents_path, backbone, final)
    result = _result(run, loop, backbone, final, memory)
    with atomic_directory(run.final_dir) as directory:
        loop.model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        card = model_card(loop.config, run.read_meta(), result)
        (directory / "README.md").write_text(card, encoding="utf-8")
    run.write_result(result)
    loop.emit("result", result)
    return result


def cast_parameters(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Casts the parameters alone: buffers such as RoPE's frequencies are computed in float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _result(
    run: RunDirectory,
    loop: TrainingLoop,
    backbone: Validation,
    final: Validation,
    memory: MemoryWatch,
) -> dict[str, Any]:
    initial = recorded_validation(run, 0)
    assert initial is not None, "a run that reached its end has validated its start"
    meta, provenance = run.read_meta(), loop.stream.provenance()
    return {
        "P": loop.config.parscale.P,
        "mode": loop.config.training.mode,
        "steps": loop.step,
        "tokens": loop.tokens,
        "backbone_validation_loss": backbone.loss,
        "backbone_validation_perplexity": backbone.perplexity,
        "initial_validation_loss": initial,
        "initial_validation_perplexity": math.exp(initial),
        "final_validation_loss": final.loss,
        "final_validation_perplexity": final.perplexity,
        "validation_predicted_tokens": int(np.sum(final.tokens)),
        "validation_sha256": meta["validation_sha256"],
        "data_sha256": provenance["sha256"],
        "parameters_trained": meta["parameters_trained"],
        "parameters_total": meta["parameters_total"],
        "seconds": loop.seconds,
        "training_seconds": loop.training_seconds,
        "tokens_per_second": loop.tokens / loop.training_seconds,
        "data_wait_fraction": loop.wait_seconds / loop.training_seconds,
        "peak_memory_bytes": memory.peak_bytes,
        "final_dir": str(run.final_dir),
    }
