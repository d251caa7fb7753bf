"""Decoding with a static cache, uncompiled and compiled: the tokens of the dynamic path, without compiling twice."""

import copy
import gc
import os
import pickle
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import CompileConfig, StaticCache

from parcontrol.parscale import modeling_parscale
from tests.parscale.models import tiny_parscale, tokens

MODES = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 0.8, "top_k": 20},
    "beams": {"do_sample": False, "num_beams": 4},
    "several": {"do_sample": False, "num_beams": 4, "num_return_sequences": 3},
    "beam-sampling": {"do_sample": True, "num_beams": 3},
}
ARCHITECTURES = ["Qwen2", "Llama", "Qwen3", "Mistral"]

needs_compiler = pytest.mark.skipif(not modeling_parscale.has_cpp_compiler(), reason="no C++ compiler")
# torch's own: what inductor does to a CPU and to its caches
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def generate(model, lengths=(6, 4), new_tokens=6, seed=11, **options):
    """Tokens [B, …] for random left-padded prompts."""
    width = max(lengths)
    ids = tokens(len(lengths), width, seed=seed)
    mask = (torch.arange(width) >= width - torch.tensor(lengths)[:, None]).long()
    torch.manual_seed(seed)
    ids, mask = (ids * mask).to(model.device), mask.to(model.device)
    return model.generate(ids, attention_mask=mask, max_new_tokens=new_tokens, **options)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("P", [1, 2, 4])
def test_static_cache_gives_the_dynamic_tokens(P, architecture, mode):
    model = tiny_parscale(P, 5, architecture)
    expected = generate(model, **MODES[mode])
    found = generate(model, cache_implementation="static", **MODES[mode])
    assert torch.equal(expected, found)
    assert not torch.equal(expected, generate(model, **MODES[mode], seed=12)), "the prompt matters"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_static_cache_at_eight_streams_and_fewer(attention):
    model = tiny_parscale(8, 5)
    model.set_attn_implementation(attention)
    for p in (8, 3, 1):
        model.set_streams(p)
        expected = generate(model, (7, 2, 5), do_sample=False)
        assert torch.equal(expected, generate(model, (7, 2, 5), do_sample=False, cache_implementation="static"))


@pytest.mark.parametrize("mode", ["greedy", "beams"])
@pytest.mark.parametrize("P", [1, 2, 4])
def test_prompt_in_chunks(P, mode):
    """The cache is allocated before the first forward, for P·B rows."""
    model = tiny_parscale(P, 5)
    expected = generate(model, **MODES[mode])
    options = {"cache_implementation": "static", "prefill_chunk_size": 2, **MODES[mode]}
    assert torch.equal(expected, generate(model, **options))


def test_a_static_cache_of_generate_serves_its_number_of_streams():
    model = tiny_parscale(4, 5)
    out = generate(model, (5,), do_sample=False, cache_implementation="static", return_dict_in_generate=True)
    cache = out.past_key_values
    assert type(cache) is StaticCache
    assert cache.layers[0].keys.shape[0] == 4
    model.set_streams(2)
    with pytest.raises(ValueError, match="4 rows, made with 4 streams, but 2 streams of batch 2 need 4"):
        model(tokens(2, 1), past_key_values=cache)


def static_cache(model, ids, mask=None):
    """The cache that `generate` has made and filled for a prompt."""
    out = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=1,
        cache_implementation="static",
        max_cache_len=24,
        return_dict_in_generate=True,
    )
    return out.past_key_values


def test_a_static_cache_has_each_stream_s_prefix_in_front_and_counts_tokens_alone():
    model = tiny_parscale(3, 5)
    cache = static_cache(model, tokens(2, 7))
    assert (cache.get_seq_length(), cache.get_max_length()) == (7, 24)
    for layer, of_cache in zip(model.model.layers, cache.layers, strict=True):
        assert of_cache.keys.shape[2] == of_cache.values.shape[2] == 5 + 24
        for p in range(3):
            for b in range(2):
                assert torch.equal(of_cache.keys[2 * p + b, :, :5], layer.self_attn.prefix_k[p])
                assert torch.equal(of_cache.values[2 * p + b, :, :5], layer.self_attn.prefix_v[p])


