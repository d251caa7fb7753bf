"""The composition root: what a run is made of, put together in one place."""

from __future__ import annotations

from typing import Any

from transformers.utils.logging import disable_progress_bar

from parcontrol.config import RunConfig
from parcontrol.data import TrainStream, load_validation, open_corpus
from parcontrol.logging_setup import setup_logging
from parcontrol.runs import RunDirectory
from parcontrol.training.callbacks import MemoryWatch, build_callbacks
from parcontrol.training.checkpoint import Checkpoint
from parcontrol.training.compiling import check_compiler
from parcontrol.training.device import choose_precision
from parcontrol.training.failures import explained, steps_explained
from parcontrol.training.finish import finish
from parcontrol.training.fitting import MemoryPlan
from parcontrol.training.loop import TrainingLoop
from parcontrol.training.meta import pinned, recorded_meta, write_meta
from parcontrol.training.model import build_model, load_start, measure_backbone
from parcontrol.training.signals import deferred_signals


def run(config: RunConfig, resume: bool = True) -> dict[str, Any]:
    """Trains one run, or continues it, or returns the result of a finished one.

    Args:
        config: The run; `config.run_directory` is where it goes.
        resume: Whether a run that is already there may be continued.

    Returns:
        The content of result.json.

    Raises:
        ValueError: What was asked for cannot be done; nothing has been trained.
        RunStoppedError: The run cannot go on (see its kinds in `errors`).
        Interrupted: SIGINT or SIGTERM; a checkpoint has been written.
    """
    with (
        explained(config, RunDirectory(config.run_directory)),
        RunDirectory.open_for_training(config, resume) as directory,
    ):
        if directory.finished:
            return directory.read_result()
        setup_logging(config.logging.level, config.logging.directory, directory.path.name)
        disable_progress_bar()  # of transformers: bars for a second of loading would tear the display
        return _train(config, directory)


def _train(config: RunConfig, directory: RunDirectory) -> dict[str, Any]:
    precision = choose_precision(config.training)
    check_compiler(config.training, precision.device)
    checkpoint = Checkpoint.newest(directory)
    directory.truncate_after(checkpoint.boundary.step if checkpoint else -1)
    before = recorded_meta(directory, resuming=checkpoint is not None)
    memory = MemoryWatch(precision.device)

    data = pinned(config.data, before)
    corpus = open_corpus(data)
    start = load_start(config, precision, before)
    validation = load_validation(
        corpus, start.tokenizer, sequence_length=data.sequence_length, tokens=data.validation_tokens
    )
    backbone = measure_backbone(config, directory, start, validation, precision, resuming=bool(before))
    model = build_model(config, start, corpus)
    plan = MemoryPlan.make(config, model, precision, before)
    with (
        TrainStream(
            corpus,
            start.tokenizer,
            sequence_length=data.sequence_length,
            seed=data.seed,
            num_workers=data.num_workers,
            state=checkpoint.boundary.data if checkpoint else None,
        ) as stream,
        deferred_signals() as check_interrupt,
    ):
        callbacks = build_callbacks(config, directory, stream, validation, memory)
        with TrainingLoop(config, model, stream, precision, callbacks, check_interrupt, plan.streams_per_pass) as loop:
            if checkpoint:
                checkpoint.restore(loop)
            write_meta(directory, before, loop, corpus, start, validation)
            with steps_explained(config, plan):
                loop.run()
            return finish(directory, loop, start.tokenizer, validation, backbone, memory)
