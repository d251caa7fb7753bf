from __future__ import annotations

import json
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from parcontrol.analysis.cost import ModelShape, Rates, Workload
from parcontrol.cli.cost import main
from parcontrol.measure import generation, rates
from parcontrol.measure.generation import check_streams, default_streams, time_generation, with_streams
from parcontrol.measure.rates import measure_rates
from parcontrol.measure.report import roofline
from parcontrol.parscale.convert import convert_to_parscale_model, create_parscale_config

CPU = torch.device("cpu")


@pytest.fixture
def backbone(tiny_model_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).eval()


@pytest.fixture
def checkpoint(backbone):
    return convert_to_parscale_model(backbone, create_parscale_config(4, prefix_length=6)).eval()


@pytest.fixture
def small_probes(monkeypatch):
    """The device's rates from buffers and matrices that cost nothing."""
    monkeypatch.setattr(rates, "_BUFFER_BYTES", 2**16)
    monkeypatch.setattr(rates, "_SMALLEST_MATRIX", 16)
    monkeypatch.setattr(rates, "_LARGEST_MATRIX", 32)


def test_rates_follow_from_times_and_sizes(monkeypatch, small_probes):
    monkeypatch.setattr(rates, "seconds_of", lambda call, device: call() is None or 0.01)
    found = measure_rates(CPU, torch.float32)
    # 0.01 s is too short for a product to show the rate, so the larger matrix counts; of reading and
    # copying in the same time, copying has moved twice the bytes.
    assert found == Rates(2 * 32**3 / 0.01, 2 * 2**16 / 0.01)


def test_rates_take_the_fastest_repeat(monkeypatch, small_probes):
    times = iter([0.5, 0.4, 0.1, 0.3, 0.2, 0.6] * 3)
    monkeypatch.setattr(rates, "seconds_of", lambda call, device: next(times))
    assert measure_rates(CPU, torch.float32).flops_per_s == 2 * 16**3 / 0.1


def test_a_backbone_gets_streams_and_shares_its_parameters(backbone):
    assert with_streams(backbone, 1, 48) is backbone
    model = with_streams(backbone, 4, 5)
    assert model.config.parscale_n == 4
    assert model.config.parscale_n_tokens == 5
    assert model.model.embed_tokens.weight is backbone.model.embed_tokens.weight
    assert not model.training


def test_a_checkpoint_answers_with_its_first_streams(checkpoint):
    assert default_streams(checkpoint) == [1, 2, 4]
    seen = []
    checkpoint.model.register_forward_hook(lambda module, inputs, out: seen.append(out.stream_hidden_states.shape[0]))
    sizes = {"batch_sizes": [1], "input_length": 2, "output_length": 1, "prefix_length": 6, "repeats": 1}
    timings = time_generation(checkpoint, P_values=[1, 2, 4], **sizes)
    assert [timing.P for timing in timings] == [1, 2, 4]
    assert seen == [1, 1, 2, 2, 4, 4] * 2


def test_default_streams(backbone):
    assert default_streams(backbone) == [1, 2, 4, 8]
    three = convert_to_parscale_model(backbone, create_parscale_config(3, prefix_length=6))
    assert default_streams(three) == [1, 2, 3]


def test_what_cannot_be_measured_is_refused_first(checkpoint):
    with pytest.raises(ValueError, match="this checkpoint has 4 streams"):
        check_streams(checkpoint, [1, 8])
    other = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=16))
    with pytest.raises(ValueError, match="GPT2LMHeadModel"):
        check_streams(other, [1])


def test_a_round_is_one_prefill_and_its_decode_steps(backbone, monkeypatch):
    """Times come from a clock that counts forward passes; shapes and cache are those of generation."""
    passes = []
    forward = type(backbone).forward

    def counted(self, input_ids, past_key_values, **kwargs):
        cached = 0 if past_key_values is None else past_key_values.get_seq_length()
        passes.append((tuple(input_ids.shape), cached, kwargs["logits_to_keep"]))
        return forward(self, input_ids=input_ids, past_key_values=past_key_values, **kwargs)

    def clocked(call, device):
        before = len(passes)
        call()
        return float(len(passes) - before)

    monkeypatch.setattr(type(backbone), "forward", counted)
    monkeypatch.setattr(generation, "seconds_of", clocked)
    (timing,) = time_generation(
        backbone, P_values=[1], batch_sizes=[3], input_length=7, output_length=5, prefix_length=4, repeats=2
    )
    assert (timing.P, timing.batch_size, timing.prefill, timing.decode_step) == (1, 3, 1.0, 1.0)
    one_round = [((3, 7), 0, 1)] + [((3, 1), 7 + step, 1) for step in range(5)]
    assert passes == one_round * 3


def test_cases_take_turns(backbone, monkeypatch):
    turns = []

    def one_round(model, batch_size, *_):
        turns.append((getattr(model.config, "parscale_n", 1), batch_size))
        return 1.0, 1.0

    monkeypatch.setattr(generation, "_one_round", one_round)
    time_generation(
        backbone, P_values=[1, 2], batch_sizes=[1, 3], input_length=1, output_length=1, prefix_length=4, repeats=2
    )
    assert turns == [(1, 1), (1, 3), (2, 1), (2, 3)] * 3


