"""The run directory: what it keeps whole when a process dies, a disk fills, or two want the same."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parcontrol.config import RunConfig, load_config
from parcontrol.runs import RunDirectory, atomic_directory

APPENDERS = {
    "metrics.jsonl": (RunDirectory.append_metrics, RunDirectory.read_metrics),
    "streams.jsonl": (RunDirectory.append_streams, RunDirectory.read_streams),
    "provenance.jsonl": (RunDirectory.append_provenance, RunDirectory.read_provenance),
}
FILES = sorted(APPENDERS)


def config_for(path: Path, **overrides: Any) -> RunConfig:
    return load_config(None, {"output_dir": str(path)} | {k.replace("__", "."): v for k, v in overrides.items()})


def names_in(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


# --- opening ---


def test_a_new_run_has_its_config_and_can_be_read_back(tmp_path: Path) -> None:
    config = config_for(tmp_path / "a" / "run", parscale__P=4)
    with RunDirectory.open_for_training(config, resume=True) as run:
        assert run.path == tmp_path / "a" / "run"
        assert run.read_config() == config
        assert not run.finished
        assert run.read_metrics() == run.checkpoints() == []


def test_the_same_run_is_opened_again(tmp_path: Path) -> None:
    config = config_for(tmp_path / "run")
    with RunDirectory.open_for_training(config) as run:
        run.append_metrics({"step": 1, "loss": 2.5})
    elsewhere = config_for(tmp_path / "run", training__device="cpu", data__num_workers=0, logging__level="DEBUG")
    with RunDirectory.open_for_training(elsewhere) as run:
        assert run.read_metrics() == [{"step": 1, "loss": 2.5}]
        assert run.read_config() == config


def test_another_configuration_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    with RunDirectory.open_for_training(config_for(tmp_path / "run", parscale__P=2)) as run:
        run.append_metrics({"step": 1})
    other = config_for(tmp_path / "run", parscale__P=4, training__seed=7, logging__level="DEBUG")
    with pytest.raises(ValueError, match="another configuration") as caught:
        RunDirectory.open_for_training(other)
    assert "parscale.P 2 there, 4 now" in str(caught.value)
    assert "training.seed 42 there, 7 now" in str(caught.value)
    assert "logging" not in str(caught.value)
    assert run.read_config().parscale.P == 2
    with RunDirectory.open_for_training(config_for(tmp_path / "run", parscale__P=2)):
        pass  # the refusal has let go of the lock


def test_a_run_that_never_started_gives_way_to_a_corrected_configuration(tmp_path: Path) -> None:
    with RunDirectory.open_for_training(config_for(tmp_path / "run", model__name="typo")):
        pass
    corrected = config_for(tmp_path / "run", model__name="right")
    with RunDirectory.open_for_training(corrected) as run:
        assert run.read_config() == corrected


def test_in_use_while_it_is_open_for_training(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    assert not run.in_use
    with RunDirectory.open_for_training(config_for(run.path)):
        assert run.in_use
    assert not run.in_use


@pytest.mark.parametrize("trace", ["metrics", "checkpoint", "result"])
def test_without_resume_a_started_run_is_refused_and_stays(tmp_path: Path, trace: str) -> None:
    config = config_for(tmp_path / "run")
    with RunDirectory.open_for_training(config) as run:
        if trace == "metrics":
            run.append_metrics({"step": 0})
        elif trace == "checkpoint":
            run.checkpoint_path(5).mkdir(parents=True)
        else:
            run.write_result({"loss": 1.0})
    before = names_in(tmp_path / "run")
    with pytest.raises(ValueError, match="already holds this run"):
        RunDirectory.open_for_training(config, resume=False)
    assert names_in(tmp_path / "run") == before


def test_without_resume_a_new_run_starts(tmp_path: Path) -> None:
    for _ in range(2):
        with RunDirectory.open_for_training(config_for(tmp_path / "run"), resume=False) as run:
            assert not run.finished


@pytest.mark.parametrize("name", ["file/run", "file/below/run", "n" * 300])
def test_a_path_that_cannot_be_a_directory_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"cannot be written \(.+\): choose another output_dir"):
        RunDirectory.open_for_training(config_for(tmp_path / name))
    assert names_in(tmp_path) == {"file"}


def test_a_directory_with_other_files_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds no run but other files \(notes.txt\)"):
        RunDirectory.open_for_training(config_for(tmp_path))
    assert names_in(tmp_path) == {"notes.txt"}
    with pytest.raises(ValueError, match="no directory"):
        RunDirectory.open_for_training(config_for(tmp_path / "notes.txt"))


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    config = config_for(tmp_path / "run")
    with RunDirectory.open_for_training(config) as run:
        run.checkpoint_path(1).mkdir(parents=True)
        (run.path / ".result.json.partial-1").write_text("{")
        (run.checkpoints_dir / ".step_00000002.partial-1").mkdir()
        (run.checkpoints_dir / ".step_00000002.partial-1" / "weights").write_text("half")
    with RunDirectory.open_for_training(config) as run:
        assert names_in(run.path) == {".lock", "config.yaml", "checkpoints"}
        assert names_in(run.checkpoints_dir) == {"step_00000001"}


def test_a_kill_before_the_config_was_written_leaves_a_usable_directory(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("1\n")
    (tmp_path / ".config.yaml.partial-1").write_text("model:")
    with RunDirectory.open_for_training(config_for(tmp_path)) as run:
        assert names_in(run.path) == {".lock", "config.yaml"}


# --- the lock ---

HOLD = """
import sys
from parcontrol.config import load_config
from parcontrol.runs import RunDirectory
run = RunDirectory.open_for_training(load_config(None, {"output_dir": sys.argv[1]}))
print("locked", flush=True)
sys.stdin.read()
"""


def holder(path: Path, program: str = HOLD) -> subprocess.Popen[str]:
    """A process that has the lock of a run."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], **pipes)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "locked"
    return process


