"""Tiny models with random weights in every parameter, so that no term can hide behind a zero or an equality."""

import torch
import transformers

from parcontrol.parscale.convert import convert_to_parscale_model, create_parscale_config

VOCABULARY = 61
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
}
EXTRA = {
    "Gemma": {"head_dim": 8},
    "Mistral": {"sliding_window": None},
    "Phi3": {"sliding_window": None},
    "Qwen3": {"head_dim": 8},
    "SmolLM3": {"use_sliding_window": False},
    "Starcoder2": {"sliding_window": None},
}


def tiny_backbone(architecture="Qwen2", tied=True, seed=0, **overrides):
    torch.manual_seed(seed)
    fields = {**SIZES, **EXTRA.get(architecture, {}), "tie_word_embeddings": tied, **overrides}
    config = getattr(transformers, f"{architecture}Config")(**fields)
    model = getattr(transformers, f"{architecture}ForCausalLM")(config).eval()
    return randomise(model)


def tiny_parscale(P=2, K=5, architecture="Qwen2", tied=True, seed=0, smooth=0.1):
    backbone = tiny_backbone(architecture, tied, seed)
    return randomise(convert_to_parscale_model(backbone, create_parscale_config(P, K, smooth)), seed + 1)


@torch.no_grad()
def randomise(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator) * (0.5 if "prefix" in name else 0.15)
        parameter.copy_(1 + noise if "norm" in name else noise)
    return model


def tokens(*shape, seed=3):
    return torch.randint(2, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))
