"""Saved directories: complete, exact, and loadable where parcontrol is not installed."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from parcontrol.parscale.convert import convert_to_parscale_model, create_parscale_config
from parcontrol.parscale.register import ARCHITECTURES
from tests.parscale.models import tiny_backbone, tiny_parscale, tokens

STREAMS = [(1, 0), (1, 5), (2, 5), (8, 3)]

WITHOUT_PARCONTROL = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "parcontrol":
            raise ModuleNotFoundError("parcontrol is not installed here", name=name)
sys.meta_path.insert(0, Absent())
import torch
from transformers import AutoModelForCausalLM
directory, again = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)
inputs = torch.load(directory + "/inputs.pt")
with torch.no_grad():
    logits = model(inputs["ids"]).logits
assert torch.equal(logits, inputs["logits"]), (logits - inputs["logits"]).abs().max()
assert torch.equal(model.generate(inputs["ids"], max_new_tokens=5, do_sample=False), inputs["generated"])
model.save_pretrained(again)
print(type(model).__name__)
"""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_registered_architecture_loads_by_its_model_type(tmp_path, architecture):
    backbone = tiny_backbone(architecture)
    model = convert_to_parscale_model(backbone, create_parscale_config(2, 4))
    model.save_pretrained(tmp_path)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is type(model)


@pytest.mark.parametrize("architecture", ["Qwen2", "Llama"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("P", "K"), STREAMS)
def test_save_and_load_is_exact(tmp_path, P, K, tied, architecture):
    model = tiny_parscale(P, K, architecture, tied)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    for (name, saved), (_, found) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert torch.equal(saved, found), name
    ids = tokens(2, 7)
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize(("architecture", "P"), [("Qwen2", 2), ("Qwen2", 1), ("Llama", 2), ("Cohere", 2)])
def test_loads_without_parcontrol_to_the_same_bits(tmp_path, architecture, P):
    model = tiny_parscale(P, 5, architecture)
    directory, again = tmp_path / "model", tmp_path / "again"
    model.save_pretrained(directory)
    ids = tokens(2, 7)
    with torch.no_grad():
        expected = {
            "ids": ids,
            "logits": model(ids).logits,
            "generated": model.generate(ids, max_new_tokens=5, do_sample=False),
        }
    torch.save(expected, directory / "inputs.pt")
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_PARCONTROL, str(directory), str(again)],
        capture_output=True, text=True, env={"HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == type(model).__name__
    # what was saved there travels on
    ours = dict(AttentionInterface._global_mapping)
    reloaded = AutoModelForCausalLM.from_pretrained(again, trust_remote_code=True)
    assert ours.items() <= AttentionInterface._global_mapping.items(), "another copy's functions have other names"
    assert torch.equal(reloaded(ids).logits, expected["logits"])


@pytest.mark.parametrize("tied", [True, False])
def test_what_official_code_reads(tmp_path, tied):
    """Key names and the top-level fields of transformers 4."""
    model = tiny_parscale(4, 5, tied=tied)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    expected = {
        "model_type": "qwen2_parscale",
        "architectures": ["Qwen2ParScaleForCausalLM"],
        "rope_theta": 5000.0,
        "parscale_n": 4,
        "parscale_n_tokens": 5,
        "parscale_attn_smooth": 0.1,
        "tie_word_embeddings": tied,
    }
    assert {name: config.get(name) for name in expected} == expected
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
    assert shapes["model.layers.1.self_attn.prefix_k"] == (4, 2, 5, 6)
    assert shapes["model.layers.1.self_attn.prefix_v"] == (4, 2, 5, 6)
    assert shapes["model.aggregate_layer.0.weight"] == (24, 96)
    assert shapes["model.aggregate_layer.2.weight"] == (4, 24)
    assert shapes["model.aggregate_layer.0.bias"] == (24,)
    assert shapes["model.aggregate_layer.2.bias"] == (4,)
    assert ("lm_head.weight" in shapes) is not tied


def test_scaled_rope_is_written_where_transformers_4_reads_it(tmp_path):
    rope = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    backbone = tiny_backbone(rope_parameters=rope)
    model = convert_to_parscale_model(backbone, create_parscale_config(2, 5))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["rope_theta"] == 5000.0
    assert config["rope_scaling"]["rope_type"] == "yarn"
    assert config["rope_scaling"]["factor"] == 4.0
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = tokens(1, 9)
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_one_stream_with_prefix_has_a_model_type_that_official_code_refuses(tmp_path):
    model = tiny_parscale(1, 5)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "qwen2_parscale_prefix"
    assert AutoConfig.from_pretrained(tmp_path).prefix_length == 5


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("parscale_n", 0, "parscale_n is 0"),
        ("parscale_n_tokens", -1, "parscale_n_tokens is -1"),
        ("parscale_attn_smooth", 1.0, "parscale_attn_smooth is 1.0"),
    ],
)
def test_impossible_configurations(tmp_path, field, value, message):
    model = tiny_parscale(2, 5)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(ValueError, match=message):
        AutoConfig.from_pretrained(tmp_path)


def test_bfloat16_round_trip(tmp_path):
    """`model.to(bfloat16)` rounds the rotary frequencies too, loading does not: so both sides are loaded."""
    tiny_parscale(2, 5).save_pretrained(tmp_path / "float32")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "float32", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "bfloat16")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "bfloat16")
    assert loaded.dtype == torch.bfloat16
    ids = tokens(2, 7)
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_model_card_names_base_model_and_licence(tmp_path):
    base = tmp_path / "base"
    tiny_backbone().save_pretrained(base)
    (base / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    model = convert_to_parscale_model(AutoModelForCausalLM.from_pretrained(base), create_parscale_config(2, 5))
    model.save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert f"Base model: {base}, licence: mit" in card
    assert "Training data: not recorded" in card

    (tmp_path / "saved" / "README.md").write_text("a card of somebody's own")
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "README.md").read_text() == "a card of somebody's own"