def test_a_second_process_is_refused_until_the_first_dies(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with holder(path) as process:
        with pytest.raises(ValueError, match=f"process {process.pid} works there"):
            RunDirectory.open_for_training(config_for(path))
        assert RunDirectory(path).read_config() == config_for(path)  # reading needs no lock
        process.send_signal(signal.SIGKILL)
        process.wait()
    with RunDirectory.open_for_training(config_for(path)):
        pass


def test_a_second_run_in_the_same_process_is_refused(tmp_path: Path) -> None:
    config = config_for(tmp_path / "run")
    with (
        RunDirectory.open_for_training(config),
        pytest.raises(ValueError, match=f"process {os.getpid()} works there"),
    ):
        RunDirectory.open_for_training(config)
    RunDirectory.open_for_training(config).close()


HOLD_WITH_CHILD = HOLD.replace(
    'print("locked", flush=True)',
    """
import multiprocessing, time
context = multiprocessing.get_context("fork")
running = context.Event()


def work():
    running.set()
    time.sleep(600)


child = context.Process(target=work)
child.start()
running.wait()
print("locked", flush=True)
print(child.pid, flush=True)
""",
)


def test_a_forked_worker_that_outlives_its_parent_does_not_keep_the_lock(tmp_path: Path) -> None:
    with holder(tmp_path / "run", HOLD_WITH_CHILD) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        process.wait()
        try:
            os.kill(child, 0)  # it lives
            RunDirectory.open_for_training(config_for(tmp_path / "run")).close()
        finally:
            os.kill(child, signal.SIGKILL)


# --- records ---


@pytest.mark.parametrize("name", FILES)
def test_records_come_back_in_order_one_line_each(tmp_path: Path, name: str) -> None:
    append, read = APPENDERS[name]
    run = RunDirectory(tmp_path)
    records = [{"step": step, "text": "line\nbreak – ü", "list": [1, {"a": None}]} for step in range(3)]
    for record in records:
        append(run, record)
    assert read(run) == records
    assert (tmp_path / name).read_bytes().count(b"\n") == 3
    others = [APPENDERS[other][1] for other in FILES if other != name]
    assert all(read_other(run) == [] for read_other in others)


@pytest.mark.parametrize(
    ("record", "place"),
    [
        ({"step": 1, "loss": math.nan}, "loss = nan"),
        ({"step": 1, "loss": {"train": [1.0, -math.inf]}}, r"loss\.train\[1\] = -inf"),
    ],
)
def test_a_number_that_is_none_is_refused_by_name(tmp_path: Path, record: dict[str, Any], place: str) -> None:
    run = RunDirectory(tmp_path)
    run.append_metrics({"step": 0})
    for write in (run.append_metrics, run.write_meta, run.write_result):
        with pytest.raises(ValueError, match=place):
            write(record)
    assert run.read_metrics() == [{"step": 0}]
    assert names_in(tmp_path) == {"metrics.jsonl"}


def test_a_record_needs_a_step(tmp_path: Path) -> None:
    for record in ({}, {"step": "1"}, {"step": True}, {"step": 1.0}):
        with pytest.raises(AssertionError, match="step"):
            RunDirectory(tmp_path).append_metrics(record)


def test_a_full_disk_leaves_the_records_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path)
    run.append_metrics({"step": 1})
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[: len(data) // 2]))
    with pytest.raises(OSError, match="No space left on device"):
        run.append_metrics({"step": 2})
    monkeypatch.undo()
    run.append_metrics({"step": 3})
    assert run.read_metrics() == [{"step": 1}, {"step": 3}]


@pytest.mark.parametrize("line", [b"{not json}", b"[1]", b'{"loss": 1}', b'{"step": "1"}', b"", b"\xff"])
def test_a_damaged_line_is_refused_by_number(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 2 "):
        RunDirectory(tmp_path).read_metrics()


RECORDS = st.lists(
    st.dictionaries(
        st.text(min_size=1), st.none() | st.integers() | st.text() | st.floats(allow_nan=False), max_size=3
    ),
    max_size=6,
).map(lambda found: [record | {"step": step} for step, record in enumerate(found)])


def finite(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if not (isinstance(v, float) and math.isinf(v))} for r in records]


@settings(max_examples=50)  # each is synchronised with the disk many times
@given(records=RECORDS.map(finite), kept=st.integers(-1, 7), cut=st.integers(0, 400))
def test_after_any_kill_a_run_goes_on_from_its_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]], kept: int, cut: int
) -> None:
    """Files cut anywhere behind the checkpoint: only whole records up to it stay, and appending works."""
    run = RunDirectory(tmp_path_factory.mktemp("run"))
    until_checkpoint = [record for record in records if record["step"] <= kept]
    for name in FILES:
        append, _ = APPENDERS[name]
        for record in until_checkpoint:
            append(run, record)
        size = (run.path / name).stat().st_size if until_checkpoint else 0
        for record in records[len(until_checkpoint) :]:
            append(run, record)
        if (run.path / name).exists():
            os.truncate(run.path / name, min(size + cut, (run.path / name).stat().st_size))
    run.truncate_after(kept)
    for name in FILES:
        append, read = APPENDERS[name]
        assert read(run) == until_checkpoint
        append(run, {"step": kept + 1})
        assert read(run) == [*until_checkpoint, {"step": kept + 1}]
        assert [json.loads(line) for line in (run.path / name).read_text().splitlines()] == read(run)


