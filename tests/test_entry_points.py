"""The promised scripts and import names, as a user meets them: from the root of the repository."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

from parcontrol.runs import RunDirectory

# Each documented module with the modules of the package that its names come from.
SHIMS = {
    "utils.model_utils": {
        "parcontrol.parscale.convert": [
            "convert_to_parscale_model",
            "create_parscale_config",
            "drop_streams",
            "parscale_parameters",
        ],
        "parcontrol.parscale.loading": ["load_backbone"],
    },
    "utils.data_utils": {
        "parcontrol.data": ["TrainStream", "context_ids", "load_validation", "open_corpus", "verify_run"]
    },
    "utils.analysis_utils": {
        "parcontrol.analysis.report": ["generate_report"],
        "parcontrol.analysis.results": ["load_experiment_results"],
    },
    "utils.logging_setup": {"parcontrol.logging_setup": ["setup_logging"]},
    "utils.wandb_setup": {"parcontrol.training.wandb": ["WandbCallback"]},
    "utils.memory_utils": {"parcontrol.diagnostics.memory": ["MemoryMonitor"]},
    "utils.stream_diagnostics": {
        "parcontrol.diagnostics.streams": [
            "CollapseWatch",
            "StreamAccumulator",
            "collapsed",
            "entropy",
            "gini",
            "kl_uniform",
            "minimum_entropy",
            "relative_entropy",
        ]
    },
    "ParScale.modeling_qwen2_parscale": {
        "parcontrol.parscale.modeling_parscale": ["Qwen2ParScaleForCausalLM", "Qwen2ParScaleModel"]
    },
    "ParScale.configuration_qwen2_parscale": {"parcontrol.parscale.configuration_parscale": ["Qwen2ParScaleConfig"]},
    "ParScale.cost_analysis": {"parcontrol.cli.cost": ["main"]},
    "ParScale.parametric_fit": {"parcontrol.cli.fit": ["main"]},
}


@pytest.fixture
def at_root(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    monkeypatch.syspath_prepend(str(repository))


def python(
    *arguments: str | Path, cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    env = os.environ | dict(environment or {})
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=cwd, env=env)


def test_every_shim_is_listed(repository: Path) -> None:
    files = [path for folder in ("utils", "ParScale") for path in (repository / folder).glob("*.py")]
    modules = {f"{path.parent.name}.{path.stem}" for path in files if path.stem != "__init__"}
    assert modules == set(SHIMS)


@pytest.mark.usefixtures("at_root")
@pytest.mark.parametrize("name", SHIMS)
def test_a_shim_holds_the_package_s_own_objects(name: str) -> None:
    shim: ModuleType = importlib.import_module(name)
    promised = {attribute: module for module, names in SHIMS[name].items() for attribute in names}
    assert set(shim.__all__) == set(promised)
    for attribute, module in promised.items():
        assert getattr(shim, attribute) is getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize(
    "name",
    [
        "utils.model_utils",
        "utils.analysis_utils",
        "ParScale.modeling_qwen2_parscale",
        "ParScale.configuration_qwen2_parscale",
        "ParScale.cost_analysis",
    ],
)
def test_a_shim_can_be_the_first_import(name: str, repository: Path) -> None:
    done = python("-c", f"import {name}", cwd=repository)
    assert done.returncode == 0, done.stderr


def test_cost_analysis_prints_the_official_line(repository: Path) -> None:
    flags = "--hidden_size 896 --intermediate_size 4864 --P 2 --batch_size 1".split()
    done = python("ParScale/cost_analysis.py", *flags, cwd=repository)
    assert (done.returncode, done.stdout) == (0, "Memory: 1.292GB; Latency: 0.049s\n")


@pytest.mark.parametrize(
    "script",
    ["train_parscale.py", "run_multi_P_experiment.py", "ParScale/cost_analysis.py", "ParScale/parametric_fit.py"],
)
def test_a_script_explains_itself(script: str, repository: Path) -> None:
    done = python(script, "--help", cwd=repository)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


def test_train_parscale_refuses_in_one_line(repository: Path) -> None:
    done = python("train_parscale.py", "--P", "0", cwd=repository)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: parscale.P: '0' is not allowed: input should be greater than or equal to 1\n"


def test_train_parscale_trains_and_says_when_it_is_finished(
    repository: Path, tmp_path: Path, tiny_model_dir: Path, tiny_corpus_dir: Path
) -> None:
    settings = {
        "--model.name": tiny_model_dir,
        "--data.repo": tiny_corpus_dir,
        "--output-dir": tmp_path / "run",
        "--logging.directory": tmp_path / "logs",
        "--target-tokens": 512,
        "--training.warmup_tokens": 64,
        "--P": 2,
        "--device": "cpu",
        "--training.mixed_precision": "fp32",
        "--parscale.prefix_length": 4,
        "--data.sequence_length": 32,
        "--data.num_shards": 2,
        "--data.validation_tokens": 256,
        "--data.num_workers": 0,
        "--training.gradient_accumulation_steps": 2,
        "--training.log_interval_steps": 2,
    }
    command = [repository / "train_parscale.py", *(str(part) for pair in settings.items() for part in pair)]

    first = python(*command, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    run = RunDirectory(tmp_path / "run")
    assert run.finished
    assert json.loads((run.path / "result.json").read_text()) == run.read_result()

    again = python(*command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "already finished" in again.stdout

    other = python(*command, "--seed", "1", cwd=tmp_path)
    assert (other.returncode, other.stdout) == (2, "")
    assert "training.seed 42 there, 1 now" in other.stderr
    assert other.stderr.count("\n") == 1

    verified = python("-m", "parcontrol.cli.main", "data", "verify", run.path, cwd=tmp_path)
    assert verified.returncode == 0, verified.stderr
    assert verified.stdout.startswith("confirmed: 512 tokens of 2 shards up to step 8")

    streams = python("-m", "parcontrol.cli.main", "streams", run.path, "--json", cwd=tmp_path)
    assert [json.loads(line)["step"] for line in streams.stdout.splitlines()] == [2, 4, 6, 8]


def test_test_setup_fails_clearly_where_the_package_is_not_installed(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "parcontrol.py").write_text("raise ModuleNotFoundError('No module', name='pydantic')\n")
    done = python("test_setup.py", cwd=repository, environment={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    assert done.stderr == "failed: pydantic is not installed; remedy: pip install -r requirements.txt\n"


@pytest.mark.parametrize(
    "first",
    [
        "from transformers import AutoModelForCausalLM",
        "from transformers import AutoTokenizer",
        "from transformers import Qwen2ForCausalLM",
        "from parcontrol.parscale.modeling_parscale import Qwen2ParScaleForCausalLM",
    ],
)
def test_the_auto_classes_know_parscale_whatever_is_imported_first(first: str, repository: Path) -> None:
    program = f"""
import parcontrol
{first}
from transformers import AutoConfig, AutoModelForCausalLM
sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
config = AutoConfig.for_model("qwen2_parscale", num_key_value_heads=1, parscale_n=2, **sizes)
model = AutoModelForCausalLM.from_config(config)
print(type(model).__name__, type(config).__module__)
"""
    done = python("-c", program, cwd=repository)
    assert done.stdout == "Qwen2ParScaleForCausalLM parcontrol.parscale.configuration_parscale\n", done.stderr
