"""The command `parcontrol`: hands over to the command that is named first."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from parcontrol.cli.commands import Command, dispatch

COMMANDS = {
    "train": Command("parcontrol.cli.train", "train one run"),
    "experiment": Command("parcontrol.cli.experiment", "train several P, and seeds, on equal tokens"),
    "report": Command("parcontrol.cli.report", "compare the runs of experiments in one report"),
    "validate": Command("parcontrol.cli.validate", "measure finished runs again, on more text"),
    "data": Command("parcontrol.cli.data", "check what a run was trained on"),
    "streams": Command("parcontrol.cli.streams", "show how a run uses its streams"),
    "config": Command("parcontrol.cli.config", "explain the configuration keys"),
    "serve": Command("parcontrol.cli.serve", "answer OpenAI clients with a model"),
    "cost": Command("parcontrol.cli.cost", "memory and latency of inference, by formula"),
    "fit": Command("parcontrol.cli.fit", "fit the parallel scaling law"),
    "leaderboard": Command("parcontrol.cli.leaderboard.main", "rank models by how much they hallucinate"),
    "setup-check": Command("parcontrol.cli.setup_check", "check that this machine can train"),
    "demo": Command("parcontrol.cli.demo", "train and compare small models with P = 1, 2, 4"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    description = "ParScale: train, measure and predict parallel scaling of language models."
    return dispatch("parcontrol", description, COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
