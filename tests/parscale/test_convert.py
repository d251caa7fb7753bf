"""Conversion: invariants that hold for every backbone."""

import copy

import pytest
import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel

from parcontrol.parscale.convert import (
    check_supported,
    convert_to_parscale_model,
    create_parscale_config,
    drop_streams,
    parscale_parameters,
)
from parcontrol.parscale.register import ARCHITECTURES
from tests.parscale.models import SIZES, tiny_backbone, tiny_parscale, tokens

CLOSE = {"atol": 2e-5, "rtol": 0}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_conversion_shares_the_backbone_and_is_reversible(architecture):
    backbone = tiny_backbone(architecture)
    before = copy.deepcopy(backbone.state_dict())
    ids = tokens(2, 6)
    expected = backbone(ids).logits
    model = convert_to_parscale_model(backbone, create_parscale_config(2, 4))
    assert type(model).__name__ == f"{architecture}ParScaleForCausalLM"
    shared = dict(backbone.named_parameters())
    new = {name for name, _ in parscale_parameters(model)}
    for name, parameter in model.named_parameters():
        assert (name in new) != (parameter is shared.get(name)), name

    back = drop_streams(model)
    assert type(back) is type(backbone)
    assert back.state_dict().keys() == before.keys()
    assert all(torch.equal(back.state_dict()[name], before[name]) for name in before)
    assert torch.equal(back(ids).logits, expected)
    assert torch.equal(backbone(ids).logits, expected), "the backbone still works by itself"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_context_prefix_is_the_backbone_with_context(architecture):
    """Equal weights over streams that each continue their own text; the text sits at positions −K … −1."""
    backbone = tiny_backbone(architecture)
    context, ids = tokens(3, 4, seed=8), tokens(2, 6)
    model = convert_to_parscale_model(backbone, create_parscale_config(3, 4), context_ids=context)
    positions = torch.arange(-4, 6)[None]
    with torch.no_grad():
        out = model.model(ids)
        for stream in range(3):
            rows = torch.cat([context[stream].repeat(2, 1), ids], 1)
            expected = backbone.model(rows, position_ids=positions).last_hidden_state[:, 4:]
            torch.testing.assert_close(out.stream_hidden_states[stream], expected, **CLOSE)
    torch.testing.assert_close(out.stream_weights, torch.full((2, 6, 3), 1 / 3))


def test_new_parameters_without_context():
    torch.manual_seed(0)
    model = convert_to_parscale_model(tiny_backbone(), create_parscale_config(4, 48))
    prefixes = torch.cat([p.flatten() for n, p in parscale_parameters(model) if "prefix" in n])
    assert prefixes.mean().abs() < 3 * 0.02 / len(prefixes) ** 0.5
    assert abs(prefixes.std() - 0.02) < 0.001
    weights = model.model(tokens(1, 5)).stream_weights
    torch.testing.assert_close(weights, torch.full((1, 5, 4), 0.25))
    first, _, last = model.model.aggregate_layer
    assert not last.weight.any()
    assert not last.bias.any()
    assert first.weight.std() > 0.01


@pytest.mark.parametrize(
    ("P", "prefixes", "aggregator"), [(2, 589_824, 1_608_322), (4, 1_179_648, 3_215_748), (8, 2_359_296, 6_430_600)]
)
def test_parameter_counts_of_qwen2_5_half_a_billion(P, prefixes, aggregator):
    """The published counts, on the meta device."""
    config = transformers.Qwen2Config(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
        vocab_size=151936, tie_word_embeddings=True,
    )  # fmt: skip
    from parcontrol.parscale import modeling_parscale

    model_class = modeling_parscale.Qwen2ParScaleForCausalLM
    with torch.device("meta"):
        fields = {k: v for k, v in config.to_dict().items() if k != "model_type"}
        model = model_class(model_class.config_class(**fields, parscale_n=P, parscale_n_tokens=48))
    counts = {"prefix": 0, "aggregate": 0}
    for name, parameter in parscale_parameters(model):
        counts["prefix" if "prefix" in name else "aggregate"] += parameter.numel()
    assert counts == {"prefix": prefixes, "aggregate": aggregator}


def test_gradient_checkpointing_gives_the_same_gradients():
    model = tiny_parscale(2, 5).train()
    ids = tokens(2, 8)
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(ids, labels=ids).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert all(gradients[0][name].abs().max() > 0 for name, _ in parscale_parameters(model))


def test_only_streams_get_gradients_over_a_frozen_backbone():
    backbone = tiny_backbone().requires_grad_(False)
    model = convert_to_parscale_model(backbone, create_parscale_config(2, 5)).train()
    model.gradient_checkpointing_enable()
    ids = tokens(2, 8)
    model(ids, labels=ids).loss.backward()
    new = {name for name, _ in parscale_parameters(model)}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == new


