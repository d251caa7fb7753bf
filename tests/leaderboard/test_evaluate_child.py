"""The evaluating process: what it may see, and that its death is a reason and not the worker's end."""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from parcontrol.leaderboard.evaluate.child import EvaluationProcess, JobFailedError, User
from parcontrol.leaderboard.evaluate.environment import ALLOWED, child_environment
from parcontrol.leaderboard.evaluate.errors import MachineError
from parcontrol.leaderboard.evaluate.model_spec import Conditions, Job, ModelSpec
from parcontrol.leaderboard.evaluate.remote_code import Guest, RemoteCode, guest
from parcontrol.leaderboard.evaluate.spool import finished_tasks, write_task
from tests.leaderboard.evaluation import MODEL, SHA, finished
from tests.leaderboard.stores import TOKEN, online_hub

SECRETS = {
    "H4_TOKEN": "hf_secret-of-the-board",
    "HF_TOKEN": "hf_secret-of-the-user",
    "HUGGING_FACE_HUB_TOKEN": "hf_secret-of-old",
    "OPENAI_API_KEY": "sk-secret-of-the-endpoint",
    "AWS_SECRET_ACCESS_KEY": "aws-secret",
    "HF_TOKEN_PATH": "/somewhere/secret-token-file",
}


def order(out: Path, *tasks: str, **spec: Any) -> dict[str, Any]:
    model = ModelSpec("org/model", SHA, **{"backend": "dummy", **spec})
    conditions = Conditions(limit=2, sample_set=True, backend=model.backend)
    return {"evaluate": Job(model, conditions, tasks, str(out)).to_dict()}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EvaluationProcess]:
    """A process that was started while the environment was full of secrets."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        started = EvaluationProcess(home, home / "evaluation.log", "dummy")
    try:
        yield started
    finally:
        started.stop()


def events(process: EvaluationProcess, what: dict[str, Any]) -> list[dict[str, Any]]:
    return [event for event in process.perform(what) if event]


def test_it_evaluates_and_tells_what_happens(process: EvaluationProcess, tmp_path: Path) -> None:
    told = [event["event"] for event in events(process, order(tmp_path, "memo_trap", "truefalse"))]
    assert told == ["loaded", "task", "done", "task", "done"]
    assert set(finished_tasks(tmp_path)) == {"memo_trap", "truefalse"}


def test_it_sees_no_secret(process: EvaluationProcess) -> None:
    seen = psutil.Process(process.pid).environ()
    assert not set(SECRETS) & set(seen)
    assert not any("secret" in value for value in seen.values())
    assert set(seen) <= ALLOWED | set(child_environment(Path("/home"), {}))
    assert seen["HF_HUB_DISABLE_IMPLICIT_TOKEN"] == "1"
    assert seen["HOME"] == str(process.log.parent)
    assert Path(seen["HF_HOME"]).is_relative_to(seen["HOME"])


def test_shared_caches_are_passed_on_to_our_own_user_only() -> None:
    caches = {"HF_HUB_CACHE": "/models", "HF_DATASETS_CACHE": "/data", "PATH": "/bin"}
    assert caches.items() <= child_environment(Path("/home"), caches).items()
    assert not {"HF_HUB_CACHE", "HF_DATASETS_CACHE"} & set(child_environment(Path("/home"), caches, False))


def test_a_killed_evaluation_is_a_reason_and_the_next_one_runs(process: EvaluationProcess, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # an endpoint that never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/completions"
        told = process.perform(order(tmp_path, "halueval_qa", backend="openai", base_url=url), 0.05)
        while not (children := psutil.Process(process.pid).children()):
            next(told)
        children[0].send_signal(signal.SIGKILL)
        with pytest.raises(JobFailedError, match="killed by SIGKILL, perhaps because memory ran out") as raised:
            list(told)
        assert not raised.value.final
    assert events(process, order(tmp_path, "memo_trap"))[-1]["event"] == "done"


def test_no_more_open_files_is_a_fault_of_the_machine(process: EvaluationProcess, tmp_path: Path) -> None:
    events(process, order(tmp_path, "memo_trap"))
    evaluating = psutil.Process(process.pid)
    before = evaluating.rlimit(psutil.RLIMIT_NOFILE)
    evaluating.rlimit(psutil.RLIMIT_NOFILE, (3, before[1]))  # not even a pipe to a forked process
    with pytest.raises(MachineError, match="Too many open files"):
        events(process, order(tmp_path, "memo_trap"))
    evaluating.rlimit(psutil.RLIMIT_NOFILE, before)
    assert events(process, order(tmp_path, "memo_trap"))[-1]["event"] == "done"


def test_a_refused_model_is_a_final_reason(process: EvaluationProcess, tmp_path: Path) -> None:
    with pytest.raises(JobFailedError, match="directory '/nowhere' of model 'org/model' does not exist") as raised:
        events(process, order(tmp_path, "memo_trap", backend="hf", path="/nowhere"))
    assert raised.value.final


def test_jobs_do_not_see_each_other(process: EvaluationProcess, tmp_path: Path) -> None:
    events(process, order(tmp_path / "1", "truefalse"))
    events(process, order(tmp_path / "2", "truefalse"))
    first, second = (finished_tasks(tmp_path / name)["truefalse"].results["results"] for name in "12")
    assert first == second


def test_a_process_that_cannot_start_is_no_fault_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parcontrol.leaderboard.evaluate.child._MODULE", "no.such.module")
    broken = EvaluationProcess(tmp_path, tmp_path / "log")
    with pytest.raises(MachineError, match=r"the evaluating process cannot start: .*No module named"):
        events(broken, order(tmp_path, "memo_trap"))
    assert not broken.alive


def test_the_token_is_found_nowhere_after_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole worker on a Hub, with a token in its environment, in a token file and in .netrc."""
    home = tmp_path / "user"
    (home / ".cache" / "huggingface").mkdir(parents=True)
    (home / ".cache" / "huggingface" / "token").write_text(TOKEN)
    (home / ".netrc").write_text(f"machine 127.0.0.1 login alice password {TOKEN}\n")
    with online_hub(tmp_path / "cache", monkeypatch) as hub:
        for name in ("requests", "results", "board"):
            hub.create("datasets", f"alice/{name}")
        request = finished_request()
        hub.push("alice/requests", request)
        environment = os.environ | {
            "HOME": str(home),
            "H4_TOKEN": TOKEN,
            "HF_TOKEN": TOKEN,
            "QUEUE_REPO": "alice/requests",
            "RESULTS_REPO": "alice/results",
            "REPO_ID": "alice/board",
            "HF_ENDPOINT": hub.endpoint,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "PARCONTROL_LEADERBOARD": str(tmp_path / "board"),
            "PARCONTROL_MIRROR": str(tmp_path / "mirror"),
        }
        rows = tmp_path / "mirror" / "datasets" / "pminervini" / "inverse-scaling" / "memo-trap" / "data.jsonl"
        rows.parent.mkdir(parents=True)
        row = {"prompt": "Say two:", "classes": "[' one', ' two']", "answer_index": 1, "round": 2, "part": "data"}
        rows.write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
        flags = ["--once", "--backend", "dummy", "--tasks", "memo_trap", "--limit", "2"]
        command = [sys.executable, "leaderboard/backend-cli.py", *flags]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert any(token == TOKEN for _, token in hub.requests), "the worker itself does use it"
        written = [path for path in (tmp_path / "board").rglob("*") if path.is_file()]
        published = list(hub.files("alice/requests").values()) + list(hub.files("alice/results").values())
        assert not any(TOKEN.encode() in content for content in published)
        assert sum(path.startswith("org/model/results_") for path in hub.files("alice/results")) == 1
    assert any(path.suffix == ".log" for path in written)
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
    assert TOKEN not in done.stdout + done.stderr


