"""A run that reads its data from a Hub that fails, hangs and asks to be left alone for a while."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from tests.data.hub_server import hub_server
from tests.faults.training_processes import MakeConfig, Training
from tests.training.same_run import assert_same_run

REPO, COMMIT = "someone/texts", "0123456789abcdef0123456789abcdef01234567"


def use_hub(endpoint: str, timeout_seconds: float) -> None:
    """Lets this process know one Hub, and wait for it so long; what the environment says was read before the fork."""
    from huggingface_hub import constants

    from parcontrol import hub

    time.sleep = lambda seconds: None  # between attempts
    constants.HF_HUB_OFFLINE = False
    constants.ENDPOINT = endpoint
    constants.HUGGINGFACE_CO_URL_TEMPLATE = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    constants.HF_HUB_DOWNLOAD_TIMEOUT = constants.HF_HUB_ETAG_TIMEOUT = timeout_seconds  # type: ignore[assignment]
    hub.TIMEOUT_SECONDS = dict.fromkeys(hub.TIMEOUT_SECONDS, timeout_seconds)


def test_a_hub_that_fails_for_moments_changes_nothing(make_config: MakeConfig, tiny_corpus_dir: Path) -> None:
    """Then one that hangs for good: the run stops with the shard and the reason, and goes on once the Hub answers."""
    runs = [make_config(name, data__repo=REPO, data__num_workers=0) for name in ("whole", "disturbed", "stopped")]
    with hub_server(tiny_corpus_dir, REPO, COMMIT) as server:
        exit_code, output = Training(runs[0], partial(use_hub, server.endpoint, 10.0)).end()
        assert exit_code == 0, output

        server.api_failures += [503, 503, 429, "pass", "pass", "hang"]
        server.failures += [500, "hang", "cut", 429]
        exit_code, output = Training(runs[1], partial(use_hub, server.endpoint, 1.0)).end()
        assert exit_code == 0, output
        assert not server.api_failures
        assert not server.failures
        assert_same_run(runs[0].run_directory, runs[1].run_directory)

        server.failures += ["hang"] * 6
        stopped = Training(runs[2], partial(use_hub, server.endpoint, 0.2))
        exit_code, output = stopped.end()
        assert exit_code == 2, output
        assert "val.jsonl.zst: the file cannot be read at byte 0" in stopped.errors[0]
        assert "timed out" in stopped.errors[0]
        server.failures.clear()
        exit_code, output = Training(runs[2], partial(use_hub, server.endpoint, 10.0)).end()
        assert exit_code == 0, output
        assert_same_run(runs[0].run_directory, runs[2].run_directory)
