from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parcontrol.analysis import cost as formulas
from parcontrol.analysis.accelerators import ACCELERATORS, find_accelerator
from parcontrol.analysis.cost import ModelShape, Rates, Workload, predict
from parcontrol.analysis.cost_compare import mean_price
from parcontrol.cli.cost import main
from tests.analysis.exact_cost import exact_cost

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "cost.json").read_text())
SMALL = ["--hidden_size", "896", "--intermediate_size", "4864"]
DEFAULT_RATES = Rates.of(find_accelerator("a100-sxm-80gb"))


def case_id(case: dict) -> str:
    return " ".join(case["flags"])


@pytest.mark.parametrize("case", GOLDEN["worked_examples"], ids=case_id)
def test_command_prints_the_official_line(case, capsys):
    assert main(case["flags"]) == 0
    captured = capsys.readouterr()
    assert captured.out == case["line"] + "\n"
    assert captured.err == ""


@pytest.mark.parametrize("case", GOLDEN["intermediate_values"], ids=case_id)
def test_intermediate_values(case):
    flags = dict(zip(case["flags"][::2], map(int, case["flags"][1::2]), strict=True))
    flags = {name.removeprefix("--"): value for name, value in flags.items()}
    shape = ModelShape(flags.pop("hidden_size"), flags.pop("intermediate_size"))
    work = Workload(**flags)
    cost = predict(shape, work, DEFAULT_RATES)
    b, S = work.stack_rows, work.prefill_tokens
    blocks = {
        "attention": formulas.attention_seconds,
        "mlp": formulas.mlp_seconds,
        "norm": formulas.norm_seconds,
        "logits": formulas.logits_seconds,
    }
    ours = {
        "attention_parameters": shape.attention_parameters,
        "mlp_parameters": shape.mlp_parameters,
        "weights": cost.memory.weights,
        "kv_cache": cost.memory.kv_cache,
        "aggregator_parameters": formulas.aggregator_parameters(shape, work.P),
        "aggregator": cost.memory.aggregator,
        "total_bytes": cost.memory.total,
        "embedding": formulas.embedding_seconds(shape, DEFAULT_RATES),
        "prefill": cost.latency.prefill,
        "kv_traffic": 2 * cost.memory.kv_cache / DEFAULT_RATES.bytes_per_s,
        "decode_step": cost.latency.decode_step,
        "aggregation": cost.latency.aggregation,
        "logits_correction": cost.latency.logits_correction,
        "total_seconds": cost.latency.total,
        **{f"{n}_prefill": block(shape, DEFAULT_RATES, b, S) for n, block in blocks.items()},
        **{f"{n}_step": block(shape, DEFAULT_RATES, b, 1) for n, block in blocks.items()},
    }
    published = dict(case["values"])
    # The peak is the larger of these two; each alone is not exposed.
    assert cost.memory.activations == max(published.pop("layer_activations"), published.pop("logits_bytes"))
    assert ours == pytest.approx(published, rel=1e-9)


@pytest.mark.parametrize(
    "case", GOLDEN["averages_over_lengths"], ids=lambda c: f"{c['size']}-P{c['P']}-B{c['batch_size']}"
)
def test_averages_over_lengths(case):
    price = mean_price(case["size"], case["P"], case["batch_size"])
    assert f"{price.memory:.3f}" == case["memory"]
    assert f"{price.latency:.3f}" == case["latency"]


@st.composite
def any_case(draw) -> dict:
    g = draw(st.integers(1, 12))
    P = draw(st.integers(1, 9))
    K = draw(st.sampled_from([0, 1, 48, 64]))
    return {
        "h": draw(st.integers(1, 6000)),
        "f": draw(st.integers(1, 20000)),
        "L": draw(st.integers(0, 80)),
        # a = g, plain multi-head attention, is drawn too.
        "a": g * draw(st.integers(1, 9)),
        "g": g,
        "V": draw(st.integers(1, 262144)),
        "P": P,
        "K": K,
        "B": draw(st.integers(1, 300)),
        "n_in": draw(st.integers(0 if P > 1 and K > 0 else 1, 2048)),
        "n_out": draw(st.integers(1, 4000)),
        "accelerator": draw(st.sampled_from(sorted(ACCELERATORS))),
        "e_f": draw(st.integers(1, 1000)) / 1000,
        "e_b": draw(st.integers(1, 1000)) / 1000,
    }


