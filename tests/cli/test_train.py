"""`parcontrol train`: flags become the configuration that the same YAML would give."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import parcontrol.training.run
from parcontrol.cli.run_flags import SHORT_FLAGS
from parcontrol.cli.train import main
from parcontrol.config import RunConfig, iter_fields, load_config
from parcontrol.runs import RunDirectory
from parcontrol.training.errors import DiskFullError

# A valid value for every key, other than its default.
OTHER: dict[str, str] = {
    "model.name": "some/model",
    "model.revision": "v1",
    "parscale.P": "4",
    "parscale.prefix_length": "16",
    "parscale.attn_smooth": "0.25",
    "parscale.prefix_init": "normal",
    "training.mode": "full",
    "training.tokens_per_run": "12_000_000",
    "training.microbatch_size": "2",
    "training.gradient_accumulation_steps": "3",
    "training.mixed_precision": "fp32",
    "training.learning_rate": "1e-3",
    "training.warmup_tokens": "1000",
    "training.min_learning_rate_ratio": "0.5",
    "training.weight_decay": "0.1",
    "training.adam_beta1": "0.8",
    "training.adam_beta2": "0.99",
    "training.adam_eps": "1e-6",
    "training.max_grad_norm": "2",
    "training.gradient_checkpointing": "true",
    "training.compile": "true",
    "training.streams_per_pass": "1",
    "training.seed": "7",
    "training.device": "cpu",
    "training.init_from": "some/dir",
    "training.eval_interval_tokens": "5000",
    "training.log_interval_steps": "2",
    "training.checkpoint_interval_steps": "3",
    "training.keep_checkpoints": "4",
    "data.repo": "some/data",
    "data.revision": "main",
    "data.mirror": "some/mirror",
    "data.num_shards": "3",
    "data.seed": "9",
    "data.sequence_length": "512",
    "data.validation_tokens": "4096",
    "data.num_workers": "0",
    "logging.level": "WARNING",
    "logging.directory": "some/logs",
    "logging.wandb": "offline",
    "logging.wandb_project": "other",
    "output_dir": "some/run",
}


class Recorded:
    """Stands in for training: keeps what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[RunConfig, bool]] = []
        self.error: BaseException | None = None

    def __call__(self, config: RunConfig, resume: bool = True) -> dict[str, Any]:
        self.calls.append((config, resume))
        if self.error is not None:
            raise self.error
        return {}

    @property
    def config(self) -> RunConfig:
        assert len(self.calls) == 1
        return self.calls[0][0]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recorded:
    recorded = Recorded()
    monkeypatch.setattr(parcontrol.training.run, "run", recorded)
    monkeypatch.chdir(tmp_path)
    return recorded


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Returns the one line that a command is refused with."""
    try:
        code = main(argv)
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else -1
    assert code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"error: .+\n", captured.err)
    return captured.err


def test_the_plan_is_printed_and_nothing_written(
    run: Recorded, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--P", "2", "--model.name", str(tiny_model_dir), "--training.device", "cpu", "--output-dir", "plans/here"]
    assert main(["--dry-run", *flags]) == 0
    header, row, *_notes = capsys.readouterr().out.splitlines()
    assert "memory (est.)" in header
    assert re.search(r"^here +2 .*>= \d+:\d\d:\d\d +~ \d+\.\d\d GiB +new +plans/here", row)
    assert not run.calls
    assert list(Path().iterdir()) == []


def test_one_of_several_processes_prints_the_plan(
    run: Recorded, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a batch that they cannot share is refused before anything is started."""
    flags = ["--dry-run", "--model.name", str(tiny_model_dir), "--device", "cpu", "--training.microbatch_size", "2"]
    printed = []
    for rank in ("0", "1"):
        for name, value in {"TORCHELASTIC_RUN_ID": "here", "WORLD_SIZE": "2", "RANK": rank}.items():
            monkeypatch.setenv(name, value)
        assert main(flags) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0].splitlines()[-1].startswith("2 processes would share this run: ")
    assert printed[1] == ""
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr("parcontrol.training.processes.first_to_tell", lambda is_consequence: True)
    assert "3 processes cannot share a global batch of" in refused(flags, capsys)
    assert not run.calls


