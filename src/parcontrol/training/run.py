"""The composition root: what a run is made of, put together in one place."""

from __future__ import annotations

from typing import Any

from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from parcontrol.config import DataConfig, RunConfig
from parcontrol.data import Corpus, TrainStream, load_validation, open_corpus
from parcontrol.logging_setup import setup_logging, silence_logging
from parcontrol.runs import RunDirectory
from parcontrol.training.callbacks import MemoryWatch, build_callbacks
from parcontrol.training.checkpoint import Checkpoint
from parcontrol.training.compiling import check_compiler
from parcontrol.training.device import choose_precision
from parcontrol.training.failures import explained, steps_explained
from parcontrol.training.finish import finish
from parcontrol.training.fitting import MemoryPlan
from parcontrol.training.freed_memory import freed_memory_kept
from parcontrol.training.loop import TrainingLoop
from parcontrol.training.meta import pinned, recorded_meta, write_meta
from parcontrol.training.model import Start, build_model, load_start, measure_backbone
from parcontrol.training.processes import Processes, joined_processes
from parcontrol.training.shared_data import SharedStream, shared_validation
from parcontrol.training.signals import deferred_signals


def run(config: RunConfig, resume: bool = True) -> dict[str, Any]:
    """Trains one run, or continues it, or returns the result of a finished one.

    Under torchrun all processes call this, and train it together.

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
    with explained(config, RunDirectory(config.run_directory)), joined_processes() as processes:
        processes.check_splits(config)
        with _opened(config, resume, processes) as directory:
            result: dict[str, Any] | None = processes.of_main(
                lambda: directory.read_result() if directory.finished else None
            )
            if result is not None:
                return result
            _set_up_logging(config, directory, processes)
            return _train(processes.own_device(config), directory, processes)


def _opened(config: RunConfig, resume: bool, processes: Processes) -> RunDirectory:
    """The run directory: locked and written by rank 0, for the others a name."""
    if processes.main:
        return RunDirectory.open_for_training(config, resume)
    return RunDirectory(config.run_directory)


def _set_up_logging(config: RunConfig, directory: RunDirectory, processes: Processes) -> None:
    if processes.main:
        setup_logging(config.logging.level, config.logging.directory, directory.path.name)
    else:
        silence_logging()
        set_verbosity_error()
    disable_progress_bar()  # of transformers: bars for a second of loading would tear the display


def _train(config: RunConfig, directory: RunDirectory, processes: Processes) -> dict[str, Any]:
    main = processes.main
    precision = choose_precision(config.training)
    check_compiler(config.training, precision.device)
    processes.check_same(config, precision.compute)
    checkpoint = Checkpoint.newest_of_main(directory, processes)
    if main:
        directory.truncate_after(checkpoint.boundary.step if checkpoint else -1)
    before = processes.of_main(lambda: recorded_meta(directory, resuming=checkpoint is not None))
    memory = MemoryWatch(precision.device)

    data = pinned(config.data, before)
    corpus = open_corpus(data) if main else None
    start = load_start(config, precision, before)
    validation = shared_validation(
        load_validation(corpus, start.tokenizer, sequence_length=data.sequence_length, tokens=data.validation_tokens)
        if corpus is not None
        else None,
        processes,
    )
    backbone = measure_backbone(config, directory, start, validation, precision, bool(before), processes)
    model = build_model(config, start, corpus)
    plan = MemoryPlan.make(config, model, precision, before, processes)
    with (
        _open_stream(data, corpus, start, checkpoint, processes) as stream,
        deferred_signals() as check_signals,
    ):
        callbacks = build_callbacks(config, directory, stream, validation, memory, processes)
        check_interrupt = processes.agreed(check_signals)
        with TrainingLoop(
            config, model, stream, precision, callbacks, check_interrupt, plan.streams_per_pass, processes
        ) as loop:
            if checkpoint:
                checkpoint.restore(loop)
            if corpus is not None:
                write_meta(directory, before, loop, corpus, start, validation)
            with steps_explained(config, plan), freed_memory_kept(precision.device):
                loop.run()
            return finish(directory, loop, start.tokenizer, validation, backbone, memory)


def _open_stream(
    data: DataConfig, corpus: Corpus | None, start: Start, checkpoint: Checkpoint | None, processes: Processes
) -> TrainStream | SharedStream:
    """The training data from where the checkpoint is, read by rank 0."""
    if corpus is None:
        return SharedStream(None, processes, data.sequence_length)
    stream = TrainStream(
        corpus,
        start.tokenizer,
        sequence_length=data.sequence_length,
        seed=data.seed,
        num_workers=data.num_workers,
        state=checkpoint.boundary.data if checkpoint else None,
    )
    return stream if processes.size == 1 else SharedStream(stream, processes, data.sequence_length)