FLAGS = {
    "h": "hidden_size",
    "f": "intermediate_size",
    "L": "num_hidden_layers",
    "a": "num_attention_heads",
    "g": "num_key_value_heads",
    "V": "vocab_size",
    "P": "P",
    "K": "parscale_prefix_tokens",
    "B": "batch_size",
    "n_in": "input_length",
    "n_out": "output_length",
    "accelerator": "gpu_config",
    "e_f": "flops_efficiency",
    "e_b": "hbm_memory_efficiency",
}


@settings(max_examples=200, deadline=None)
@given(any_case())
def test_agrees_with_exact_rationals(case):
    shape = ModelShape(*(case[n] for n in ("h", "f", "L", "a", "g", "V")))
    work = Workload(*(case[n] for n in ("P", "K", "B", "n_in", "n_out")))
    accelerator = find_accelerator(case["accelerator"])
    cost = predict(shape, work, Rates.of(accelerator, case["e_f"], case["e_b"]))
    numbers = {name: value for name, value in case.items() if name != "accelerator"}
    memory, latency = exact_cost(
        **numbers,
        tflops=str(accelerator.peak_tflops),
        bandwidth=str(accelerator.bandwidth_gb_per_s),
    )
    assert cost.memory.total == pytest.approx(float(memory), rel=1e-14)
    # T_fix cancels part of the rest, so the sum carries a little more rounding than each term.
    assert cost.latency.total == pytest.approx(float(latency), rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(case=any_case())
def test_printed_line_agrees_with_exact_rationals(case):
    accelerator = find_accelerator(case["accelerator"])
    argv = [part for name, flag in FLAGS.items() for part in (f"--{flag}", str(case[name]))]
    numbers = {name: value for name, value in case.items() if name != "accelerator"}
    memory, latency = exact_cost(
        **numbers,
        tflops=str(accelerator.peak_tflops),
        bandwidth=str(accelerator.bandwidth_gb_per_s),
    )
    assert _stdout(argv) == f"Memory: {float(memory / 2**30):.3f}GB; Latency: {float(latency):.3f}s\n"


def _stdout(argv: list[str]) -> str:
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(argv) == 0
    return out.getvalue()


def test_exact_oracle_holds_the_worked_examples():
    names = {f"--{flag}": name for name, flag in FLAGS.items()}
    for case in GOLDEN["worked_examples"]:
        pairs = dict(zip(case["flags"][::2], case["flags"][1::2], strict=True))
        accelerator = find_accelerator(pairs.pop("--gpu_config", "a100-sxm-80gb"))
        numbers = {names[flag]: value if names[flag].startswith("e_") else int(value) for flag, value in pairs.items()}
        memory, latency = exact_cost(
            **numbers,
            tflops=str(accelerator.peak_tflops),
            bandwidth=str(accelerator.bandwidth_gb_per_s),
        )
        line = f"Memory: {float(memory / 2**30):.3f}GB; Latency: {float(latency):.3f}s"
        assert line == case["line"]


@pytest.mark.parametrize("batch_size", [1, 7])
def test_one_stream_costs_nothing_extra_and_ignores_the_prefix(batch_size):
    shape = ModelShape(896, 4864)
    plain = predict(shape, Workload(parscale_prefix_tokens=0, batch_size=batch_size), DEFAULT_RATES)
    prefixed = predict(shape, Workload(parscale_prefix_tokens=500, batch_size=batch_size), DEFAULT_RATES)
    assert plain == prefixed
    assert plain.latency.aggregation == plain.latency.logits_correction == 0
    assert plain.memory.aggregator == 0


INVALID = {
    "heads not divisible": (["--num_attention_heads", "15"], "15"),
    "prompt beyond positions": (["--input_length", "2049"], "2049"),
    "prompt beyond positions with prefix": (["--input_length", "2049", "--P", "4"], "2049"),
    "no output": (["--output_length", "0"], "output_length is 0"),
    "no batch": (["--batch_size", "0"], "batch_size is 0"),
    "no stream": (["--P", "0"], "P is 0"),
    "nothing to prefill": (["--input_length", "0"], "input_length is 0"),
    "nothing to prefill, P 2": (
        ["--input_length", "0", "--P", "2", "--parscale_prefix_tokens", "0"],
        "input_length is 0",
    ),
    "negative prefix": (["--parscale_prefix_tokens", "-1"], "parscale_prefix_tokens is -1"),
    "negative layers": (["--num_hidden_layers", "-1"], "num_hidden_layers is -1"),
    "no key/value heads": (["--num_key_value_heads", "0"], "num_key_value_heads is 0"),
    "no heads": (["--num_attention_heads", "0"], "num_attention_heads is 0"),
    "no vocabulary": (["--vocab_size", "0"], "vocab_size is 0"),
    "beyond exact integers": (["--batch_size", "1" + "0" * 400], "batch_size is 1000"),
    "efficiency 0": (["--flops_efficiency", "0"], "flops_efficiency is 0.0"),
    "efficiency above 1": (["--hbm_memory_efficiency", "1.01"], "hbm_memory_efficiency is 1.01"),
    "efficiency nan": (["--flops_efficiency", "nan"], "flops_efficiency is nan"),
    "unknown accelerator": (["--gpu_config", "nonsense"], "'nonsense'"),
    "plot without sweep": (["--plot", "x.png"], "--sweep"),
    "sweep with its own P": (["--sweep", "--P", "3"], "--P"),
    "unplottable name": (["--sweep", "--plot", "x.txt"], "x.txt"),
    "folder missing": (["--sweep", "--plot", "no/such/folder/x.png"], "no/such/folder"),
}


@pytest.mark.parametrize(("flags", "quoted"), INVALID.values(), ids=INVALID.keys())
def test_invalid_input_is_one_line_and_status_2(flags, quoted, capsys):
    assert main([*SMALL, *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert quoted in captured.err


def test_unknown_accelerator_lists_all_known(capsys):
    assert main([*SMALL, "--gpu_config", "h100"]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in ACCELERATORS)


@pytest.mark.parametrize("flags", [[], SMALL[:2], SMALL[2:]])
def test_missing_sizes_are_a_usage_error(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        main(flags)
    assert stop.value.code == 2
    assert capsys.readouterr().out == ""


def test_no_layers_leaves_embedding_and_norm():
    memory = predict(ModelShape(896, 4864, 0), Workload(), DEFAULT_RATES).memory
    assert memory.weights == 2 * (151936 * 896 + 896)


def test_empty_prompt_with_a_prefix_works(capsys):
    assert main([*SMALL, "--input_length", "0", "--P", "2"]) == 0
    assert capsys.readouterr().out.startswith("Memory: ")


def test_json_agrees_with_the_line(capsys):
    assert main([*SMALL, "--P", "2", "--format", "json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert main([*SMALL, "--P", "2"]) == 0
    line = capsys.readouterr().out
    memory, latency = result["memory"], result["latency"]
    assert line == f"Memory: {memory['total_gib']:.3f}GB; Latency: {latency['total_seconds']:.3f}s\n"
    parts = sum(v for name, v in memory.items() if name.endswith("_bytes") and name != "total_bytes")
    assert parts == memory["total_bytes"]
    assert result["P"] == 2
    assert result["hidden_size"] == 896


def test_sweep_agrees_with_single_costs(capsys, tmp_path):
    picture = tmp_path / "sweep.png"
    assert main([*SMALL, "--sweep", "--format", "json", "--plot", str(picture)]) == 0
    rows = json.loads(capsys.readouterr().out)["sweep"]
    assert [(row["P"], row["batch_size"]) for row in rows] == [
        (P, batch) for P in (1, 2, 4, 8) for batch in (1, 2, 4, 8)
    ]
    shape = ModelShape(896, 4864)
    for row in rows:
        cost = predict(shape, Workload(P=row["P"], batch_size=row["batch_size"]), DEFAULT_RATES)
        assert row["memory"] == cost.as_dict()["memory"]
        assert row["latency"] == cost.as_dict()["latency"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_sweep_table_shows_every_single_cost(capsys):
    assert main([*SMALL, "--sweep"]) == 0
    numbers = re.findall(r"\d+\.\d{3}", capsys.readouterr().out)
    shape = ModelShape(896, 4864)
    costs = [
        predict(shape, Workload(P=P, batch_size=batch), DEFAULT_RATES) for P in (1, 2, 4, 8) for batch in (1, 2, 4, 8)
    ]
    memory = [f"{cost.memory.total / 2**30:.3f}" for cost in costs]
    assert numbers == memory + [f"{cost.latency.total:.3f}" for cost in costs]


QWEN_CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}
QWEN_FLAGS = [
    part
    for name, value in QWEN_CONFIG.items()
    if name not in ("model_type", "tie_word_embeddings")
    for part in (f"--{name}", str(value))
]


def write_model(directory: Path, **changes) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    config = {name: v for name, v in {**QWEN_CONFIG, **changes}.items() if v is not ...}
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


def test_model_directory_gives_the_sizes(tmp_path):
    model = write_model(tmp_path / "model")
    assert _stdout(["--model", model, "--P", "2"]) == _stdout([*QWEN_FLAGS, "--P", "2"])


def test_flags_override_the_config(tmp_path):
    model = write_model(tmp_path / "model")
    changed = [*QWEN_FLAGS, "--num_hidden_layers", "12"]
    assert _stdout(["--model", model, "--num_hidden_layers", "12"]) == _stdout(changed)


def test_parscale_config_gives_streams_and_prefix(tmp_path):
    model = write_model(tmp_path / "model", parscale_n=4, parscale_n_tokens=16)
    flags = [*QWEN_FLAGS, "--P", "4", "--parscale_prefix_tokens", "16"]
    assert _stdout(["--model", model]) == _stdout(flags)
    assert _stdout(["--model", model, "--P", "1"]) == _stdout(QWEN_FLAGS)


def test_config_without_kv_heads_is_multi_head(tmp_path):
    model = write_model(tmp_path / "model", num_key_value_heads=...)
    assert _stdout(["--model", model]) == _stdout([*QWEN_FLAGS, "--num_key_value_heads", "14"])


def test_mirror_is_looked_up_before_the_hub(tmp_path, monkeypatch, capsys):
    write_model(tmp_path / "models" / "Qwen" / "Qwen2.5-0.5B")
    monkeypatch.setenv("PARCONTROL_MIRROR", str(tmp_path))
    assert _stdout(["--model", "Qwen/Qwen2.5-0.5B"]) == _stdout(QWEN_FLAGS)
    # The tests run with the Hub switched off.
    assert main(["--model", "Qwen/Other"]) == 2
    captured = capsys.readouterr()
    assert "Qwen/Other" in captured.err
    assert captured.err.count("\n") == 1


def test_hub_is_asked_for_the_config(tmp_path, monkeypatch, capsys):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    model = Path(write_model(tmp_path / "downloaded"))

    def download(repo_id: str, filename: str) -> str:
        if repo_id != "Qwen/Qwen2.5-0.5B":
            raise LocalEntryNotFoundError("the Hub is\nout of reach")
        return str(model / filename)

    monkeypatch.delenv("PARCONTROL_MIRROR", raising=False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert _stdout(["--model", "Qwen/Qwen2.5-0.5B"]) == _stdout(QWEN_FLAGS)
    assert main(["--model", "Qwen/Other"]) == 2
    error = capsys.readouterr().err
    assert "the Hub is out of reach" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "quoted"),
    [
        ({"hidden_size": ...}, "hidden_size"),
        ({"hidden_size": "896"}, "'896'"),
        ({"num_hidden_layers": True}, "True"),
        ({"head_dim": 128}, "128"),
        ({"num_experts": 8}, "num_experts"),
    ],
)
def test_configs_that_the_formulas_do_not_describe(tmp_path, changes, quoted, capsys):
    model = write_model(tmp_path / "model", **changes)
    assert main(["--model", model]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert quoted in captured.err
    assert captured.err.count("\n") == 1


def test_unreadable_configs(tmp_path, capsys):
    for content in (None, "{", "[]"):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        assert main(["--model", str(tmp_path)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_untied_head_is_mentioned(tmp_path, capsys):
    assert main(["--model", write_model(tmp_path / "m", tie_word_embeddings=False)]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    assert "output head" in captured.err


def test_element_width_scales_everything_but_norms():
    shape = ModelShape(896, 4864)
    narrow = predict(shape, Workload(P=2), DEFAULT_RATES)
    wide = predict(replace(shape, element_bytes=4), Workload(P=2), DEFAULT_RATES)
    assert wide.memory.total == 2 * narrow.memory.total
    assert narrow.latency.total < wide.latency.total < 2 * narrow.latency.total


def test_command_loads_no_heavy_library():
    script = (
        "import sys; before = set(sys.modules)\n"
        "from parcontrol.cli.cost import main\n"
        f"assert main({SMALL!r}) == 0 and main(['compare']) == 0\n"
        "heavy = {'torch', 'numpy', 'transformers', 'matplotlib', 'scipy', 'huggingface_hub'}\n"
        "assert not heavy & (set(sys.modules) - before), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


def test_abbreviated_flags_are_for_the_official_name_alone(capsys):
    flags = "--hidden 896 --inter 4864 --P 2 --batch 1".split()
    assert main(flags, abbreviations=True) == 0
    assert capsys.readouterr().out == "Memory: 1.292GB; Latency: 0.049s\n"
    with pytest.raises(SystemExit):
        main(flags)


def test_an_efficiency_of_nearly_nothing_is_refused(capsys):
    assert main("--hidden_size 896 --intermediate_size 4864 --flops_efficiency 1e-320".split()) == 2
    assert "flops_efficiency is 1e-320; it must be from 1e-09 to 1" in capsys.readouterr().err