def test_the_first_of_several_processes_complains_of_a_flag(
    run: Recorded, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its rank: torchrun ends the others, rank 0 among them, as soon as one has left."""
    for name, value in {"TORCHELASTIC_RUN_ID": "here", "WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("parcontrol.training.processes.first_to_tell", lambda is_consequence: True)
    assert "'--parscale.Q'" in refused(["--parscale.Q", "4"], capsys)
    monkeypatch.setattr("parcontrol.training.processes.first_to_tell", lambda is_consequence: False)
    with pytest.raises(SystemExit, match="2"):
        main(["--parscale.Q", "4"])
    assert capsys.readouterr() == ("", "")
    assert not run.calls


@pytest.mark.parametrize("value", ["0", "-1", "half"])
def test_streams_per_pass_that_are_none_are_refused(
    run: Recorded, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    message = refused(["--training.streams_per_pass", value], capsys)
    assert "training.streams_per_pass" in message
    assert f"'{value}' is not allowed" in message


def test_the_table_of_values_is_complete() -> None:
    assert OTHER.keys() == {field.name for field in iter_fields()}


@pytest.mark.parametrize("key", OTHER)
def test_a_flag_is_worth_what_the_same_yaml_is(run: Recorded, key: str) -> None:
    assert main([f"--{key}", OTHER[key]]) == 0
    section, _, name = key.rpartition(".")
    text = yaml.safe_dump({section: {name: OTHER[key]}} if section else {name: OTHER[key]})
    Path("c.yaml").write_text(text)
    assert run.config == load_config("c.yaml") != load_config()


def test_all_flags_together(run: Recorded) -> None:
    assert main([part for key, value in OTHER.items() for part in (f"--{key}", value)]) == 0
    assert run.config == load_config(None, OTHER)


@pytest.mark.parametrize("key", SHORT_FLAGS)
def test_a_short_flag_is_the_long_one(run: Recorded, key: str) -> None:
    assert main([SHORT_FLAGS[key], OTHER[key]]) == 0
    assert run.config == load_config(None, {key: OTHER[key]})


def test_the_commands_of_the_documentation(run: Recorded, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    assert main("--training-mode peft --P 2 --target-tokens 16000000".split()) == 0
    assert main("--config configs/p2_config.yaml".split()) == 0
    assert run.calls[0] == run.calls[1] == (load_config("configs/p2_config.yaml"), True)


def test_wandb_offline_and_null_and_resume(run: Recorded) -> None:
    assert main(["--wandb-offline", "--device", "null", "--no-resume"]) == 0
    assert run.calls == [(load_config(None, {"logging.wandb": "offline"}), False)]


def test_a_flag_wins_over_the_file_and_the_file_over_its_base(run: Recorded) -> None:
    Path("base.yaml").write_text("parscale: {P: 2, prefix_length: 8}\ntraining: {seed: 1}\n")
    Path("c.yaml").write_text("inherits: base.yaml\nparscale: {P: 4}\ntraining: {seed: 2}\n")
    assert main(["--config", "c.yaml", "--P", "8"]) == 0
    config = run.config
    assert (config.parscale.P, config.training.seed, config.parscale.prefix_length) == (8, 2, 8)


def test_seed_leaves_the_data_as_it_is(run: Recorded) -> None:
    assert main(["--seed", "5"]) == 0
    assert (run.config.training.seed, run.config.data.seed) == (5, 42)


def test_without_a_file_the_base_file_counts_where_there_is_one(run: Recorded) -> None:
    Path("configs").mkdir()
    Path("configs/base_config.yaml").write_text("parscale: {P: 3}\n")
    assert main([]) == 0
    assert run.config.parscale.P == 3


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--parscale.Q", "4"], ["'--parscale.Q'", "'--parscale.P'"]),
        (["--targettokens=5"], ["'--targettokens'", "'--target-tokens'"]),
        (["--target", "5"], ["'--target'"]),
        (["P", "4"], ["unexpected argument 'P'"]),
        (["--P"], ["--P", "expected one argument"]),
        (["--P", "0"], ["parscale.P: '0'", "greater than or equal to 1"]),
        (["--P", "two"], ["parscale.P: 'two'"]),
        (["--P", "2", "--parscale.P", "4"], ["parscale.P is given twice", "'2'", "'4'"]),
        (["--wandb-offline", "--logging.wandb", "online"], ["logging.wandb is given twice"]),
        (["--training-mode", "lora"], ["'lora'", "'peft' or 'full'"]),
        (["--config", "none.yaml"], ["none.yaml", "No such file"]),
        (["--target-tokens", "10"], ["training.tokens_per_run 10"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    run: Recorded, capsys: pytest.CaptureFixture[str], argv: list[str], words: list[str]
) -> None:
    message = refused(argv, capsys)
    for word in words:
        assert word in message
    assert not run.calls
    assert list(Path().iterdir()) == []


def test_the_same_value_twice_is_no_contradiction(run: Recorded) -> None:
    assert main(["--P", "2", "--parscale.P", "2"]) == 0
    assert run.config.parscale.P == 2


def test_a_value_error_of_training_is_one_line(run: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    run.error = ValueError("no shard 7\nin the corpus")
    assert refused([], capsys) == "error: no shard 7 in the corpus\n"


def test_a_run_that_stopped_exits_with_1(run: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    run.error = DiskFullError("the disk is full")
    assert main([]) == 1
    assert capsys.readouterr().err == "error: the disk is full\n"


def test_an_error_of_ours_is_not_dressed_up(run: Recorded) -> None:
    run.error = AssertionError("broken")
    with pytest.raises(AssertionError, match="broken"):
        main([])


def test_a_traceback_is_shown_when_debugging(run: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    run.error = ValueError("no shard")
    assert main(["--logging.level", "DEBUG"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("error: no shard\n")
    Path("c.yaml").write_text("logging: {level: DEBUG}\n")
    assert main(["--config", "c.yaml"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_finished_run_says_so(run: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    with RunDirectory.open_for_training(load_config()) as directory:
        directory.write_result({"loss": 1.0})
    assert main([]) == 0
    assert capsys.readouterr().out == "outputs/P1_experiment is already finished; its result is in result.json\n"


def test_help_shows_every_key_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    printed = "".join(out.split())  # lines are broken anywhere
    for field in iter_fields():
        assert f"--{field.name} " in out
        assert "".join(field.description.split()) in printed
