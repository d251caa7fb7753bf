"""Sizes of the models that benchmarks take with random weights, where nothing but sizes matters."""

from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config

SHAPES = {
    "SmolLM2-135M": LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        eos_token_id=None,
        pad_token_id=0,
    ),
    "Qwen2.5-0.5B": Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=None,
        pad_token_id=0,
    ),
}


def random_backbone(shape: str, dtype, device) -> PreTrainedModel:
    """A plain model with random weights."""
    return AutoModelForCausalLM.from_config(SHAPES[shape], dtype=dtype).to(device)