# --- meta and result ---


def test_meta_and_result_come_back_and_the_result_finishes_the_run(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_meta({"commit": "abc", "seeds": {"data": 1}})
    assert run.read_meta() == {"commit": "abc", "seeds": {"data": 1}}
    assert not run.finished
    with pytest.raises(ValueError, match=r"result\.json: cannot be read"):
        run.read_result()
    run.write_result({"loss": 0.1})
    assert run.finished
    assert run.read_result() == {"loss": 0.1}
    run.write_meta({"commit": "def"})
    assert run.read_meta() == {"commit": "def"}
    assert names_in(tmp_path) == {"meta.json", "result.json"}


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_a_damaged_result_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(ValueError, match=r"result\.json: "):
        RunDirectory(tmp_path).read_result()


def test_a_result_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path)
    run.write_meta({"old": True})

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        run.write_meta({"old": False})
    monkeypatch.undo()
    assert run.read_meta() == {"old": True}
    assert names_in(tmp_path) == {"meta.json"}


# --- checkpoints and atomic directories ---


def test_checkpoints_are_found_by_step_and_partial_ones_are_not(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in (100_000_000, 5, 20):
        run.checkpoint_path(step).mkdir(parents=True)
    for other in (run.final_dir, run.checkpoints_dir / ".step_00000007.partial-1", run.checkpoints_dir / "step_x"):
        other.mkdir()
    assert run.checkpoint_path(5).name == "step_00000005"
    assert run.checkpoints() == [run.checkpoint_path(step) for step in (5, 20, 100_000_000)]


def test_an_atomic_directory_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "a" / "final"
    with atomic_directory(target) as directory:
        (directory / "sub").mkdir()
        (directory / "sub" / "weights").write_text("w")
        assert not target.exists()
    assert (target / "sub" / "weights").read_text() == "w"
    assert names_in(target.parent) == {"final"}


@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_atomic_directory_leaves_what_was_there(tmp_path: Path, existing: bool) -> None:
    target = tmp_path / "final"
    if existing:
        target.mkdir()
        (target / "weights").write_text("old")

    def write_half() -> None:
        with atomic_directory(target) as directory:
            (directory / "weights").write_text("new")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        write_half()
    assert names_in(tmp_path) == ({"final"} if existing else set())
    assert not existing or (target / "weights").read_text() == "old"


def test_an_atomic_directory_replaces_all_of_the_old_one(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with atomic_directory(tmp_path / "final") as directory:
            (directory / name).write_text(name)
    assert names_in(tmp_path / "final") == {"new"}
    assert names_in(tmp_path) == {"final"}


REPLACE_UNTIL = """
import os, signal, sys
from pathlib import Path
from parcontrol import runs
target, last = Path(sys.argv[1]), int(sys.argv[2])
calls = 0
def counted(function):
    def call(*args):
        global calls
        calls += 1
        if calls > last:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)
    return call
os.rename, os.fsync = counted(os.rename), counted(os.fsync)
runs.shutil.rmtree = counted(runs.shutil.rmtree)
with runs.atomic_directory(target) as directory:
    (directory / "weights").write_text("new")
print(calls)
"""


def test_a_kill_at_any_moment_leaves_the_old_directory_or_the_new_one(tmp_path: Path) -> None:
    """Killed before each system call in turn; the next call finds a whole directory to replace."""
    target = tmp_path / "final"
    seen = set()
    for last in range(100):
        with atomic_directory(target) as directory:
            (directory / "weights").write_text("old")
        command = [sys.executable, "-c", REPLACE_UNTIL, str(target), str(last)]
        finished = subprocess.run(command, check=False, capture_output=True, text=True).returncode == 0
        beside = tmp_path / ".final.replaced"
        whole = target if target.exists() else beside
        content = (whole / "weights").read_text()
        seen.add((content, whole.name))
        if finished:
            assert content == "new"
            break
        with atomic_directory(target) as directory:  # restores the old one before anything else
            assert (target / "weights").read_text() == content
            (directory / "weights").write_text("next")
    else:
        pytest.fail("the replacement never came to its end")
    assert seen == {("old", "final"), ("old", ".final.replaced"), ("new", "final")}