def test_the_median_counts_and_the_first_round_does_not(monkeypatch):
    rounds = iter([(9.0, 90.0), (3.0, 30.0), (1.0, 10.0), (2.0, 20.0)])
    monkeypatch.setattr(generation, "_one_round", lambda *args: next(rounds))
    (timing,) = time_generation(
        SimpleNamespace(),
        P_values=[1],
        batch_sizes=[1],
        input_length=1,
        output_length=10,
        prefix_length=1,
        repeats=3,
    )
    assert (timing.prefill, timing.decode_step) == (2.0, 2.0)


def exact_roofline(h, f, L, a, g, V, P, K, B, n_in, n_out, F, W, width):
    """The bound once more, in rationals."""
    b = B * P
    p_A, p_M = 2 * h * h + Fraction(2 * h * h * g, a), 3 * h * f
    q = P * h * (h + 1) if P > 1 else 0

    def mlp(r, s):
        return max(Fraction(2 * r * s * p_M, F), Fraction(width * (p_M + r * s * max(h, f)), W))

    def one_pass(s):
        attention = max(
            (2 * b * s * p_A + 4 * b * s * s * h) / F, width * (p_A + b * s * max(3 * h, 2 * h + 4 * a)) / W
        )
        norm = max(Fraction(5 * b * s * h, F), Fraction(4 * b * s * h, W))
        head = max(Fraction(width * V * h, W), Fraction(2 * B * V * h, F))
        return L * (attention + mlp(b, s) + 2 * norm) + head + Fraction(q, p_M) * mlp(B, s)

    cached = (K if P > 1 else 0) + n_in + Fraction(n_out, 2)
    cache = width * 2 * b * cached * Fraction(h * g * L, a)
    return float(one_pass(n_in)), float(one_pass(1) + cache / W)


@pytest.mark.parametrize(("P", "B", "width"), [(1, 1, 2), (1, 8, 4), (4, 1, 2), (8, 16, 2)])
@pytest.mark.parametrize(("F", "W"), [(10**11, 10**10), (10**14, 10**12), (10**9, 10**12)])
def test_roofline_agrees_with_exact_rationals(P, B, width, F, W):
    shape = ModelShape(576, 1536, 30, 9, 3, 49152, 8192, element_bytes=width)
    found = roofline(shape, Workload(P, 48, B, 64, 16), Rates(F, W))
    exact = exact_roofline(576, 1536, 30, 9, 3, 49152, P, 48, B, 64, 16, F, W, width)
    assert (found.prefill, found.decode_step) == pytest.approx(exact, rel=1e-12)


def test_command_reports_every_p_and_batch(tiny_model_dir, small_probes, tmp_path, capsys):
    picture = tmp_path / "measured.png"
    sizes = ["--P", "1", "2", "--batch_size", "1", "3", "--input_length", "8", "--output_length", "2"]
    argv = ["measure", str(tiny_model_dir), *sizes, "--repeats", "1", "--dtype", "fp32", "--device", "cpu"]
    assert main([*argv, "--format", "json", "--plot", str(picture)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [(row["P"], row["batch_size"]) for row in result["rows"]] == [(1, 1), (1, 3), (2, 1), (2, 3)]
    for row in result["rows"]:
        assert row["total_seconds"] == pytest.approx(row["prefill_seconds"] + 2 * row["decode_step_seconds"])
        assert min(row["prefill_seconds"], row["decode_step_seconds"], row["cost_model_total_seconds"]) > 0
        assert row["roofline"].keys() == {"prefill_seconds", "decode_step_seconds"}
    assert result["dtype"] == "float32"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 3 + 1 + 4
    assert "round 1 of 1: P = 2, batch 3" in captured.err


def test_command_measures_a_checkpoint(checkpoint, tiny_tokenizer, small_probes, tmp_path, capsys):
    checkpoint.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    sizes = ["--batch_size", "1", "--input_length", "4", "--output_length", "1", "--repeats", "1"]
    assert main(["measure", str(tmp_path), *sizes, "--format", "json"]) == 0
    assert [row["P"] for row in json.loads(capsys.readouterr().out)["rows"]] == [1, 2, 4]
    assert main(["measure", str(tmp_path), *sizes, "--P", "8"]) == 2
    captured = capsys.readouterr()
    assert "this checkpoint has 4 streams" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("flags", "quoted"),
    [
        (["--repeats", "0"], "--repeats is 0"),
        (["--P", "0"], "P is 0"),
        (["--batch_size", "0"], "batch_size is 0"),
        (["--output_length", "0"], "output_length is 0"),
        (["--input_length", "0", "--P", "1"], "input_length is 0"),
        (["--device", "abacus"], "abacus"),
        (["--plot", "x.txt"], "x.txt"),
    ],
)
def test_bad_input_is_refused_before_anything_is_timed(tiny_model_dir, flags, quoted, small_probes, capsys):
    assert main(["measure", str(tiny_model_dir), *flags]) == 2
    captured = capsys.readouterr()
    assert quoted in captured.err
    assert captured.out == ""
    assert "round" not in captured.err


def test_missing_model_is_refused(tmp_path, capsys):
    missing = str(tmp_path / "missing")
    assert main(["measure", missing]) == 2
    assert missing in capsys.readouterr().err
