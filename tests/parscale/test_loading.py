"""Where a backbone comes from, and what is said when it cannot be had."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from parcontrol.parscale.loading import base_model_license, load_backbone, resolve_model


def test_a_directory_stands_for_itself(tiny_model_dir):
    model, tokenizer = load_backbone(str(tiny_model_dir), dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert tokenizer.eos_token_id is not None


def test_a_mirror_comes_before_the_hub(tiny_model_dir, tmp_path, monkeypatch):
    mirrored = tmp_path / "models" / "somebody" / "tiny"
    shutil.copytree(tiny_model_dir, mirrored)
    assert resolve_model("somebody/tiny", str(tmp_path)) == str(mirrored)
    monkeypatch.setenv("PARCONTROL_MIRROR", str(tmp_path))
    assert resolve_model("somebody/tiny") == str(mirrored)
    assert resolve_model("somebody/else") == "somebody/else"
    load_backbone("somebody/tiny")


def test_what_cannot_be_had_is_named(tiny_model_dir, tmp_path):
    with pytest.raises(ValueError, match="model 'no/such-model' cannot be loaded"):
        load_backbone("no/such-model")
    without_tokenizer = tmp_path / "model"
    shutil.copytree(tiny_model_dir, without_tokenizer, ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(ValueError, match=f"model '{without_tokenizer}' cannot be loaded"):
        load_backbone(str(without_tokenizer))


def test_damaged_weights_are_refused_with_what_is_wrong(tiny_model_dir, tmp_path):
    with pytest.raises(ValueError, match="there is no such directory"):
        load_backbone(str(tmp_path / "nowhere"))
    model = shutil.copytree(tiny_model_dir, tmp_path / "model")
    weights = model / "model.safetensors"
    tensors = load_file(weights)
    lost = next(name for name in tensors if name.endswith("up_proj.weight"))
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=f"cannot be loaded: it lacks 1 of its weights, such as {lost}$"):
        load_backbone(str(model))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"model '{model}' cannot be loaded: .*header"):
        load_backbone(str(model))
    weights.unlink()
    with pytest.raises(ValueError, match=f"model '{model}' cannot be loaded: .*safetensors"):
        load_backbone(str(model))


def test_a_licence_is_never_guessed(tiny_model_dir, tmp_path):
    assert base_model_license(str(tiny_model_dir)) == "not stated"
    assert base_model_license("no/such-model") == "not stated"
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert base_model_license(str(tmp_path)) == "apache-2.0"
