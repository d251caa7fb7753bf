"""What is loaded is what was asked for: precision, delta, adapter, streams; and never a pickle or somebody's code."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from parcontrol.leaderboard.evaluate import precision
from parcontrol.leaderboard.evaluate.errors import ModelRefusedError
from parcontrol.leaderboard.evaluate.load import Loaded, best_device, load
from parcontrol.leaderboard.evaluate.model_spec import ModelSpec
from parcontrol.leaderboard.model_source import content_hash
from parcontrol.parscale.convert import convert_to_parscale_model, create_parscale_config

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def spec(directory: Path, precision: str = "float32", **fields: object) -> ModelSpec:
    return ModelSpec("local/tiny", content_hash(directory), path=str(directory), precision=precision, **fields)


@pytest.fixture
def copy(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may change."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "copy"))


def saved(directory: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(directory / "model.safetensors"))


def change_config(directory: Path, **fields: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("name", DTYPES)
def test_weights_have_the_precision_that_was_asked_for(name: str, tiny_model_dir: Path) -> None:
    model = load(spec(tiny_model_dir, name), CPU).model
    assert {parameter.dtype for parameter in model.parameters()} == {DTYPES[name]}
    for key, weight in saved(tiny_model_dir).items():
        assert torch.equal(model.state_dict()[key], weight.to(DTYPES[name]))
    assert not model.training


@pytest.mark.parametrize(
    ("name", "library"), [("8bit", "bitsandbytes"), ("4bit", "bitsandbytes"), ("GPTQ", "gptqmodel")]
)
def test_a_precision_without_its_library_is_refused_with_that_reason(
    name: str, library: str, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "find_spec", lambda name: None)
    with pytest.raises(ModelRefusedError, match=f"{name} needs .*{library}"):
        load(spec(tiny_model_dir, name), CPU)


def test_a_quantised_checkpoint_runs_as_nothing_else(copy: Path) -> None:
    change_config(copy, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelRefusedError, match="saved in GPTQ; it cannot run as float16"):
        load(spec(copy, "float16"), CPU)


def test_an_unknown_precision_is_refused(tiny_model_dir: Path) -> None:
    with pytest.raises(ModelRefusedError, match="'float8' is not one of float32"):
        load(spec(tiny_model_dir, "float8"), CPU)


class Bomb:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_pickled_weights_are_not_opened(copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(ModelRefusedError, match=r"model\.safetensors"):
        load(spec(copy), CPU)
    assert not (tmp_path / "exploded").exists()


def test_a_checkpoint_without_some_weights_is_refused(copy: Path) -> None:
    weights = saved(copy)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelRefusedError, match=r"lacks 1 of its weights, such as model\.layers\.1\.mlp\.up_proj"):
        load(spec(copy), CPU)


def test_damaged_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(ModelRefusedError, match="cannot be loaded"):
        load(spec(copy), CPU)


def test_a_directory_that_has_changed_is_refused(copy: Path) -> None:
    submitted = spec(copy)
    change_config(copy, rope_theta=20_000.0)
    with pytest.raises(ModelRefusedError, match="no longer those that were submitted"):
        load(submitted, CPU)


def test_code_of_the_repository_does_not_run(copy: Path, tmp_path: Path) -> None:
    change_config(
        copy, model_type="unheard_of", auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.M"}
    )
    (copy / "code.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    with pytest.raises(ModelRefusedError, match="local/tiny needs code of its own"):
        load(spec(copy), CPU)
    assert not (tmp_path / "ran").exists()


def test_a_chat_template_that_is_missing_is_refused(tiny_model_dir: Path) -> None:
    with pytest.raises(ModelRefusedError, match="its tokenizer has none"):
        load(spec(tiny_model_dir, chat_template=True), CPU)


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelRefusedError, match="device 'cuda:77' cannot be used"):
        best_device("cuda:77")


@pytest.mark.parametrize("name", DTYPES)
def test_a_delta_is_added_once_to_every_weight_in_the_given_precision(
    name: str, save_tiny_model: Callable[..., Path]
) -> None:
    # Tied models: the embeddings are the output head too, and must not get the delta twice.
    base, delta = save_tiny_model(seed=1), save_tiny_model(seed=2)
    asked = spec(delta, name, weight_type="Delta", base_model="local/base", base_path=str(base))
    loaded = load(asked, CPU)
    ours, state = saved(base), loaded.model.state_dict()
    for key, weight in saved(delta).items():
        assert torch.equal(state[key], weight.to(DTYPES[name]) + ours[key].to(DTYPES[name])), key
    assert torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])
    assert loaded.base_sha == content_hash(base)


def test_a_delta_of_another_shape_is_refused(save_tiny_model: Callable[..., Path], tiny_untied_model_dir: Path) -> None:
    delta = save_tiny_model(seed=2)
    asked = spec(delta, weight_type="Delta", base_model="local/base", base_path=str(tiny_untied_model_dir))
    with pytest.raises(ModelRefusedError, match=r"lm_head\.weight is nothing in the delta and \(384, 32\) in"):
        load(asked, CPU)
    with pytest.raises(ModelRefusedError, match="cannot be loaded as 4bit"):
        load(replace(asked, precision="4bit"), CPU)
    with pytest.raises(ModelRefusedError, match="need a base model"):
        load(replace(asked, base_model=""), CPU)


RANK, ALPHA = 4, 16


@pytest.fixture
def adapter(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A LoRA adapter of the tiny model's query projections, with weights that are not zero."""
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config)
    torch.manual_seed(0)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def load_adapter(adapter: Path, base: Path, name: str = "float32") -> Loaded:
    return load(spec(adapter, name, weight_type="Adapter", base_model="local/base", base_path=str(base)), CPU)


def test_an_adapter_acts_as_if_its_product_were_added_to_the_weights(adapter: Path, tiny_model_dir: Path) -> None:
    loaded = load_adapter(adapter, tiny_model_dir)
    merged = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    parts = load_file(adapter / "adapter_model.safetensors")
    with torch.no_grad():
        for number, layer in enumerate(merged.model.layers):
            down, up = (
                parts[f"base_model.model.model.layers.{number}.self_attn.q_proj.lora_{part}.weight"] for part in "AB"
            )
            layer.self_attn.q_proj.weight += ALPHA / RANK * up @ down
        ids = torch.arange(3, 40)[None]
        expected, plain = merged(ids).logits, AutoModelForCausalLM.from_pretrained(tiny_model_dir)(ids).logits
        ours = loaded.model(ids).logits
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, plain, atol=1e-2)
    assert loaded.base_sha == content_hash(tiny_model_dir)


def test_an_adapter_has_the_precision_of_the_request(adapter: Path, tiny_model_dir: Path) -> None:
    model = load_adapter(adapter, tiny_model_dir, "bfloat16").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_pickled_adapter_is_not_opened(adapter: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(ModelRefusedError, match="only safetensors are loaded"):
        load_adapter(adapter, tiny_model_dir)
    assert not (tmp_path / "exploded").exists()


def test_a_parscale_checkpoint_is_a_model_like_any_other(tiny_model_dir: Path, tmp_path: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    streams = convert_to_parscale_model(plain, create_parscale_config(P=2, prefix_length=4))
    streams.save_pretrained(tmp_path / "parscale")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model_dir / file, tmp_path / "parscale")
    loaded = load(spec(tmp_path / "parscale"), CPU)
    assert loaded.streams == 2
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids).logits, streams.eval()(ids).logits)
