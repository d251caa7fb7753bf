"""The model against the slow reference: the ten points of official semantics, one by one in `reference.py`."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from tests.parscale import reference
from tests.parscale.models import tiny_backbone, tiny_parscale, tokens

ARCHITECTURES = ["Qwen2", "Llama", "Qwen3", "Mistral"]
STREAMS = [(1, 0), (1, 5), (2, 5), (4, 5), (8, 3)]
TOLERANCE = 2e-5


@pytest.mark.parametrize(("P", "K"), STREAMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_and_weights(architecture, P, K):
    model = tiny_parscale(P, K, architecture)
    ids = tokens(2, 9)
    logits, weights = reference.forward(model.state_dict(), model.config, ids)
    with torch.no_grad():
        assert (model(ids).logits - logits).abs().max() < TOLERANCE
        found = model.model(ids).stream_weights
    if P == 1:
        assert found is None
    else:
        assert found.dtype == torch.float32
        assert (found - weights).abs().max() < TOLERANCE
        assert weights.std() > 0.01, "the test says nothing about the aggregator if all weights are equal"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("P", "K"), STREAMS)
def test_loss_and_gradients(P, K, tied):
    model = tiny_parscale(P, K, tied=tied)
    ids = tokens(2, 8)
    loss = model(ids, labels=ids).loss
    loss.backward()

    state = {name: tensor.detach().clone().requires_grad_() for name, tensor in model.named_parameters()}
    expected = reference.loss(reference.forward(state, model.config, ids)[0], ids)
    expected.backward()
    assert abs(loss.item() - expected.item()) < TOLERANCE
    for name, parameter in model.named_parameters():
        assert (parameter.grad - state[name].grad).abs().max() < TOLERANCE, name


@pytest.mark.parametrize("p", range(1, 9))
def test_dynamic_number_of_streams(p):
    model = tiny_parscale(8, 3)
    ids = tokens(2, 7)
    model.set_streams(p)
    state = reference.first_streams(model.state_dict(), 8, p)
    smaller = tiny_parscale(p, 3).config
    logits, weights = reference.forward(state, smaller, ids)
    with torch.no_grad():
        assert (model(ids).logits - logits).abs().max() < TOLERANCE
        if p > 1:
            assert (model.model(ids).stream_weights - weights).abs().max() < TOLERANCE
        model.set_streams(8)
        full, _ = reference.forward(model.state_dict(), model.config, ids)
        assert (model(ids).logits - full).abs().max() < TOLERANCE


@pytest.mark.parametrize("p", [0, 9, -1])
def test_a_number_of_streams_that_does_not_exist(p):
    with pytest.raises(ValueError, match=f"num_streams is {p}; this model has 8 streams"):
        tiny_parscale(8, 3).set_streams(p)


def official_config(model, **changes):
    """A config.json as the official checkpoints have it: the fields of transformers 4 and no remote code."""
    config = model.config
    return {
        "architectures": ["Qwen2ParScaleForCausalLM"],
        "model_type": "qwen2_parscale",
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "max_window_layers": 2,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "parscale_n": config.parscale_n,
        "parscale_n_tokens": config.parscale_n_tokens,
        "parscale_attn_smooth": config.parscale_attn_smooth,
        "rms_norm_eps": 1e-6,
        "rope_scaling": None,
        "rope_theta": 5000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": "float32",
        "transformers_version": "4.48.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": config.vocab_size,
        **changes,
    }


def write_official(directory, model, **changes):
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    config = {k: v for k, v in official_config(model, **changes).items() if v != "absent"}
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("P", [1, 2, 4, 8])
def test_official_checkpoint_directory_loads_as_it_is(tmp_path, P, tied):
    model = tiny_parscale(P, 5 if P > 1 else 0, tied=tied)
    write_official(tmp_path, model, parscale_n_tokens=5)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    ids = tokens(2, 9)
    logits, _ = reference.forward(model.state_dict(), model.config, ids)
    with torch.no_grad():
        assert (loaded(ids).logits - logits).abs().max() < TOLERANCE


def test_smoothing_left_out_of_a_config_is_the_official_default(tmp_path):
    model = tiny_parscale(2, 5, smooth=0.01)
    write_official(tmp_path, model, parscale_attn_smooth="absent")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.parscale_attn_smooth == 0.01
    ids = tokens(1, 6)
    logits, _ = reference.forward(model.state_dict(), model.config, ids)
    assert (loaded(ids).logits - logits).abs().max() < TOLERANCE


def test_one_stream_without_prefix_is_the_backbone_bit_for_bit():
    backbone = tiny_backbone()
    ids = tokens(2, 9)
    before = backbone(ids).logits
    from parcontrol.parscale.convert import convert_to_parscale_model, create_parscale_config

    model = convert_to_parscale_model(backbone, create_parscale_config(1, 0))
    assert torch.equal(model(ids).logits, before)


def test_permuting_streams_permutes_weights():
    model = tiny_parscale(4, 5)
    ids = tokens(2, 7)
    order = [2, 0, 3, 1]
    with torch.no_grad():
        before = model.model(ids)
        first, _, last = model.model.aggregate_layer
        first.weight.copy_(first.weight.view(24, 24, 4)[..., order].reshape(24, 96))
        last.weight.copy_(last.weight[order])
        last.bias.copy_(last.bias[order])
        for layer in model.model.layers:
            layer.self_attn.prefix_k.copy_(layer.self_attn.prefix_k[order])
            layer.self_attn.prefix_v.copy_(layer.self_attn.prefix_v[order])
        after = model.model(ids)
    torch.testing.assert_close(after.stream_weights, before.stream_weights[..., order], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(after.last_hidden_state, before.last_hidden_state, atol=TOLERANCE, rtol=0)
