"""`parcontrol leaderboard worker` and leaderboard/backend-cli.py: evaluate the models in the queue, or one directly."""

from __future__ import annotations

import argparse
import hashlib
import logging
import math
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from parcontrol.cli.parser import INTERRUPTED, USAGE_ERROR, OneLineParser, print_error
from parcontrol.leaderboard.evaluate.errors import MachineError, machine_faults_named
from parcontrol.leaderboard.evaluate.model_spec import (
    BACKENDS,
    DEFAULT_SEED,
    DEFAULT_TASK_SECONDS,
    Conditions,
    ModelSpec,
)
from parcontrol.leaderboard.records import Precision, Request, WeightType
from parcontrol.leaderboard.registry import ALL, DEMO, TaskSpec, select
from parcontrol.leaderboard.settings import Settings

if TYPE_CHECKING:
    from parcontrol.leaderboard.model_source import ModelSource
    from parcontrol.leaderboard.store import Store
    from parcontrol.leaderboard.worker import Worker

FAILED = 1
REMOTE_CODE = "remote_code.yaml"
_MAX_SEED = 2**32 - 1  # NumPy takes no larger one
# Flags that say what is loaded; requests in the queue say so themselves.
_DIRECT = ("revision", "precision", "weight_type", "base_model", "chat_template", "base_url", "tokenizer")

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates the models in the queue, or one directly.

    Returns:
        0 when it is done; 1 when the model that was named could not be evaluated, or not on all tasks, a repository was
        out of reach, or this machine cannot evaluate now; 2 when nothing was started because of what the user gave; 130
        when a direct evaluation was interrupted. Errors are one line on stderr.
    """
    args = _parser().parse_args(argv)
    args.tasks = [name for text in args.tasks for name in text.split(",") if name]
    try:
        _check(args)
        settings = Settings.from_environment()
        if args.backend == "dummy" and settings.on_hub and settings.endpoint is None:
            raise ValueError("backend 'dummy' answers at random; its results are not published on the public Hub")
        with machine_faults_named():
            return _run(args, settings)
    except MachineError as error:
        print_error(error)
        return FAILED
    except ValueError as error:
        print_error(error)
        return USAGE_ERROR


def _run(args: argparse.Namespace, settings: Settings) -> int:
    from parcontrol.leaderboard.evaluate.remote_code import RemoteCode
    from parcontrol.leaderboard.store import StoreError, open_stores
    from parcontrol.leaderboard.worker import Worker
    from parcontrol.logging_setup import setup_logging

    directory = settings.root / "worker"
    stores = open_stores(settings)
    remote_code = RemoteCode.read(settings.root / REMOTE_CODE)
    with Worker(stores.results, directory, _evaluation(args, settings), remote_code) as worker, _signals(worker):
        setup_logging("INFO", directory / "logs", worker.id)
        where = f"{settings.endpoint or 'the Hub'}: {settings.queue_repo}" if settings.on_hub else str(settings.root)
        logger.info("worker %s on %s", worker.id, where)
        try:
            if args.model is not None:
                return _evaluate_directly(worker, args, settings)
            return _drain(worker, stores.requests, args, settings)
        except StoreError as error:
            print_error(error)
            return FAILED


def _drain(worker: Worker, requests: Store, args: argparse.Namespace, settings: Settings) -> int:
    from parcontrol.leaderboard.model_source import find_model
    from parcontrol.leaderboard.queue import Queue

    def find_sha(request: Request) -> str:
        return find_model(request.model, request.revision, settings).sha

    finished = worker.drain(Queue(requests), once=args.once, watch=args.watch, find_sha=find_sha)
    logger.info("%d request%s finished", finished, "" if finished == 1 else "s")
    return 0


def _evaluate_directly(worker: Worker, args: argparse.Namespace, settings: Settings) -> int:
    from parcontrol.leaderboard.evaluate.child import JobFailedError
    from parcontrol.leaderboard.worker import BusyError, StoppedError

    worker.start()
    model = _model(args, settings)
    worker.publish_leftovers()
    try:
        outcome = worker.evaluate(model, [task.name for task in _tasks(args)])
    except StoppedError:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BusyError:
        print_error(ValueError(f"another process on this machine evaluates {model.model} at this commit"))
        return FAILED
    except JobFailedError as error:
        print_error(error)
        return FAILED
    if outcome.there:
        logger.info("%s: there are results already; --force evaluates again", ", ".join(outcome.there))
    return FAILED if outcome.failed else 0


def _evaluation(args: argparse.Namespace, settings: Settings) -> Any:
    from parcontrol.leaderboard.worker import Settings as Evaluation

    instruction = _instruction(args)
    return Evaluation(
        tasks=tuple(_tasks(args)),
        conditions=Conditions(
            limit=args.limit,
            sample_set=DEMO in args.tasks,
            instruction_sha256=hashlib.sha256(instruction.encode()).hexdigest() if instruction else None,
            seed=args.seed,
            backend=args.backend,
        ),
        batch_size=args.batch_size,
        device=args.device,
        mirror=str(settings.mirror.absolute()) if settings.mirror else None,
        instruction_file=str(args.instruction_file.absolute()) if args.instruction_file else None,
        force=args.force,
        task_seconds=args.task_timeout,
    )


def _tasks(args: argparse.Namespace) -> list[TaskSpec]:
    return select(args.tasks)


def _instruction(args: argparse.Namespace) -> str | None:
    if args.instruction_file is None:
        return None
    tasks = [task.name for task in _tasks(args)]
    if len(tasks) != 1 or not tasks[0].startswith("halueval_"):
        raise ValueError("--instruction-file is for one HaluEval task: name it with --tasks")
    try:
        text: str = args.instruction_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--instruction-file {args.instruction_file} cannot be read: {error}") from error
    if not text:
        raise ValueError(f"--instruction-file {args.instruction_file} is empty")
    return text


def _model(args: argparse.Namespace, settings: Settings) -> ModelSpec:
    """What --model names, at the commit that it is now.

    Raises:
        ValueError: There is no such model.
        StoreError: The Hub is out of reach.
    """
    from parcontrol.leaderboard.model_source import find_model

    if args.backend != "hf":
        spec = {"backend": args.backend, "base_url": args.base_url, "tokenizer": args.tokenizer}
        return ModelSpec(args.model, args.backend, precision="?", chat_template=bool(args.chat_template), **spec)
    source = find_model(args.model, args.revision or "main", settings)
    weight_type = args.weight_type or WeightType.ORIGINAL
    if (weight_type is WeightType.ORIGINAL) != (args.base_model is None):
        raise ValueError("--base-model goes with --weight-type Delta or Adapter")
    base = find_model(args.base_model, "main", settings) if args.base_model else None
    saved = base if base and weight_type == WeightType.ADAPTER else source
    return ModelSpec(
        model=source.model,
        sha=source.sha,
        path=str(source.directory) if source.by_path else None,
        revision=source.revision,
        precision=args.precision or str(saved.precision()),
        weight_type=str(weight_type),
        base_model=base.model if base else "",
        base_path=str(base.directory) if base and base.by_path else None,
        chat_template=bool(args.chat_template),
        license=_license(source),
    )


def _license(source: ModelSource) -> str:
    """A model that is evaluated without being submitted needs no model card."""
    try:
        return source.license()
    except ValueError:
        return "not stated"


def _check(args: argparse.Namespace) -> None:
    """Refuses flags that do not go together."""
    if DEMO in args.tasks and len(args.tasks) > 1:
        raise ValueError(f"--tasks {DEMO} stands alone: it means all tasks of the sample set")
    given = [f"--{name.replace('_', '-')}" for name in _DIRECT if getattr(args, name) is not None]
    if args.model is None and given:
        raise ValueError(f"{', '.join(given)} go with --model; requests in the queue say themselves what is loaded")
    if args.model is not None and (args.once or args.watch):
        raise ValueError("--once and --watch are for the queue, --model evaluates without it")
    if (args.backend == "openai") != (args.base_url is not None) or (args.backend == "openai" and args.model is None):
        raise ValueError("--backend openai, --base-url and --model go together")
    if args.tokenizer is not None and args.backend != "openai":
        raise ValueError("--tokenizer is for --backend openai; other models bring theirs")


@contextmanager
def _signals(worker: Worker) -> Iterator[None]:
    """SIGTERM and Ctrl-C let the worker publish what is finished and give its claim back."""

    def stop(number: int, _: Any) -> None:
        worker.stop.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="parcontrol leaderboard worker",
        description="Evaluate the requests in the queue, the oldest first, until none is waiting; or, with --model, "
        "one model directly. Results go to the results repository. SIGTERM and Ctrl-C publish what is finished and "
        "give the request back.",
    )
    queue = parser.add_mutually_exclusive_group()
    queue.add_argument("--once", action="store_true", help="end after one request")
    queue.add_argument("--watch", action="store_true", help="wait for more requests when none is left")
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=[ALL],
        metavar="TASK",
        help="tasks or groups (default: all); demo: all tasks on the small sample set that comes with the package",
    )
    parser.add_argument("--limit", type=_positive, metavar="N", help="only the first N rows of each task")
    parser.add_argument(
        "--batch-size", type=_batch_size, default="auto", metavar="N", help="rows at a time (default: what fits)"
    )
    parser.add_argument("--seed", type=_seed, default=DEFAULT_SEED, metavar="N", help="default: %(default)s")
    parser.add_argument("--force", action="store_true", help="evaluate tasks again that have a result")
    parser.add_argument(
        "--task-timeout",
        type=_seconds,
        default=DEFAULT_TASK_SECONDS,
        metavar="SECONDS",
        help="a task that takes longer fails, and the others go on (default: %(default).0f)",
    )
    parser.add_argument("--device", metavar="DEVICE", help="such as cpu, cuda:1 or mps (default: the best there is)")
    parser.add_argument(
        "--instruction-file", type=Path, metavar="FILE", help="text in place of our instruction to a HaluEval judge"
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="hf",
        help="what runs the model: transformers (default), an OpenAI-compatible endpoint, whose key is read from "
        "OPENAI_API_KEY, or a dummy that answers at random, for trying out",
    )
    direct = parser.add_argument_group("one model, without the queue")
    direct.add_argument("--model", metavar="MODEL", help="name on the Hub, or a directory")
    direct.add_argument("--revision", metavar="REVISION", help="branch, tag or commit (default: main)")
    direct.add_argument("--precision", choices=list(map(str, Precision)), help="default: as the weights are saved")
    direct.add_argument("--weight-type", choices=list(map(str, WeightType)), help="default: Original")
    direct.add_argument("--base-model", metavar="MODEL", help="what Delta or Adapter weights belong to")
    direct.add_argument("--chat-template", action="store_const", const=True, help="ask through the chat template")
    direct.add_argument("--base-url", metavar="URL", help="endpoint, ending in /completions or /chat/completions")
    direct.add_argument("--tokenizer", metavar="MODEL", help="the endpoint's tokenizer; log-likelihoods need it")
    return parser


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _batch_size(text: str) -> int | Literal["auto"]:
    return "auto" if text == "auto" else _positive(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) > _MAX_SEED:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to {_MAX_SEED}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
