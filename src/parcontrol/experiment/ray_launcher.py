"""Runs on a Ray cluster: the same processes, each held by an actor that holds its resources.

The cluster's nodes share the sweep's working directory and have parcontrol installed; what the
sweep knows of a run it reads from the run directory, as it does locally.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parcontrol.experiment.launch import (
    TRAIN_MODULE,
    ChildProcess,
    LostRunError,
    command_line,
    console_path,
)
from parcontrol.experiment.plan import PlannedRun


class RayLauncher:
    """Starts runs on a Ray cluster, as many at a time as it has room for.

    The cluster is the one that RAY_ADDRESS names or that runs on this machine; without either, one
    is started here and stopped at the end.
    """

    parallel: int | None = None

    def __init__(self, resources: Mapping[str, float] | None = None, module: str = TRAIN_MODULE) -> None:
        """Connects to the cluster.

        Args:
            resources: What each run takes, in Ray's names (`GPU`, `CPU`, or the cluster's own). None
                means one GPU where the cluster has any and the run may use it, else one CPU.
            module: Started for each run; it takes the flags of `parcontrol train`.

        Raises:
            ValueError: Ray is not installed, or no node of the cluster has these resources.
        """
        ray = self._ray = _import_ray()
        if not ray.is_initialized():
            ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
        self.resources, self.module = resources, module
        if resources:
            _check_room(resources, ray.nodes())

    def start(self, run: PlannedRun) -> RayRun:
        """Queues a run until its resources are free."""
        resources = self.resources or self._default_resources(run)
        arguments = (self.module, command_line(run.config), console_path(run), Path.cwd())
        others = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
        actor = self._ray.remote(ChildProcess).options(
            num_cpus=resources.get("CPU", 0), num_gpus=resources.get("GPU", 0), resources=others
        )
        return RayRun(self._ray, actor.remote(*arguments))

    def close(self) -> None:
        """Leaves the cluster; one that was started for this sweep ends."""
        self._ray.shutdown()

    def _default_resources(self, run: PlannedRun) -> dict[str, float]:
        wants_gpu = (run.config.training.device or "cuda").startswith("cuda")
        return {"GPU": 1} if wants_gpu and self._ray.cluster_resources().get("GPU") else {"CPU": 1}


class RayRun:
    """A run on the cluster; while it is queued it polls as running."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor = ray, actor
        self._answer = actor.poll.remote()
        self._has_started = False

    def poll(self) -> int | None:
        """Returns None while the run is queued or goes on, then its exit code.

        Raises:
            LostRunError: The actor is gone, with its node perhaps, or could not be made there.
        """
        ready, _ = self._ray.wait([self._answer], timeout=0)
        if not ready:
            return None
        try:
            exit_code: int | None = self._ray.get(self._answer)
        except self._ray.exceptions.RayError as error:
            raise LostRunError(f"Ray lost the run: {' '.join(str(error).split())}") from error
        self._has_started = True
        if exit_code is None:
            self._answer = self._actor.poll.remote()
        else:
            self._ray.kill(self._actor)  # gives its resources back
        return exit_code

    def send_signal(self, signum: int) -> None:
        """Sends a signal to the run; one that is still queued is taken out of the queue.

        Should it start at that very moment, it ends with the actor that holds it.
        """
        if self._has_started:
            self._actor.send_signal.remote(signum)
        else:
            self._ray.kill(self._actor)


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ValueError("--launcher ray needs Ray, an optional extra: pip install parcontrol[ray]") from error


def _check_room(resources: Mapping[str, float], all_nodes: Sequence[Mapping[str, Any]]) -> None:
    nodes = [node["Resources"] for node in all_nodes if node["Alive"]]
    if not any(all(node.get(name, 0) >= amount for name, amount in resources.items()) for node in nodes):
        asked = ", ".join(f"{name}={amount:g}" for name, amount in resources.items())
        there = "; ".join(_described(node) for node in nodes)
        raise ValueError(f"--ray-resources {asked}: no node of the cluster has that; they have {there}")


def _described(node: Mapping[str, float]) -> str:
    named = {name: amount for name, amount in node.items() if ":" not in name and "memory" not in name}
    return ", ".join(f"{name}={amount:g}" for name, amount in named.items())