def finished_request() -> dict[str, bytes]:
    """A waiting request, by its path."""
    from parcontrol.leaderboard.records import Precision, Request, Status, WeightType, request_path

    request = Request(model="org/model", sha=SHA, precision=Precision.FLOAT16, status=Status.PENDING)
    return {request_path("org/model", Precision.FLOAT16, WeightType.ORIGINAL): request.to_json()}


# --- models that bring their own code ---


def test_only_the_listed_commit_may_run_code(tmp_path: Path) -> None:
    path = tmp_path / "remote_code.yaml"
    assert not RemoteCode.read(path).allows(MODEL)
    path.write_text(f"user: guest\nmodels:\n  org/model: {SHA!r}\n")
    listed = RemoteCode.read(path)
    assert listed.user == "guest"
    assert listed.allows(MODEL)
    assert not listed.allows(ModelSpec("org/model", "b" * 40))
    assert not listed.allows(ModelSpec("org/other", SHA))


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "user: x",
        "user: x\nmodels: {a/b: main}",
        "user: x\nmodels: {}\nextra: 1",
        "user: [",
        "models: {}\nuser: 7",
    ],
)
def test_a_list_with_mistakes_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "remote_code.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"remote_code\.yaml"):
        RemoteCode.read(tmp_path / "remote_code.yaml")


