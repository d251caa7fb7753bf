"""Weights & Biases as one more reader of the records."""

from __future__ import annotations

from typing import Any

from parcontrol.config import RunConfig
from parcontrol.runs import RunDirectory
from parcontrol.training.loop import Callback, Record, TrainingLoop


class WandbCallback(Callback):
    """Sends every record to W&B, online, or into `wandb/` of the run directory without an account.

    A resumed run continues under the same id.
    """

    def __init__(self, config: RunConfig, run: RunDirectory) -> None:
        self.config, self.directory = config, run
        self._run: Any = None

    def on_start(self, loop: TrainingLoop) -> None:
        """Opens the W&B run.

        Raises:
            ValueError: W&B refuses it, for example because nobody is logged in.
        """
        import wandb

        logging = self.config.logging
        try:
            self._run = wandb.init(
                project=logging.wandb_project,
                mode=logging.wandb,
                id=self.directory.read_meta()["run_id"],
                name=self.directory.path.name,
                dir=self.directory.path,
                config=self.config.model_dump(),
                resume="allow",
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            raise ValueError(
                f"logging.wandb: {logging.wandb!r} does not work here ({error}); run `wandb login`, "
                "or use --wandb-offline, which needs no account"
            ) from error

    def on_record(self, kind: str, record: Record) -> None:
        """Logs numbers as `KIND/NAME`; the result becomes the summary."""
        if self._run is None:
            return
        if kind == "result":
            self._run.summary.update(_flat("result", record))
        elif kind != "provenance":
            step = record["step"]
            self._run.log(_flat(kind, record), step=step)

    def on_stop(self, failed: bool) -> None:
        """Closes the W&B run, as finished or failed; what is still on its way is waited for."""
        if self._run is not None:
            self._run.finish(exit_code=int(failed))
            self._run = None


def _flat(name: str, value: Any) -> dict[str, float | str]:
    """Numbers and strings of nested records by path: `streams/mean_weight/0`."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {name: value}
    return {path: leaf for key, child in value.items() for path, leaf in _flat(f"{name}/{key}", child).items()}
