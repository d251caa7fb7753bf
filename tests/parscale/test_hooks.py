"""The private hooks of transformers that the model stands on, each by name, so that an upgrade that moves one says so.

What they do is tested by behaviour elsewhere; here a failure names the hook.
"""

import inspect

import torch
from transformers import AttentionInterface, AttentionMaskInterface, GenerationMixin, PreTrainedModel
from transformers.cache_utils import StaticLayer
from transformers.masking_utils import sdpa_mask

from parcontrol.parscale import modeling_parscale
from tests.parscale.models import tiny_parscale, tokens


def test_attention_functions_are_found_by_name():
    for name in modeling_parscale.ATTENTION.values():
        assert AttentionInterface()[name] is modeling_parscale.prefix_attention
        assert name in AttentionMaskInterface().valid_keys()


def test_attention_implementation_is_chosen_through_one_method():
    assert "attn_implementation" in inspect.signature(PreTrainedModel._check_and_adjust_attn_implementation).parameters
    assert tiny_parscale(2, 5).config._attn_implementation == modeling_parscale.ATTENTION["sdpa"]


def test_keyword_arguments_reach_the_attention_function(monkeypatch):
    seen = []
    original = modeling_parscale.prefix_attention

    def spy(*args, **kwargs):
        seen.append(kwargs["num_streams"])
        return original(*args, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, modeling_parscale.ATTENTION["sdpa"], spy)
    tiny_parscale(4, 5)(tokens(1, 3))
    assert seen == [4, 4], "one call a layer"


def test_no_mask_is_made_without_padding():
    """`prefix_attention` reads None as causal."""
    arguments = {"batch_size": 2, "q_length": 5, "kv_length": 5, "q_offset": 0, "kv_offset": 0}
    assert sdpa_mask(**arguments, attention_mask=None) is None
    assert sdpa_mask(**arguments, attention_mask=torch.ones(2, 5, dtype=torch.bool)) is None


def test_beam_search_asks_the_model_to_reorder():
    assert "_reorder_cache" in inspect.getsource(GenerationMixin._beam_search)


def test_generate_makes_static_caches_and_asks_about_compilation_through_methods():
    prepare = inspect.signature(GenerationMixin._prepare_static_cache).parameters
    assert list(prepare)[:3] == ["self", "cache_implementation", "batch_size"]
    assert list(inspect.signature(GenerationMixin._valid_auto_compile_criteria).parameters) == [
        "self",
        "model_kwargs",
        "generation_config",
    ]
    assert "_compile_all_devices" in inspect.getsource(GenerationMixin._valid_auto_compile_criteria)


def test_a_static_layer_writes_where_its_length_says_and_is_made_anew_for_every_call():
    """`PrefixedStaticLayer` makes the length begin at K and its memory K longer."""
    source = inspect.getsource(StaticLayer.update)
    assert "+ self.cumulative_length" in source
    assert "self.max_cache_len" not in source
    assert "self.max_cache_len" in inspect.getsource(StaticLayer.lazy_initialization)
    assert "StaticCache(" in inspect.getsource(GenerationMixin._prepare_static_cache)


def test_the_default_backend_looks_for_a_compiler_by_one_function():
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    assert not inspect.signature(get_cpp_compiler).parameters
    assert issubclass(InvalidCxxCompiler, RuntimeError)


def test_initialisation_is_guarded_by_a_flag():
    assert "_is_hf_initialized" in inspect.getsource(PreTrainedModel._initialize_weights)


def test_packed_sequences_are_looked_for_by_one_function():
    """Training leaves the search out: it would make the host wait for the device in every forward."""
    from transformers import masking_utils

    positions = list(inspect.signature(masking_utils.find_packed_sequence_indices).parameters)
    assert positions == ["position_ids"]
    assert "find_packed_sequence_indices(" in inspect.getsource(masking_utils._preprocess_mask_arguments)


def test_auto_classes_look_up_names_in_tables():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    assert CONFIG_MAPPING._mapping["qwen2_parscale"] == "Qwen2ParScaleConfig"
    assert "qwen2_parscale" in CONFIG_MAPPING._modules
    assert MODEL_FOR_CAUSAL_LM_MAPPING._reverse_config_mapping["Qwen2ParScaleConfig"] == "qwen2_parscale"
    assert MODEL_FOR_CAUSAL_LM_MAPPING._model_mapping["qwen2_parscale"] == "Qwen2ParScaleForCausalLM"
    assert "qwen2_parscale" in MODEL_FOR_CAUSAL_LM_MAPPING._modules