def test_a_static_cache_of_generate_can_be_gone_on_with_and_used_again():
    model = tiny_parscale(2, 5)
    ids = tokens(2, 12)
    cache = static_cache(model, ids[:, :7])
    with torch.no_grad():
        going_on = model(ids[:, 7:], past_key_values=cache).logits
        torch.testing.assert_close(going_on, model(ids).logits[:, 7:], atol=2e-5, rtol=0)
        cache.reset()
        assert cache.get_seq_length() == 0
        again = model(ids.flip(1), past_key_values=cache).logits
        torch.testing.assert_close(again, model(ids.flip(1)).logits, atol=2e-5, rtol=0)


def test_prefixes_that_have_changed_are_used_by_the_next_call():
    model = tiny_parscale(2, 5)
    before = generate(model, do_sample=False, cache_implementation="static")
    with torch.no_grad():
        model.model.layers[0].self_attn.prefix_v.mul_(-3)
    after = generate(model, do_sample=False, cache_implementation="static")
    assert not torch.equal(before, after)
    assert torch.equal(after, generate(model, do_sample=False))


STATIC = {"do_sample": False, "cache_implementation": "static", "max_cache_len": 24}


def spare_addresses(model):
    layers = modeling_parscale._spare_layers[model]
    return [x.data_ptr() for layer in layers for x in (layer.keys, layer.values, layer.cumulative_length)]


def assert_dynamic_tokens(model, seed, **options):
    assert torch.equal(generate(model, seed=seed, do_sample=False), generate(model, seed=seed, **{**STATIC, **options}))


def test_the_next_call_takes_the_memory_of_a_cache_that_nobody_has_seen():
    """CUDA graphs are bound to addresses."""
    model = tiny_parscale(2, 5)
    assert_dynamic_tokens(model, 1)
    first = spare_addresses(model)
    for seed in (2, 3):
        assert_dynamic_tokens(model, seed)
        assert spare_addresses(model) == first
    for keys in (layer.keys for layer in modeling_parscale._spare_layers[model]):
        keys.fill_(torch.nan)  # as a model of other weights may have left it
    assert_dynamic_tokens(model, 4)
    assert spare_addresses(model) == first
    held = modeling_parscale._spare_layers[model]
    assert_dynamic_tokens(model, 5, max_cache_len=32)
    assert not set(spare_addresses(model)) & set(first), "another size takes memory of its own"
    assert held[0].keys.shape[2] == 5 + 24
    model.double()
    assert_dynamic_tokens(model, 6, max_cache_len=32)


def test_a_cache_that_the_caller_has_is_the_caller_s():
    model = tiny_parscale(2, 5)
    generate(model, **STATIC)
    layers = generate(model, seed=2, return_dict_in_generate=True, **STATIC).past_key_values.layers
    before = [layer.keys.clone() for layer in layers]
    for seed in (3, 4):
        assert_dynamic_tokens(model, seed)
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(layers, before, strict=True))


def test_calls_in_several_threads_do_not_share_memory():
    model = tiny_parscale(2, 5)
    ids = [tokens(2, 6, seed=seed) for seed in range(4)]
    expected = [model.generate(x, max_new_tokens=6, do_sample=False) for x in ids]
    with ThreadPoolExecutor(len(ids)) as pool:
        for _ in range(10):
            found = list(pool.map(lambda x: model.generate(x, max_new_tokens=6, **STATIC), ids))
            assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_memory_of_inference_mode_is_not_taken_outside_of_it():
    model = tiny_parscale(2, 5)
    expected = generate(model, do_sample=False)
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(expected, generate(model, do_sample=False, cache_implementation="static"))


def test_a_model_that_has_decoded_is_copied_and_pickled():
    model = tiny_parscale(2, 5)
    expected = generate(model, do_sample=False, cache_implementation="static")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(expected, generate(other, do_sample=False, cache_implementation="static"))
    held = weakref.ref(model)
    del model
    gc.collect()
    assert held() is None


