"""`parcontrol leaderboard`: hands over to its subcommands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from parcontrol.cli.commands import Command, dispatch

COMMANDS = {
    "tasks": Command("parcontrol.cli.leaderboard.tasks", "list the tasks"),
    "submit": Command("parcontrol.cli.leaderboard.submit", "put a model into the queue"),
    "submit-run": Command("parcontrol.cli.leaderboard.submit_run", "put a finished training run into the queue"),
    "worker": Command("parcontrol.cli.leaderboard.worker", "evaluate the models in the queue, or one directly"),
    "score": Command("parcontrol.cli.leaderboard.score", "score stored generations again"),
    "completed": Command("parcontrol.cli.leaderboard.completed", "what is done, what is missing, what failed and why"),
    "requeue": Command("parcontrol.cli.leaderboard.queue", "put a request back into the queue", "requeue"),
    "cancel": Command("parcontrol.cli.leaderboard.queue", "withdraw a request", "cancel"),
    "table": Command("parcontrol.cli.leaderboard.table", "print the table, and write it to the leaderboard repository"),
    "analysis": Command("parcontrol.cli.leaderboard.analysis", "heat map and cluster map of models and tasks"),
    "app": Command("parcontrol.cli.leaderboard.app", "serve the web page"),
    "space": Command("parcontrol.cli.leaderboard.space", "make the folder of a Space that serves the web page"),
    "demo": Command("parcontrol.cli.leaderboard.demo", "evaluate the demo's models and serve the web page"),
    "upload": Command("parcontrol.cli.leaderboard.upload", "convert a dataset and upload it for the tasks"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns its exit code."""
    description = "The Hallucinations Leaderboard: submit, evaluate, rank."
    return dispatch("parcontrol leaderboard", description, COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main())
