"""Runs of several processes against the same run of one, which has its own tests.

The processes are real ones, started by torchrun, and talk through gloo. They do what one process
does on the same global batches, so its files are the oracle: losses and norms to 1e-5, and the
tokens to the bit.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from parcontrol.config import RunConfig
from parcontrol.data import verify_run
from parcontrol.parscale.modeling_parscale import has_cpp_compiler
from parcontrol.runs import RunDirectory
from parcontrol.training.device import choose_precision
from parcontrol.training.loop import TrainingLoop
from parcontrol.training.processes import Processes
from parcontrol.training.run import run
from tests.training.same_run import without_clocks
from tests.training.test_loop import FixedStream, make_model
from tests.training.torchrun import Torchrun, wait_until_gone

MakeConfig = Callable[..., RunConfig]

# 16 steps of 6 rows: microbatches of 2, of which a process of two has 1.5 and one of three has 1.
BATCH = {
    "training__gradient_accumulation_steps": 3,
    "training__tokens_per_run": 16 * 192,
    "training__max_grad_norm": 0.005,
    "training__adam_eps": 1e-4,  # keeps updates smooth where a gradient is nearly zero
}
PEFT: dict[str, object] = dict(BATCH)
PASSES = BATCH | {"training__streams_per_pass": 1, "parscale__P": 3, "training__gradient_checkpointing": True}
FULL = BATCH | {"training__mode": "full", "training__learning_rate": 1e-3, "training__max_grad_norm": 0.3}
FULL_PASSES = FULL | {"training__streams_per_pass": 1, "parscale__P": 3}
# As many streams per pass as fit into the free memory, which is plenty for one rank and none for another.
CHOSEN = BATCH | {"parscale__P": 3}
UNEVEN_MEMORY = (2**40, 0)

TOLERANCE = 1e-5
# Sums that are taken in another order.
CLOSE = ("loss", "grad_norm", "validation_loss", "backbone_validation_loss")


def close(expected: float) -> Any:
    return pytest.approx(expected, rel=TOLERANCE)


def assert_equal_runs(one: Path, several: Path) -> None:
    """Two run directories hold the same run, up to the order of sums."""
    a, b = RunDirectory(one), RunDirectory(several)
    assert a.read_provenance() == b.read_provenance()
    assert verify_run(b).step == a.read_result()["steps"]
    assert len(a.read_metrics()) == len(b.read_metrics())
    for expected, record in zip(a.read_metrics(), b.read_metrics(), strict=True):
        assert record.keys() == expected.keys()
        assert (record["step"], record["tokens"]) == (expected["step"], expected["tokens"])
        for key in expected.keys() & set(CLOSE):
            assert record[key] == close(expected[key]), (record["step"], key)
    for expected, record in zip(a.read_streams(), b.read_streams(), strict=True):
        assert record["tokens"] == expected["tokens"]
        for key in ("mean_weight", "entropy", "mean_cosine_similarity"):
            assert record[key] == pytest.approx(expected[key], rel=1e-4)
    result, expected = b.read_result(), a.read_result()
    assert result["data_sha256"] == expected["data_sha256"]
    assert result["parameters_total"] == expected["parameters_total"]
    assert result["final_validation_loss"] == close(expected["final_validation_loss"])
    with np.load(a.validation_documents_path) as x, np.load(b.validation_documents_path) as y:
        np.testing.assert_array_equal(x["tokens"], y["tokens"])
        for key in ("loss_sum", "backbone_loss_sum"):
            np.testing.assert_allclose(y[key], x[key], rtol=TOLERANCE)
    assert_same_files(a.path, b.path)


def assert_same_files(one: Path, several: Path) -> None:
    """The checkpoints are the same files with the same tensors in them."""
    names = sorted(path.relative_to(one) for path in (one / "checkpoints").rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(several) for path in (several / "checkpoints").rglob("*") if path.is_file())
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in several.iterdir())
    for name in (name for name in names if name.suffix == ".safetensors"):
        a, b = load_file(one / name), load_file(several / name)
        assert {k: (v.shape, v.dtype) for k, v in a.items()} == {k: (v.shape, v.dtype) for k, v in b.items()}
        if name.stem in ("parameters", "model"):
            for key, tensor in a.items():
                torch.testing.assert_close(b[key], tensor, rtol=1e-4, atol=1e-5)
    for name in ("config.json", "generation_config.json"):
        assert (one / "checkpoints/final" / name).read_bytes() == (several / "checkpoints/final" / name).read_bytes()


def compare(
    make_config: MakeConfig,
    processes: int,
    *kinds: dict[str, object],
    refused: Sequence[RunConfig] = (),
    free_bytes: Sequence[int] = (),
) -> str:
    """Trains each kind of run in one process and in several, all of these in one torchrun; returns its output."""
    several = [make_config(f"several{i}", **kind) for i, kind in enumerate(kinds)]
    torchrun = Torchrun(processes, [*several, *refused], free_bytes)
    one = [make_config(f"one{i}", **kind) for i, kind in enumerate(kinds)]
    for config in one:
        run(config)
    code, output = torchrun.end()
    assert (code == 0) != bool(refused), output
    for alone, config in zip(one, several, strict=True):
        assert_equal_runs(alone.run_directory, config.run_directory)
        # Rank 0 alone speaks, and every line once.
        lines = (config.run_directory.parent / "logs" / f"{config.run_directory.name}.jsonl").read_text().splitlines()
        steps = [json.loads(line)["record"]["step"] for line in lines if '"grad_norm"' in line]
        assert steps == [3, 6, 9, 12, 15, 16]
        directory = RunDirectory(config.run_directory)
        assert directory.read_meta()["processes"][0]["world_size"] == processes
        norms = [record["grad_norm"] for record in directory.read_metrics() if "grad_norm" in record]
        assert max(norms) > config.training.max_grad_norm, "nothing was clipped"
    assert output.count("backbone alone: validation loss") == len(kinds)
    return output


def test_two_processes_train_as_one_and_refuse_what_they_cannot_share(make_config: MakeConfig) -> None:
    uneven = make_config("uneven", training__microbatch_size=1, training__gradient_accumulation_steps=3)
    output = compare(make_config, 2, CHOSEN, FULL_PASSES, refused=[uneven], free_bytes=UNEVEN_MEMORY)
    assert output.count("streams per pass: 1 of 3, chosen by the free memory") == 1
    assert output.count("error: 2 processes cannot share a global batch of 3 sequences") == 1
    assert "the number of processes must be one of 1, 3" in output
    assert not uneven.run_directory.exists()


@pytest.mark.full
@pytest.mark.skipif(not has_cpp_compiler(), reason="no C++ compiler")
def test_compiled_layers_serve_several_processes_too(make_config: MakeConfig) -> None:
    compare(make_config, 2, PEFT | {"training__compile": True}, FULL | {"training__compile": True})


@pytest.mark.parametrize("size", [4, 5, 7, 8])
def test_a_batch_is_shared_equally_or_not_at_all(make_config: MakeConfig, size: int) -> None:
    config = make_config(**BATCH)
    for allowed in (1, 2, 3, 6):
        Processes(0, allowed).check_splits(config)
    with pytest.raises(ValueError, match=rf"^{size} processes .* 6 sequences .* must be one of 1, 2, 3, 6$"):
        Processes(0, size).check_splits(config)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_each_row_of_a_batch_goes_to_one_process(size: int) -> None:
    blocks = np.arange(24).reshape(6, 4)
    np.testing.assert_array_equal(np.concatenate([Processes(r, size).own_rows(blocks) for r in range(size)]), blocks)


def test_a_process_with_another_configuration_is_refused(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine with a file or a device of its own; where a run goes and how it is logged may differ."""
    said = json.dumps((make_config("there", logging__level="INFO").model_dump(mode="json"), "torch.float32"))
    monkeypatch.setattr(Processes, "of_main", lambda processes, answer: json.loads(said))
    rank1 = Processes(1, 2)
    rank1.check_same(make_config("here", logging__level="DEBUG"), torch.float32)
    other = make_config("here", training__seed=7)
    with pytest.raises(ValueError, match=r"^rank 1 would .* \(training\.seed 42 in rank 0, 7 here\): all"):
        rank1.check_same(other, torch.float32)
    with pytest.raises(ValueError, match=r"mixed_precision chooses 'torch.float32' in rank 0, 'torch.bfloat16' here"):
        rank1.check_same(make_config("here"), torch.bfloat16)