def test_static_beams_do_reorder():
    model = tiny_parscale(2, 5)
    expected = generate(model, cache_implementation="static", **MODES["beams"])
    model._reorder_cache = lambda cache, beam_idx: cache
    assert not torch.equal(expected, generate(model, cache_implementation="static", **MODES["beams"]))


def compiled(**options):
    """Options of `generate` that compile decoding steps, for caches of one length."""
    config = CompileConfig(**options)
    return {"cache_implementation": "static", "max_cache_len": 32, "compile_config": config}


def graphs():
    """Graphs that torch.compile has made so far."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@quiet
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    ("P", "mode"),
    [
        (2, "greedy"),
        *(pytest.param(P, mode, marks=pytest.mark.full) for P, mode in [(1, "greedy"), (2, "sampling"), (4, "greedy")]),
    ],
)
def test_calls_of_like_shape_compile_once(P, mode):
    """Without inductor, for what is traced and when does not depend on it."""
    model = tiny_parscale(P, 5)
    options = {**compiled(backend="eager", fullgraph=True), **MODES[mode]}
    assert torch.equal(generate(model, **MODES[mode]), generate(model, **options))
    assert graphs() == 1, "one graph, no breaks"
    with torch.compiler.set_stance("fail_on_recompile"):
        for lengths, new_tokens in (((6, 4), 6), ((5, 5), 9), ((9, 2), 4)):  # padded or not, longer or shorter
            expected = generate(model, lengths, new_tokens, seed=5, **MODES[mode])
            assert torch.equal(expected, generate(model, lengths, new_tokens, seed=5, **options))


@quiet
@pytest.mark.usefixtures("fresh_compiler")
def test_other_numbers_of_streams_compile_anew_and_stay_right():
    model = tiny_parscale(4, 5)
    for p in (4, 2, 4):
        model.set_streams(p)
        assert torch.equal(
            generate(model, do_sample=False), generate(model, do_sample=False, **compiled(backend="eager"))
        )
    assert graphs() == 2, "the first graph is found again"


@quiet
@pytest.mark.usefixtures("fresh_compiler")
def test_compilation_is_switched_on_by_compile_config_alone():
    model = tiny_parscale(2, 5)
    config = CompileConfig(backend="eager")
    generate(model, cache_implementation="static")
    generate(model, compile_config=config)  # a dynamic cache: transformers says that it cannot
    generate(model, cache_implementation="static", compile_config=config, disable_compile=True)
    assert graphs() == 0
    assert not config._compile_all_devices, "the caller's own is left as it is"
    model.generation_config.compile_config = config
    generate(model, cache_implementation="static")
    assert graphs() == 1


@quiet
@needs_compiler
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.full
@pytest.mark.parametrize("P", [1, 2, 4])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiled_tokens_are_those_of_eager(architecture, P):
    model = tiny_parscale(P, 5, architecture)
    for mode in ("greedy", "sampling"):
        options = MODES[mode]
        for seed in (1, 2):
            assert torch.equal(
                generate(model, seed=seed, **options), generate(model, seed=seed, **options, **compiled())
            )
    assert graphs() == 1


WITHOUT_A_COMPILER = """
import torch
from tests.parscale.test_decoding import compiled, generate, graphs
from tests.parscale.models import tiny_parscale

model = tiny_parscale(2, 5)
for seed in (1, 2):
    expected = generate(model, seed=seed, do_sample=False)
    assert torch.equal(expected, generate(model, seed=seed, do_sample=False, **compiled()))
assert graphs() == 0
print("same tokens")
"""


def test_without_a_compiler_one_message_and_the_same_tokens(repository, tmp_path):
    environment = {**os.environ, "CXX": "/nonexistent", "PATH": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run(
        [sys.executable, "-c", WITHOUT_A_COMPILER], env=environment, cwd=repository, capture_output=True, text=True
    )
    assert (child.returncode, child.stdout) == (0, "same tokens\n"), child.stderr
    assert child.stderr.count("decoding runs uncompiled") == 1
    assert len(child.stderr.strip().splitlines()) == 1, child.stderr
