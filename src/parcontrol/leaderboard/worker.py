"""The worker: takes requests from the queue, has them evaluated in a process of their own, and publishes results.

What becomes of a request:

- All its tasks have results, or some have and the others say why not: FINISHED.
- The model cannot be evaluated as asked for, or a task does not exist: FAILED at once, with the reason.
- The evaluation breaks off (it is killed, memory runs out, the model cannot be reached), every task fails, or anything
  goes wrong that nobody thought of: an attempt; FAILED after the last one. Other requests come before the next attempt.
- A task takes longer than it may: it fails with that reason, and the others go on in a new process.
- The worker is told to end: what is finished is published, the claim is given back, and the attempt is not counted.
- The machine is at fault (its disk is full, it has no more open files): the same, and the worker ends.
- The worker is killed: its lease expires, and whoever claims the request next does only the tasks without result.

Every finished task is on this machine's disk before the next one begins, and is published when the request ends. What
a killed worker left there is published when the next one starts here.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from parcontrol.leaderboard.evaluate import spool
from parcontrol.leaderboard.evaluate.child import EvaluationProcess, JobFailedError
from parcontrol.leaderboard.evaluate.errors import MachineError, machine_fault, machine_faults_named
from parcontrol.leaderboard.evaluate.model_spec import DEFAULT_TASK_SECONDS, Conditions, Job, ModelSpec
from parcontrol.leaderboard.evaluate.remote_code import RemoteCode, guest
from parcontrol.leaderboard.progress import ModelProgress, Progress
from parcontrol.leaderboard.publish import publish, published_tasks, summary
from parcontrol.leaderboard.queue import Claim, ClaimLostError, Queue
from parcontrol.leaderboard.records import Request
from parcontrol.leaderboard.registry import TaskSpec, select
from parcontrol.leaderboard.result_file import FUTURE_SECONDS
from parcontrol.leaderboard.store import Store, StoreError

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2  # how soon a worker that is told to end, or has lost its claim, notices
_SECONDS_BETWEEN_LOOKS = 10.0  # at an empty queue
_SECONDS_UNTIL_FREE = 30.0  # before a request is tried again whose model another process here works on


class StoppedError(Exception):
    """The worker was told to end."""


class TimeLimitError(Exception):
    """What the evaluating process was at took longer than it may; the process is ended.

    Attributes:
        task: The task, None if it had not begun with any.
        reason: What is to be said of it.
    """

    def __init__(self, task: str | None, seconds: float) -> None:
        self.task = task
        self.reason = f"{task or 'loading the model'} was not finished within {seconds:,.6g} s"
        super().__init__(self.reason)


class BusyError(Exception):
    """Another process on this machine evaluates this model."""


@dataclass(frozen=True)
class Settings:
    """How a worker evaluates.

    Attributes:
        tasks: The tasks that it does.
        conditions: What results depend on.
        batch_size: Rows at a time, or `auto`.
        device: Such as `cuda:0`; None takes the best there is.
        mirror: Offline mirror of the Hub.
        instruction_file: Text that replaces the judge instruction.
        force: Whether tasks are evaluated that have a result.
        task_seconds: How long a task may take, and loading the model, and scoring a task's answers.
    """

    tasks: tuple[TaskSpec, ...]
    conditions: Conditions = field(default_factory=Conditions)
    batch_size: int | Literal["auto"] = "auto"
    device: str | None = None
    mirror: str | None = None
    instruction_file: str | None = None
    force: bool = False
    task_seconds: float = DEFAULT_TASK_SECONDS


@dataclass
class Outcome:
    """What became of one model.

    Attributes:
        done: Tasks that were evaluated now.
        there: Tasks that had a result before.
        failed: Tasks that have none, with the reason.
        paths: Files that were published.
    """

    done: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)


class Worker:
    """Evaluates models, one after the other.

    Args:
        results: The results repository.
        directory: Where this machine's workers keep their spool, homes and logs.
        settings: How to evaluate.
        remote_code: Which models may bring their own code.
        progress: Shows what happens.
    """

    def __init__(
        self,
        results: Store,
        directory: Path,
        settings: Settings,
        remote_code: RemoteCode | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.stop = threading.Event()
        self._results = results
        self._spool = directory / "spool"
        self._home = directory / "home"  # of all evaluating processes here: it holds what they download
        self._log = directory / "logs" / f"{self.id}.evaluation.log"
        self._settings = settings
        self._remote_code = remote_code or RemoteCode()
        self._progress = progress or Progress()
        self._process: EvaluationProcess | None = None
        self._crashed: dict[ModelSpec, set[str]] = {}

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.stop()

    # --- the queue ---

    def drain(
        self,
        queue: Queue,
        *,
        once: bool = False,
        watch: bool = False,
        find_sha: Callable[[Request], str] | None = None,
    ) -> int:
        """Evaluates requests, the oldest first, until none is waiting, and returns how many were finished.

        A request that fails and has attempts left is tried again after the others.

        Args:
            queue: The queue.
            once: Whether to end after one request.
            watch: Whether to wait for more when none is left.
            find_sha: Returns the commit of an old request, which names none; ValueError if there is none. Without it
                such requests fail.

        Raises:
            StoreError: A repository could not be reached, after all retries. Results that are not published yet stay
                in the spool, and the next worker here publishes them.
            MachineError: This machine cannot evaluate now; the request is given back.
        """
        with machine_faults_named():
            self.publish_leftovers()
            self.start()
        finished, busy = 0, _Skipped()
        failed: set[tuple[Any, ...]] = set()

        def accept(request: Request) -> bool:
            return request.key not in failed and busy.allows(request) and self._is_for_us(request)

        while not self.stop.is_set():
            claim = queue.claim(self.id, accept)
            if claim:
                match self._work_on(queue, claim, find_sha or _no_sha):
                    case Outcome():
                        finished += 1
                    case JobFailedError():
                        failed.add(claim.request.key)
                    case BusyError():
                        busy.add(claim)
                if once:
                    break
            elif failed:
                failed.clear()
            elif watch:
                self.stop.wait(_SECONDS_BETWEEN_LOOKS)
            else:
                logger.info("no request is waiting for this worker")
                break
        return finished

    def _work_on(self, queue: Queue, claim: Claim, find_sha: Callable[[Request], str]) -> Outcome | Exception:
        """Evaluates one request and returns what became of it."""
        request = claim.request
        result: Outcome | Exception
        with _Heartbeat(queue, claim) as heartbeat:
            try:
                with machine_faults_named():
                    model, tasks = self._resolved(request, find_sha)
                    outcome = self.evaluate(model, tasks, claim.path, heartbeat.lost.is_set)
                result = outcome if outcome.done or outcome.there else _all_failed(outcome)
            except (StoppedError, BusyError, ClaimLostError, JobFailedError) as error:
                result = error
            except (StoreError, MachineError):
                heartbeat.stop()
                if self._process:
                    self._process.stop()  # which also makes room: it may be why there are no more open files
                self._give_back(queue, claim)
                raise
            except Exception as error:  # one request must not keep the others from being done
                logger.exception("%s: unexpected error", request.model)
                if self._process:
                    self._process.stop()  # it may still be at it
                result = JobFailedError(f"unexpected error: {error!r}")
        try:
            self._settle(queue, claim, result)
        except ClaimLostError as error:
            logger.warning("%s", error)
            return error
        return result

    def _settle(self, queue: Queue, claim: Claim, result: Outcome | Exception) -> None:
        name = claim.request.model
        match result:
            case Outcome():
                queue.finish(claim)
            case JobFailedError():
                logger.error("%s: %s", name, result)
                queue.fail(claim, str(result), final=result.final)
            case ClaimLostError():
                logger.warning("%s: the claim is lost; another worker has it, or it was cancelled", name)
            case _:
                queue.release(claim)

    def _give_back(self, queue: Queue, claim: Claim) -> None:
        try:
            queue.release(claim)
        except (StoreError, ClaimLostError) as error:
            logger.warning("the claim on %s could not be given back: %s", claim.path, error)

    def _is_for_us(self, request: Request) -> bool:
        try:
            return bool(self._tasks_of(request))
        except ValueError:
            return True  # it is taken to be failed, with the reason

    def _tasks_of(self, request: Request) -> list[str]:
        wanted = None if request.tasks is None else select(request.tasks)
        return [spec.name for spec in self._settings.tasks if wanted is None or spec in wanted]

    def _resolved(self, request: Request, find_sha: Callable[[Request], str]) -> tuple[ModelSpec, list[str]]:
        try:
            tasks = self._tasks_of(request)
            return request_spec(request, request.sha or find_sha(request)), tasks
        except ValueError as error:
            raise JobFailedError(str(error), final=True) from error
        except StoreError as error:  # the model, not a repository of the board, cannot be reached
            raise JobFailedError(str(error)) from error

    # --- one model ---

    def evaluate(
        self,
        model: ModelSpec,
        tasks: Sequence[str],
        request: str | None = None,
        lost: Callable[[], bool] = lambda: False,
    ) -> Outcome:
        """Evaluates the missing tasks of one model and publishes them.

        Args:
            model: The model.
            tasks: Names of the tasks that are wanted.
            request: Path of the request, None for a direct evaluation.
            lost: Says whether the claim was lost, so that the evaluation shall end.

        Raises:
            StoppedError: The worker was told to end; what was finished is published.
            ClaimLostError: The claim was lost; what was finished is published.
            BusyError: Another process on this machine works on this model.
            JobFailedError: The evaluation broke off; what was finished is published.
            MachineError: This machine cannot evaluate, or its clock is wrong; what was finished is published.
            StoreError: The results could not be published; they are kept in the spool.
        """
        self._check_clock()
        directory = self._spool / model.directory_name
        with spool.locked(directory) as held:
            if not held:
                raise BusyError(model.model)
            outcome = Outcome()
            spool.set_broken_aside(directory)
            self._publish(directory, outcome)
            there = published_tasks(self._results, model, self._settings.conditions)
            outcome.there = [task for task in tasks if task in there and not self._again(there[task], request)]
            missing = [task for task in tasks if task not in outcome.there]
            try:
                while missing:
                    missing = self._run(model, missing, directory, request, lost, outcome)
            finally:
                self._publish(directory, outcome)
        return outcome

    def _check_clock(self) -> None:
        """Refuses to evaluate by a clock whose results would be set aside, or lose to older ones."""
        ahead = time.time() - self._results.now()
        if abs(ahead) > FUTURE_SECONDS:
            days = f"{abs(ahead) / 86400:.1f} days {'ahead of' if ahead > 0 else 'behind'}"
            raise MachineError(f"its clock is {days} that of {self._results!r}, and results would have wrong dates")

    def _again(self, block: dict[str, Any], request: str | None) -> bool:
        """Whether a task with this result is to be evaluated again; not if the result is of this worker and request."""
        ours = block.get("worker") == self.id and block.get("request") == request
        return self._settings.force and not ours

    def _run(
        self,
        model: ModelSpec,
        tasks: Sequence[str],
        directory: Path,
        request: str | None,
        lost: Callable[[], bool],
        outcome: Outcome,
    ) -> list[str]:
        """Evaluates tasks until one takes longer than it may, and returns those that are left then."""
        crashed = self._crashed.setdefault(model, set())
        settings = self._settings
        job = Job(
            spec=replace(model, backend=settings.conditions.backend, remote_code=self._remote_code.allows(model)),
            conditions=settings.conditions,
            tasks=tuple(sorted(tasks, key=lambda task: task in crashed)),  # what crashed before comes last
            out=str(directory),
            batch_size=settings.batch_size,
            device=settings.device,
            mirror=settings.mirror,
            instruction_file=settings.instruction_file,
            request=request,
            worker=self.id,
            forced=settings.force,
            endpoint_key=os.environ.get("OPENAI_API_KEY") if settings.conditions.backend == "openai" else None,
        )
        left: list[str] = []
        with self._progress.model(model, len(tasks)) as shown:
            try:
                with self._process_for(job) as (process, order, adopt):
                    for event in self._events(process, {"evaluate": order.to_dict()}, lost):
                        shown.event(event)
                        match event["event"]:
                            case "task":
                                crashed.add(event["task"])
                            case "done":
                                adopt(event["task"])
                                crashed.discard(event["task"])
                                outcome.done.append(event["task"])
                            case "refused":
                                crashed.discard(event["task"])
                                outcome.failed[event["task"]] = event["reason"]
            except TimeLimitError as error:
                if error.task is None:
                    raise JobFailedError(error.reason) from error
                logger.error("%s: %s", model.model, error)
                outcome.failed[error.task] = error.reason
                left = [task for task in job.tasks if task not in outcome.done and task not in outcome.failed]
            if not left:
                self._score(directory, outcome, lost, shown)
        return left

    def _score(self, directory: Path, outcome: Outcome, lost: Callable[[], bool], shown: ModelProgress) -> None:
        """Fills in the metrics that need models of their own; one that cannot be had leaves its metric absent."""
        later = {spec.name: spec.scored_later for spec in self._settings.tasks if spec.scored_later}
        for task in (task for task in outcome.done if task in later):
            shown.event({"event": "task", "task": f"scoring {task}"})
            absent: dict[str, str] = {}
            try:
                for event in self._events(self.start(), {"score": str(directory / task)}, lost):
                    absent |= event.get("absent", {})
            except (JobFailedError, MachineError, TimeLimitError) as error:
                absent = spool.mark_absent(directory / task, later[task], str(error))
            for metric, reason in absent.items():
                logger.warning("%s has no %s: %s", task, metric, reason)

    def _events(
        self, process: EvaluationProcess, order: dict[str, Any], lost: Callable[[], bool]
    ) -> Iterator[dict[str, Any]]:
        """Yields events; ends the process when the worker is to end, has lost its claim, or a task takes too long."""
        limit = self._settings.task_seconds
        task, began = None, time.monotonic()
        for event in process.perform(order, _POLL_SECONDS):
            if self.stop.is_set() or lost():
                process.stop()
                raise StoppedError if self.stop.is_set() else ClaimLostError
            if not process.ready:
                began = time.monotonic()
            kind = event["event"] if event else "progress"
            if event and kind == "task" and event["task"] != task:  # the same again: with a smaller batch
                task, began = event["task"], time.monotonic()
            elif kind == "progress" and time.monotonic() - began > limit:
                process.stop()
                raise TimeLimitError(task, limit)
            if event:
                yield event

    # --- the process ---

    @contextmanager
    def _process_for(self, job: Job) -> Iterator[tuple[EvaluationProcess, Job, Callable[[str], None]]]:
        """Yields the process for a job, the job as that process gets it, and what takes a finished task over."""
        if job.spec.remote_code:
            with guest(job, self._remote_code.user, self._log) as visit:
                yield visit.process, visit.job, visit.adopt
        else:
            yield self.start(), job, lambda task: None

    def start(self) -> EvaluationProcess:
        """Starts the evaluating process if none runs, and returns it; it imports its libraries in the background."""
        if self._process is None or not self._process.alive:
            self._process = EvaluationProcess(self._home, self._log, self._settings.conditions.backend)
        return self._process

    # --- publishing ---

    def publish_leftovers(self) -> None:
        """Publishes what earlier workers on this machine finished and did not publish.

        Raises:
            StoreError: The store could not be written; everything stays in the spool.
        """
        for directory in spool.model_directories(self._spool):
            with spool.locked(directory) as held:
                if not held:
                    continue
                spool.set_broken_aside(directory)
                try:
                    self._publish(directory, Outcome())
                except StoreError:
                    raise
                except Exception as error:  # what one model left must not keep the others from being done
                    if machine_fault(error):
                        raise
                    logger.exception("%s cannot be published, and stays where it is", directory)

    def _publish(self, directory: Path, outcome: Outcome) -> None:
        finished = list(spool.finished_tasks(directory).values())
        if not finished:
            return
        try:
            published = publish(self._results, finished, outcome.failed)
        except StoreError:
            logger.error("%d results are not published; they are kept in %s", len(finished), directory)
            raise
        for task in published.taken:
            logger.info("%s: another worker has published %s meanwhile", finished[0].block["model"], task)
        if published.tasks:
            results = [path for path in published.paths if path.endswith(".json")]
            for one in finished:
                for line in summary(one):
                    logger.info("%s", line)
            logger.info("published %s in %s", ", ".join(published.tasks), ", ".join(results))
        outcome.paths += published.paths
        spool.remove(finished)


def _all_failed(outcome: Outcome) -> JobFailedError:
    reasons = "; ".join(f"{task}: {reason}" for task, reason in outcome.failed.items())
    return JobFailedError(f"every task failed: {reasons}")


def _no_sha(request: Request) -> str:
    raise ValueError(f"the request for {request.model} names no commit")


def request_spec(request: Request, sha: str) -> ModelSpec:
    """Returns what a request asks to be loaded, at a commit."""
    return ModelSpec(
        model=request.model,
        sha=sha,
        path=request.model_path,
        revision=request.revision,
        precision=str(request.precision),
        weight_type=str(request.weight_type),
        base_model=request.base_model,
        chat_template=request.chat_template,
        model_type=str(request.model_type),
        license=request.license,
    )


class _Skipped:
    """Requests that are left alone for a while."""

    def __init__(self) -> None:
        self._until: dict[tuple[Any, ...], float] = {}

    def add(self, claim: Claim) -> None:
        self._until[claim.request.key] = time.monotonic() + _SECONDS_UNTIL_FREE

    def allows(self, request: Request) -> bool:
        return self._until.get(request.key, 0.0) <= time.monotonic()


class _Heartbeat:
    """Renews a claim at half of its lease, from a thread that has the queue to itself until the block ends."""

    def __init__(self, queue: Queue, claim: Claim) -> None:
        self.lost = threading.Event()
        self._queue, self._claim = queue, claim
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="parcontrol-heartbeat", daemon=True)

    def __enter__(self) -> _Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the thread, if it has not ended yet."""
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        half, soon = self._queue.lease.total_seconds() / 2, self._queue.lease.total_seconds() / 16
        wait = half
        while not self._ended.wait(wait):
            try:
                self._claim = self._queue.renew(self._claim)
                wait = half
            except ClaimLostError:
                self.lost.set()
                return
            except (StoreError, OSError) as error:
                # Nothing is lost yet: the claim stands until somebody else takes it, and then renewing says so.
                logger.warning("the lease on %s could not be renewed: %s", self._claim.path, error)
                wait = soon