def test_who_cannot_become_another_user_refuses_the_model_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(MODEL, Conditions(), ("memo_trap",), str(tmp_path))
    with pytest.raises(JobFailedError, match="org/model runs code of its own, and there is no user 'nobody-at-all'"):
        guest(job, "nobody-at-all", tmp_path / "log").__enter__()
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    with pytest.raises(JobFailedError, match="only root can start processes as user 'root'") as raised:
        guest(job, "root", tmp_path / "log").__enter__()
    assert raised.value.final
    monkeypatch.setattr(os, "getuid", lambda: 0)
    with pytest.raises(ValueError, match="'root' is root itself"):
        User.named("root")


def a_guest(tmp_path: Path) -> Guest:
    job = Job(MODEL, Conditions(), ("memo_trap",), str(tmp_path / "theirs"))
    return Guest(None, job, tmp_path / "ours")  # type: ignore[arg-type]


def test_of_a_guest_plain_files_of_ordered_tasks_are_taken_over(tmp_path: Path) -> None:
    task = finished(tmp_path / "spool", "memo_trap")
    write_task(tmp_path / "theirs" / "memo_trap", task.results, [{"doc_id": 0}])
    a_guest(tmp_path).adopt("memo_trap")
    assert finished_tasks(tmp_path / "ours")["memo_trap"].results == task.results


@pytest.mark.parametrize("trick", ["symlink", "hardlink", "directory", "missing"])
def test_of_a_guest_nothing_else_is_taken_over(trick: str, tmp_path: Path) -> None:
    task = finished(tmp_path / "spool", "memo_trap")
    write_task(tmp_path / "theirs" / "memo_trap", task.results, [{"doc_id": 0}])
    (tmp_path / "secret").write_text("secret")
    results = tmp_path / "theirs" / "memo_trap" / "results.json"
    results.unlink()
    if trick == "symlink":
        results.symlink_to(tmp_path / "secret")
    elif trick == "hardlink":
        results.hardlink_to(tmp_path / "secret")
    elif trick == "directory":
        results.mkdir()
    with pytest.raises(JobFailedError, match=r"results\.json"):
        a_guest(tmp_path).adopt("memo_trap")
    with pytest.raises(JobFailedError, match="not ordered"):
        a_guest(tmp_path).adopt("../../etc")
    assert not finished_tasks(tmp_path / "ours")


def test_a_guest_runs_as_its_user(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    user = pwd.getpwnam("nobody")
    try:
        subprocess.run([sys.executable, "-c", ""], user=user.pw_uid, cwd="/", check=True)
    except PermissionError:
        with pytest.raises(JobFailedError, match="user 'nobody' cannot run"):
            guest(Job(MODEL, Conditions(), (), str(tmp_path)), "nobody", tmp_path / "log").__enter__()
        pytest.skip("user nobody cannot read this Python")
    job = Job(
        ModelSpec("org/model", SHA, backend="dummy"),
        Conditions(limit=2, sample_set=True, backend="dummy"),
        ("memo_trap",),
        str(tmp_path / "out"),
    )
    with guest(job, "nobody", tmp_path / "log") as visit:
        assert psutil.Process(visit.process.pid).uids().real == user.pw_uid
        told = events(visit.process, {"evaluate": visit.job.to_dict()})
        visit.adopt("memo_trap")
    assert told[-1]["event"] == "done"
    assert set(finished_tasks(tmp_path / "out")) == {"memo_trap"}
    assert not Path(visit.job.out).exists()
