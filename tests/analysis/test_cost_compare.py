from __future__ import annotations

import json

import pytest

from parcontrol.analysis import published
from parcontrol.analysis.cost_compare import LENGTHS, Ratio, compare, ratios
from parcontrol.cli.cost import main

# Ratios at batch size 1 over mean lengths: equal-loss size in billions, memory, latency.
BATCH_1 = {
    "measured losses of 2.8B and 4.4B, loss linear in ln N": (3.156, 21.6, 6.16),
    "measured losses of 2.8B and 4.4B, loss linear in cost": (None, 22.5, 6.43),
    "Stack-V2-Python law solved for the measured loss 1.0383": (3.022, 19.8, 5.64),
    "Stack-V2-Python law alone: N·(1 + k·ln 8), N counted at P = 8": (2.901, 18.2, 5.18),
    "Stack-V2-Python law alone: N·(1 + k·ln 8), N counted at P = 1": (2.857, 17.6, 5.01),
    "Pile law alone: N·(1 + k·ln 8), N counted at P = 8": (2.705, 15.5, 4.42),
    "Pile law alone: N·(1 + k·ln 8), N counted at P = 1": (2.664, 15.0, 4.26),
}


def by_name(found: list[Ratio]) -> dict[str, Ratio]:
    return {ratio.derivation: ratio for ratio in found}


def test_batch_1_gives_the_known_ratios():
    found = by_name(ratios(1))
    assert found.keys() == BATCH_1.keys()
    for name, (billions, memory, latency) in BATCH_1.items():
        ratio = found[name]
        if billions is None:
            assert ratio.parameters is None
        else:
            assert round(ratio.parameters / 1e9, 3) == billions
        # One of the known memory ratios was itself rounded from 22.546.
        assert ratio.memory == pytest.approx(memory, abs=0.05)
        assert ratio.latency == pytest.approx(latency, abs=0.005)


@pytest.mark.parametrize(("batch", "memory", "latency"), [(2, 12.85, 3.25), (4, 6.9, 1.7), (8, 3.6, 0.88)])
def test_larger_batches(batch, memory, latency):
    ratio = by_name(ratios(batch))["measured losses of 2.8B and 4.4B, loss linear in cost"]
    assert ratio.memory == pytest.approx(memory, abs=0.05)
    assert ratio.latency == pytest.approx(latency, abs=0.05)


@pytest.mark.parametrize(
    ("length", "memory", "latency"), [(64, 31.2, 6.4), (128, 24.3, 6.7), (256, 16.9, 5.9), (512, 10.5, 4.3)]
)
def test_single_lengths(length, memory, latency):
    found = by_name(ratios(1, [(length, length)]))
    ratio = found["Stack-V2-Python law alone: N·(1 + k·ln 8), N counted at P = 1"]
    assert ratio.memory == pytest.approx(memory, abs=0.05)
    assert ratio.latency == pytest.approx(latency, abs=0.05)


def test_default_lengths_by_measured_losses():
    ratio = by_name(ratios(1, [(64, 64)]))["measured losses of 2.8B and 4.4B, loss linear in cost"]
    assert ratio.memory == pytest.approx(40.0, abs=0.05)
    assert ratio.latency == pytest.approx(8.25, abs=0.005)


def test_sixteen_combinations_move_latency_alone():
    pairs, grid = ratios(1), ratios(1, [(i, o) for i in LENGTHS for o in LENGTHS])
    for four, sixteen in zip(pairs[:2], grid[:2], strict=True):
        assert sixteen.memory == pytest.approx(four.memory, rel=1e-3)
        assert 6.65 <= sixteen.latency <= 7.05


def test_limit_says_that_parscale_is_slower_at_batch_8():
    comparison = compare()
    assert all(ratio.latency < 1 < ratio.memory for ratio in comparison.at_batch(8))
    assert "ParScale is the slower one" in comparison.limit()
    assert "0.58x to 0.88x" in comparison.limit()


def test_text_names_both_origins_and_every_assumption(capsys):
    assert main(["compare"]) == 0
    text = capsys.readouterr().out
    assert "21.6x to 22.5x memory and 6.2x to 6.4x latency" in text
    assert "17.6x to 19.8x memory and 5.0x to 5.6x latency" in text
    for assumption in ("a100-sxm-80gb", "0.7", "0.9", "64, 128, 256 and 512", "linear in its non-embedding"):
        assert assumption in text


def test_json_and_plot(capsys, tmp_path):
    picture = tmp_path / "compare.svg"
    assert main(["compare", "--format", "json", "--plot", str(picture)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["ratios"]) == 4 * len(BATCH_1)
    assert result["ratios"][0]["memory"] == ratios(1)[0].memory
    assert "<svg" in picture.read_text()


def test_bad_plot_name_prints_no_table(capsys):
    assert main(["compare", "--plot", "x.doc"]) == 2
    assert capsys.readouterr().out == ""


def test_published_counts_follow_from_the_shapes():
    """All 24 counts, from the shapes alone: biases, norms, prefixes and aggregator counted."""
    for P in published.P_VALUES:
        for size, (h, f) in published.SHAPES.items():
            d = h // 16
            c = 2 * d
            count = 36 * (2 * h * h + 2 * h * c + h + 2 * c + 3 * h * f + 2 * h) + h
            if P > 1:
                count += 36 * 2 * P * 2 * 48 * d + P * h * h + h + h * P + P
            assert count == published.parameters(size, P)