@pytest.mark.parametrize("streams_per_pass", [1, 3])
def test_one_message_of_the_trainable_gradients_a_step(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, streams_per_pass: int
) -> None:
    """However many microbatches and passes a step has; the other process is made of nothing here."""
    messages: list[int] = []
    monkeypatch.setattr("torch.distributed.broadcast", lambda tensor, src: None)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: messages.append(tensor.numel()))
    config = make_config(**PASSES | {"training__streams_per_pass": streams_per_pass})
    model = make_model(config)
    stream: Any = FixedStream(config)
    loop = TrainingLoop(config, model, stream, choose_precision(config.training), (), processes=Processes(0, 2))
    loop.run()
    trained = sum(parameter.numel() for _, parameter in loop.trainable)
    assert messages == [1 + trained] * config.total_steps


@pytest.mark.full
def test_three_processes_train_as_one(make_config: MakeConfig) -> None:
    assert "Traceback" not in compare(make_config, 3, PEFT, PASSES, FULL, FULL_PASSES)


@pytest.mark.full
def test_an_output_head_of_its_own_trains_beside_the_shards(
    make_config: MakeConfig, tiny_untied_model_dir: Path
) -> None:
    untied = {"model__name": str(tiny_untied_model_dir)}
    compare(make_config, 2, FULL | untied, FULL_PASSES | untied)


def begun(config: RunConfig, processes: int, records: int = 6) -> Torchrun:
    """A run in several processes that is well under way."""
    torchrun = Torchrun(processes, [config])
    directory = RunDirectory(config.run_directory)
    while len(directory.read_metrics()) < records:
        assert torchrun.process.poll() is None, torchrun.end()
        time.sleep(0.005)
    return torchrun


