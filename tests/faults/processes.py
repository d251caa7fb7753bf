"""Processes that start fast: importing torch and transformers takes seconds, and is done once for all of them.

Each is a fork of one that has imported them and done nothing else.
"""

import multiprocessing

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    [
        "parcontrol.cli.train",
        "parcontrol.training.run",
        "parcontrol.leaderboard.submission",
        "transformers.models.auto.configuration_auto",
    ]
)
