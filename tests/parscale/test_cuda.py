"""What only a GPU can show: its attention kernels, and compiled decoding as CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig, PreTrainedModel

from tests.parscale.models import tiny_parscale, tokens
from tests.parscale.test_decoding import MODES, generate

pytestmark = [
    pytest.mark.cuda,
    # torch's own, about TF32 and about what is being deprecated
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("T", [7, 600])
@pytest.mark.parametrize("P", [1, 3])
def test_hidden_states_and_gradients_in_bfloat16_are_as_near_as_eager_attention_s(P: int, T: int) -> None:
    def run(model: PreTrainedModel) -> list[torch.Tensor]:
        hidden = model.model(input_ids=ids.to(model.device), use_cache=False).last_hidden_state
        (hidden.double() * weights.to(model.device)).sum().backward()
        prefix = model.model.layers[0].self_attn.prefix_v
        return [hidden.detach().double().cpu(), prefix.grad.double().cpu()]

    ids = tokens(2, T)
    weights = torch.randn(2, T, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = run(tiny_parscale(P, 5).double())
    found = run(tiny_parscale(P, 5).to("cuda", torch.bfloat16))
    eager = tiny_parscale(P, 5).to("cuda", torch.bfloat16)
    eager.set_attn_implementation("eager")
    for ours, plain, exact in zip(found, run(eager), expected, strict=True):
        assert (ours - exact).norm() <= 1.5 * (plain - exact).norm() + 1e-3 * exact.norm()


def test_training_attention_in_bfloat16_runs_a_kernel_that_builds_no_scores() -> None:
    model = tiny_parscale(2, 5).to("cuda", torch.bfloat16)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model.model(input_ids=tokens(2, 40).cuda(), use_cache=False).last_hidden_state.sum().backward()
    kernels = {event.name for event in profile.events() if "_attention_backward" in event.name}
    # torch takes cuDNN's on some GPUs, its own elsewhere; neither takes a mask.
    assert kernels
    assert kernels <= {
        "aten::_scaled_dot_product_flash_attention_backward",
        "aten::_flash_attention_backward",
        "aten::_scaled_dot_product_cudnn_attention_backward",
        "aten::_cudnn_attention_backward",
    }


@pytest.mark.parametrize("mode", ["greedy", "sampling", "beams"])
@pytest.mark.parametrize("P", [1, 2, 4])
def test_static_and_compiled_tokens_in_float32_are_the_dynamic_ones(P: int, mode: str) -> None:
    model = tiny_parscale(P, 5).cuda()
    expected = generate(model, **MODES[mode])
    static = {"cache_implementation": "static", "max_cache_len": 32, **MODES[mode]}
    assert torch.equal(expected, generate(model, **static, disable_compile=True))
    for _ in range(3):  # warming up, recording, replaying
        assert torch.equal(expected, generate(model, **static, compile_config=CompileConfig()))
    assert not torch.equal(expected, generate(model, **static, seed=12)), "the prompt matters"
    if mode != "beams":  # which transformers does not compile
        assert counters["stats"]["unique_graphs"] == 1
        assert counters["inductor"]["cudagraph_skips"] == 0


def test_calls_of_like_shape_neither_compile_nor_record_again() -> None:
    from torch._inductor.cudagraph_trees import get_manager

    model = tiny_parscale(2, 5).cuda()
    static = {"cache_implementation": "static", "max_cache_len": 32, "do_sample": False}
    for seed in (1, 2, 3):
        generate(model, seed=seed, **static)
    manager = get_manager(torch.cuda.current_device(), create_if_none_exists=False)
    recorded = manager.new_graph_id().id
    with torch.compiler.set_stance("fail_on_recompile"):
        for lengths, seed in (((6, 4), 4), ((5, 5), 5), ((9, 2), 6)):
            expected = generate(model, lengths, seed=seed, do_sample=False)
            assert torch.equal(expected, generate(model, lengths, seed=seed, **static))
    assert manager.new_graph_id().id == recorded + 1, "ids count recordings, and this one"