@pytest.mark.parametrize(
    ("P", "K", "smooth", "message"),
    [
        (0, 48, 0.1, "P is 0; the number of streams must be an integer >= 1"),
        (2.0, 48, 0.1, "P is 2.0"),
        (True, 48, 0.1, "P is True"),
        (2, 0, 0.1, "prefix_length is 0; at P = 2 it must be an integer >= 1"),
        (1, -1, 0.1, "prefix_length is -1; at P = 1 it must be an integer >= 0"),
        (2, 48, 1.0, r"attn_smooth is 1.0; it must be a number in \[0, 1\)"),
    ],
)
def test_bad_configurations(P, K, smooth, message):
    with pytest.raises(ValueError, match=message):
        create_parscale_config(P, K, smooth)


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (tokens(2, 5), r"context_ids has shape \[2, 5\]; \[P, prefix_length\] = \[2, 4\] is needed"),
        (tokens(2, 4) + 100, "the vocabulary is 0 … 60"),
        (tokens(1, 4).repeat(2, 1), "two equal rows"),
    ],
)
def test_bad_context(context, message):
    with pytest.raises(ValueError, match=message):
        convert_to_parscale_model(tiny_backbone(), create_parscale_config(2, 4), context_ids=context)


def unsupported_models():
    small = {k: v for k, v in SIZES.items() if k != "rope_parameters"}
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "vocab_size": 61}
    with torch.device("meta"):
        yield GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2)), "GPT2LMHeadModel .*ForCausalLM decoder"
        yield (
            transformers.MistralForCausalLM(transformers.MistralConfig(**small, sliding_window=16)),
            "sliding window of 16",
        )
        yield (
            transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**sizes)),
            "Gemma2ForCausalLM .*sliding_attention",
        )
        yield (
            transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**sizes, num_attention_heads=4)),
            "GPTNeoX.*layers",
        )
        yield transformers.MambaForCausalLM(transformers.MambaConfig(**sizes)), "MambaForCausalLM .*self_attn"
        yield transformers.OPTForCausalLM(transformers.OPTConfig(**sizes, num_attention_heads=4)), "OPTForCausalLM .*"
        yield transformers.MixtralForCausalLM(transformers.MixtralConfig(**small)), "mixture of experts"
        yield transformers.Qwen2Model(transformers.Qwen2Config(**small)), "Qwen2Model .*ForCausalLM decoder"
    yield torch.nn.Linear(2, 2), "Linear .*not a model of transformers"
    yield tiny_parscale(2, 4), "it is one already"


def test_what_is_not_supported_is_refused_by_name():
    for model, message in unsupported_models():
        with pytest.raises(ValueError, match=f"cannot become a ParScale model: .*|{message}") as error:
            check_supported(model)
        assert error.match(message)


def test_dropping_streams_that_are_not_there():
    with pytest.raises(ValueError, match="Qwen2ForCausalLM is not a ParScale model"):
        drop_streams(tiny_backbone())


def test_conversion_draws_nothing_of_the_backbone_anew():
    """NanoChat's own initialisation of an attention module draws its output projection, which is the backbone's."""
    backbone = transformers.NanoChatForCausalLM(transformers.NanoChatConfig(**SIZES)).eval()
    before = copy.deepcopy(backbone.state_dict())
    model = convert_to_parscale_model(backbone, create_parscale_config(2, 3))
    assert all(torch.equal(backbone.state_dict()[name], before[name]) for name in before)
    for layer in model.model.layers:
        assert 0.01 < layer.self_attn.prefix_k.std() < 0.03


def test_differential_attention_is_refused():
    model = transformers.DiffLlamaForCausalLM(transformers.DiffLlamaConfig(**SIZES))
    with pytest.raises(
        ValueError, match="DiffLlamaForCausalLM cannot become a ParScale model: its attention is not one"
    ):
        check_supported(model)


def test_dropped_streams_leave_no_trace_in_the_configuration():
    backbone = drop_streams(tiny_parscale(2))
    assert not [field for field in backbone.config.to_dict() if field.startswith("parscale")]


@pytest.mark.parametrize("name", ["some/deep/gone/path", "/nonexistent/dir", "weird name", "someone/unreachable"])
def test_a_model_converts_wherever_it_came_from(name):
    backbone = tiny_backbone()
    backbone.config.name_or_path = name
    model = convert_to_parscale_model(backbone, create_parscale_config(2, 3))
    assert model.config.parscale_base_license == "not stated"


@pytest.mark.parametrize(
    "card", [b"---\nlicense: : :\n---\n", b"---\n- a\n---\n", b"---\nlicense: [mit]\n---\n", b"\xff\xfe\x00"]
)
def test_a_model_converts_whatever_its_card_says(card, tmp_path):
    (tmp_path / "README.md").write_bytes(card)
    backbone = tiny_backbone()
    backbone.config.name_or_path = str(tmp_path)
    model = convert_to_parscale_model(backbone, create_parscale_config(2, 3))
    assert model.config.parscale_base_license == "not stated"


@pytest.mark.parametrize("streams", [0, 3, 1.0, True, "2", None])
def test_a_number_of_streams_that_there_is_not(streams):
    with pytest.raises(ValueError, match="must be an integer in 1 … 2"):
        tiny_parscale(2).set_streams(streams)
