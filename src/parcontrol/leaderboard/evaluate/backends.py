"""Backends by name: the harness's model objects for transformers, for an endpoint, and for dry runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from parcontrol.leaderboard.evaluate.endpoint import open_endpoint
from parcontrol.leaderboard.evaluate.memory import automatic_batch_size
from parcontrol.leaderboard.evaluate.model_spec import Backend, Job


@dataclass
class Evaluated:
    """A model behind the harness's interface.

    Attributes:
        lm: The harness's object.
        about: What results record of it: number of parameters, type of the weights, device, P, base_sha.
        likelihoods: Whether it gives log-likelihoods.
        chat: Whether prompts go through a chat template.
        automatic: Whether the batch size may be halved when memory runs out.
    """

    lm: Any
    about: dict[str, Any] = field(default_factory=dict)
    likelihoods: bool = True
    chat: bool = False
    automatic: bool = False

    def halve_batch(self) -> bool:
        """Halves the batch size; returns False where that is not allowed or not possible."""
        if not self.automatic or self.lm.batch_size_per_gpu == 1:
            return False
        self.lm.batch_size_per_gpu //= 2
        return True


def open_backend(job: Job) -> Evaluated:
    """Loads the model of a job, or reaches its endpoint.

    Raises:
        ModelRefusedError: It cannot be evaluated in this way, with the reason.
        EvaluationError: It cannot be had now.
    """
    return _OPEN[job.spec.backend](job)


def _open_transformers(job: Job) -> Evaluated:
    from lm_eval.models.huggingface import HFLM

    from parcontrol.leaderboard.evaluate.load import best_device, load

    device = best_device(job.device)
    loaded = load(job.spec, device)
    # Given objects, the harness loads nothing itself: it would take one revision for base and adapter alike, and add
    # a delta twice to tensors that have two names.
    lm = HFLM(
        pretrained=loaded.model,
        tokenizer=loaded.tokenizer,
        backend="seq2seq" if loaded.encoder_decoder else "causal",
        batch_size=1 if job.batch_size == "auto" else job.batch_size,
    )
    if job.batch_size == "auto":
        lm.batch_size_per_gpu = automatic_batch_size(lm)
    about = {
        "params": loaded.parameters,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device": str(device),
        "P": loaded.streams,
        "base_sha": loaded.base_sha,
    }
    return Evaluated(lm, about, chat=job.spec.chat_template, automatic=job.batch_size == "auto")


def _open_endpoint(job: Job) -> Evaluated:
    endpoint = open_endpoint(job)
    return Evaluated(endpoint.lm, likelihoods=endpoint.likelihoods, chat=endpoint.chat)


def _open_dummy(job: Job) -> Evaluated:
    """The harness's dummy answers at random and has no tokenizer, so a chat template means nothing to it."""
    from lm_eval.models.dummy import DummyLM

    return Evaluated(DummyLM())


_OPEN: dict[Backend, Callable[[Job], Evaluated]] = {
    "hf": _open_transformers,
    "openai": _open_endpoint,
    "dummy": _open_dummy,
}