def killed(
    config: RunConfig,
    processes: int,
    rank: int,
    meanwhile: Callable[[RunConfig, Torchrun], None] = lambda config, torchrun: None,
) -> None:
    """Kills one process of a run: all end, one tells."""
    torchrun = begun(config, processes)
    ranks = torchrun.ranks()
    assert sorted(ranks) == list(range(processes))
    meanwhile(config, torchrun)
    ranks[rank].kill()
    code, output = torchrun.end()
    assert code != 0, output
    assert output.count("error: another process of the run has ended") == 1, output
    assert "Repeat the same command to go on from the newest checkpoint" in output
    assert "Signal 9 (SIGKILL) received" in output
    wait_until_gone(list(ranks.values()))
    assert not RunDirectory(config.run_directory).finished


def refused_beside(config: RunConfig, first: Torchrun) -> None:
    """Starts a run of two processes in the directory of another, which stands still meanwhile: one line says no."""
    ranks = first.ranks()
    for rank in ranks.values():
        rank.suspend()
    code, output = Torchrun(2, [config]).end()
    assert code != 0, output
    assert output.count("error:") == 1, output
    assert f"error: {config.run_directory} is in use: process {ranks[0].pid} works there" in output
    for rank in ranks.values():
        rank.resume()


def finished(processes: int, *configs: RunConfig) -> None:
    code, output = Torchrun(processes, configs).end()
    assert code == 0, output


LONG = {"training__tokens_per_run": 60 * 192, "training__log_interval_steps": 4, "data__num_shards": 8}


def test_a_run_that_lost_a_process_goes_on_in_another_number(make_config: MakeConfig) -> None:
    """A second torchrun in the directory of the first, which was refused before, changes nothing."""
    config = make_config("killed", **PEFT | LONG)
    killed(config, processes=2, rank=1, meanwhile=refused_beside)
    run(config)
    whole = make_config("whole", **PEFT | LONG)
    run(whole)
    assert_equal_runs(whole.run_directory, config.run_directory)
    sizes = [process["world_size"] for process in RunDirectory(config.run_directory).read_meta()["processes"]]
    assert sizes == [2, 1]


@pytest.mark.full
def test_a_run_that_lost_the_process_that_writes_goes_on_in_more(make_config: MakeConfig) -> None:
    config, whole = make_config("killed", **FULL | LONG), make_config("whole", **FULL | LONG)
    killed(config, processes=2, rank=0)
    finished(3, config)
    run(whole)
    assert_equal_runs(whole.run_directory, config.run_directory)


@pytest.mark.full
def test_a_full_disk_is_told_once(make_config: MakeConfig) -> None:
    """Rank 0 cannot write its second checkpoint, and the other one learns of it by its absence."""
    config = make_config("full", **FULL | LONG)
    parameters = sum(parameter.numel() for parameter in make_model(config).parameters())
    # In float32 parameters are shorter than this, and their moments longer.
    code, output = Torchrun(2, [config], file_sizes=[6 * parameters, 2**40]).end()
    assert code != 0
    assert output.count("error:") == 1, output
    assert f"error: File too large while writing to {config.run_directory}. The newest checkpoint" in output
    assert len(RunDirectory(config.run_directory).checkpoints()) == 1


@pytest.mark.full
def test_a_killed_run_goes_on_to_the_same_bits(make_config: MakeConfig) -> None:
    """With the same number of processes."""
    config, whole = make_config("killed", **FULL | LONG), make_config("whole", **FULL | LONG)
    killed(config, processes=2, rank=1)
    finished(2, config, whole)
    a, b = RunDirectory(whole.run_directory), RunDirectory(config.run_directory)
    assert without_clocks(a.read_metrics()) == without_clocks(b.read_metrics())
    assert a.read_provenance() == b.read_provenance()
    weights = [(directory.final_dir / "model.safetensors").read_bytes() for directory in (a, b)]
    assert weights[0] == weights[1]


@pytest.mark.full
@pytest.mark.parametrize(("kind", "to_torchrun"), [(FULL, True), (PEFT, False)])
def test_a_signal_keeps_the_last_whole_step(
    make_config: MakeConfig, kind: dict[str, object], to_torchrun: bool
) -> None:
    """To torchrun, which passes it on, or to one process alone, which takes the others along."""
    config = make_config("stopped", **kind | LONG | {"training__checkpoint_interval_steps": 1000})
    whole = make_config("whole", **kind | LONG)
    torchrun = begun(config, 2)
    (torchrun.process if to_torchrun else torchrun.ranks()[1]).send_signal(signal.SIGTERM)
    code, output = torchrun.end()
    assert code != 0
    assert "error:" not in output
    kept = [path.name for path in RunDirectory(config.run_directory).checkpoints()]
    assert len(kept) == 2
    assert f"step {int(kept[-1].removeprefix('step_'))} is kept" in output
    run(config)
    run(whole)
    a, b = RunDirectory(whole.run_directory).read_result(), RunDirectory(config.run_directory).read_result()
    assert a["data_sha256"] == b["data_sha256"]
    assert b["final_validation_loss"] == close(a["final_validation_loss"])
