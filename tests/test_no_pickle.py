"""What is read from a disk cannot run code: weights are safetensors, and no call in the code base opens a pickle."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parcontrol.parscale.loading import load_backbone

# Modules that make objects out of bytes by running what these say. Their exceptions may be caught.
PICKLING = {"_pickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
EXCEPTIONS = {"pickle.PickleError", "pickle.UnpicklingError"}
# What reads or writes a pickle under another name. torch's distributed checkpoints keep theirs in `.metadata`.
CALLS = {
    "numpy.lib.format.read_array",
    "pandas.read_pickle",
    "torch.distributed.checkpoint.FileSystemReader",
    "torch.distributed.checkpoint.FileSystemWriter",
    "torch.distributed.checkpoint.load",
    "torch.distributed.checkpoint.save",
    "torch.hub.load",
    "torch.hub.load_state_dict_from_url",
    "torch.jit.load",
    "torch.load",
    "torch.save",
}
METHODS = {"to_pickle"}
# Classes with a `from_pretrained` that reads no weights. Adapters are looked at before peft is called
# (test_a_pickled_adapter_is_not_opened).
WITHOUT_WEIGHTS = ("config", "peftmodel", "processor", "tokenizer")
# Models that score, of which the Hub has nothing but pickles: read with `weights_only`, which builds tensors and calls
# nothing else (test_scoring_models.py tries).
READS_RESTRICTED_PICKLES = "src/parcontrol/leaderboard/scoring/models.py"


def find_pickles(source: str, restricted: bool = False) -> Iterator[str]:
    """Yields `LINE: what` for every place in a program that would open a pickle.

    Args:
        source: The program.
        restricted: Whether models may be loaded from pickles with `weights_only=True`.
    """
    tree = ast.parse(source)
    names = dict(_imported(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found = [name for name in _imports_of(node).values() if _pickles(name) and "." in name]
        elif isinstance(node, ast.Attribute):
            name = _dotted(node, names)
            found = [name] if name and _pickles(name) else []
        elif isinstance(node, ast.Call):
            found = list(_in_call(node, names, restricted))
        else:
            continue
        for what in found:
            yield f"{node.lineno}: {what}"


def _pickles(name: str) -> bool:
    return name.split(".")[0] in PICKLING and name not in EXCEPTIONS


def _in_call(call: ast.Call, names: dict[str, str], restricted: bool) -> Iterator[str]:
    name = _dotted(call.func, names) or ""
    method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    given = {keyword.arg: keyword.value for keyword in call.keywords}

    def is_given(argument: str, value: object) -> bool:
        found = given.get(argument)
        return isinstance(found, ast.Constant) and found.value is value

    if name in CALLS or method in METHODS:
        yield name or method
    if name == "numpy.load" and not is_given("allow_pickle", False):
        yield "numpy.load without allow_pickle=False"
    if method == "from_pretrained" and _loads_weights(call.func):
        safe = is_given("use_safetensors", True) or "gguf_file" in given
        if not safe and not (restricted and is_given("weights_only", True)):
            yield "from_pretrained without use_safetensors=True"


def _loads_weights(function: ast.expr) -> bool:
    """Whether a `from_pretrained` is one of a model, under whatever name its class goes."""
    owner = ast.unparse(function).rpartition(".")[0].lower()
    return not owner.endswith(WITHOUT_WEIGHTS)


def _imports_of(node: ast.Import | ast.ImportFrom) -> dict[str, str]:
    """Local names with what they stand for."""
    if isinstance(node, ast.ImportFrom):
        return {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return {
        alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
        for alias in node.names
    }


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from _imports_of(node).items()


def _dotted(node: ast.expr, names: dict[str, str]) -> str | None:
    """The full name of `a.b.c`, where `a` was imported."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := _dotted(node.value, names)):
        return f"{owner}.{node.attr}"
    return None


def test_no_program_opens_a_pickle(repository: Path) -> None:
    folders = ("src", "utils", "ParScale", "leaderboard", "benchmarks", "supply")
    files = [*repository.glob("*.py"), *(path for folder in folders for path in (repository / folder).rglob("*.py"))]
    assert len(files) > 150
    found = [
        f"{path.relative_to(repository)}:{place}"
        for path in files
        for place in find_pickles(
            path.read_text(encoding="utf-8"), str(path.relative_to(repository)) == READS_RESTRICTED_PICKLES
        )
    ]
    assert found == []


@pytest.mark.parametrize(
    "program",
    [
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=True)",
        "from torch import load as read\nread(path)",
        "import torch as t\nt.save(model, path)",
        "import pickle\npickle.load(file)",
        "import pickle\nread = pickle.loads",
        "from pickle import load",
        "from joblib import load",
        "import joblib\njoblib.load(path)",
        "import numpy as np\nnp.load(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy as np\nnp.load(path, allow_pickle=flag)",
        "import pandas as pd\npd.read_pickle(path)",
        "frame.to_pickle(path)",
        "import torch.distributed.checkpoint as dcp\ndcp.load(state, checkpoint_id=path)",
        "from transformers import AutoModelForCausalLM\nAutoModelForCausalLM.from_pretrained(path)",
        "import transformers\ntransformers.AutoModel.from_pretrained(path, use_safetensors=False)",
        "from transformers import Qwen2ForCausalLM\nQwen2ForCausalLM.from_pretrained(path)",
        "auto_class.from_pretrained(path, weights_only=True)",
        "_auto_class(config).from_pretrained(path)",
    ],
)
def test_what_opens_a_pickle_is_found(program: str) -> None:
    assert len(list(find_pickles(program))) == 1


@pytest.mark.parametrize(
    "program",
    [
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "from safetensors.torch import load_file\nload_file(path)",
        "import pickle\ntry: f()\nexcept pickle.UnpicklingError: pass",
        "import json\njson.load(file)",
        "from transformers import AutoTokenizer\nAutoTokenizer.from_pretrained(path)",
        "from transformers import AutoModel\nAutoModel.from_pretrained(path, use_safetensors=True)",
        "from transformers import AutoModel\nAutoModel.from_pretrained(path, gguf_file=name)",
        "from torch.distributed.checkpoint.state_dict import get_model_state_dict\nget_model_state_dict(model)",
    ],
)
def test_what_opens_none_is_left_alone(program: str) -> None:
    assert list(find_pickles(program)) == []


def test_pickled_weights_beside_a_config_are_not_opened(tiny_model_dir: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "exploded",))

    for file in tiny_model_dir.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_backbone(str(tmp_path))
    assert not (tmp_path / "exploded").exists()
