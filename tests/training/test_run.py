"""Whole runs on a tiny model and a tiny corpus, through `run` alone."""

from __future__ import annotations

import io
import json
import logging
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from parcontrol.config import RunConfig
from parcontrol.data import load_validation, open_corpus, verify_run
from parcontrol.parscale.convert import drop_streams
from parcontrol.runs import RunDirectory
from parcontrol.training.callbacks import PeriodicValidation
from parcontrol.training.checkpoint import Checkpoint
from parcontrol.training.device import choose_device, choose_precision, has_native_bf16
from parcontrol.training.errors import NonFiniteError, OutOfMemoryError, TooManyFilesError
from parcontrol.training.evaluate import evaluate
from parcontrol.training.failures import explained
from parcontrol.training.loop import TrainingLoop
from parcontrol.training.run import run
from tests.training.same_run import assert_same_run

MakeConfig = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def _quiet_logging() -> Iterator[None]:
    """Takes the handlers of a run off the root logger again, and closes its log file."""
    before = logging.getLogger().handlers[:]
    yield
    from parcontrol import logging_setup

    for handler in [h for h in logging.getLogger().handlers if h not in before]:
        logging.getLogger().removeHandler(handler)
        handler.close()
    logging_setup._installed.clear()
    logging.captureWarnings(False)


def validation_loss(config: RunConfig, model: Any, dtype: torch.dtype = torch.float32) -> float:
    """Mean cross entropy over the validation set, by full logits."""
    corpus = open_corpus(config.data)
    tokenizer = AutoTokenizer.from_pretrained(config.model.name)
    blocks = load_validation(
        corpus, tokenizer, sequence_length=config.data.sequence_length, tokens=config.data.validation_tokens
    ).blocks
    ids = torch.from_numpy(blocks)
    with torch.no_grad():
        logits = model.eval()(input_ids=ids).logits[:, :-1].double()
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()


def test_a_run_learns_records_and_saves_what_it_measured(make_config: MakeConfig) -> None:
    config = make_config()
    result = run(config)
    directory = RunDirectory(config.run_directory)
    assert directory.finished
    assert result == directory.read_result()

    # It learns, and says so with the numbers of an independent computation.
    backbone = AutoModelForCausalLM.from_pretrained(config.model.name)
    assert result["backbone_validation_loss"] == pytest.approx(validation_loss(config, backbone), abs=1e-6)
    saved = AutoModelForCausalLM.from_pretrained(directory.final_dir)
    assert result["final_validation_loss"] == pytest.approx(validation_loss(config, saved), abs=1e-6)
    assert result["final_validation_loss"] < result["initial_validation_loss"]
    for name in ("backbone", "initial", "final"):
        loss, perplexity = result[f"{name}_validation_loss"], result[f"{name}_validation_perplexity"]
        assert perplexity == pytest.approx(np.exp(loss))

    # The budget: whole steps of real tokens, counted in every file.
    assert result["tokens"] == 24 * 128 == config.training.tokens_per_run
    assert result["steps"] == 24
    metrics, provenance = directory.read_metrics(), directory.read_provenance()
    train = [record for record in metrics if "loss" in record]
    assert [record["step"] for record in train] == list(range(3, 25, 3))
    assert [record["tokens"] for record in train] == [128 * record["step"] for record in train]
    assert all(record.keys() >= {"loss", "learning_rate", "grad_norm", "tokens_per_second"} for record in train)
    assert [record["step"] for record in provenance] == [record["step"] for record in train]
    assert provenance[-1]["tokens"] == result["tokens"] == sum(s["tokens"] for s in provenance[-1]["shards"])
    assert provenance[-1]["sha256"] == result["data_sha256"]
    assert verify_run(directory).provenance["sha256"] == result["data_sha256"]

    # Validations: before the first step, each 1,024 tokens, and of the saved model at the end.
    validations = [record for record in metrics if "validation_loss" in record]
    assert [record["step"] for record in validations] == [0, 8, 16, 24]
    assert validations[0]["validation_loss"] == result["initial_validation_loss"]
    assert validations[-1]["validation_loss"] == result["final_validation_loss"]
    assert [r["backbone_validation_loss"] for r in metrics if "backbone_validation_loss" in r] == [
        result["backbone_validation_loss"]
    ]

    # Streams at every log point, by document at the end.
    streams = directory.read_streams()
    assert [record["step"] for record in streams] == [record["step"] for record in train]
    assert all(sum(record["mean_weight"]) == pytest.approx(1, abs=1e-5) for record in streams)
    with np.load(directory.validation_documents_path, allow_pickle=False) as documents:
        tokens = documents["tokens"].sum()
        assert tokens == result["validation_predicted_tokens"] == 512 - 512 // 32
        assert documents["loss_sum"].sum() / tokens == pytest.approx(result["final_validation_loss"])
        assert documents["backbone_loss_sum"].sum() / tokens == pytest.approx(result["backbone_validation_loss"])

    # The newest two checkpoints, and a meta.json that says what was run on what.
    assert [path.name for path in directory.checkpoints()] == ["step_00000020", "step_00000024"]
    meta = directory.read_meta()
    assert meta["dataset_revision"] == "local"
    assert (meta["training_seed"], meta["data_seed"]) == (42, 42)
    assert meta["parameters_trained"] == result["parameters_trained"] < meta["parameters_total"]
    assert meta["processes"][0]["device"] == "cpu"
    assert result["peak_memory_bytes"] > 1e8
    assert 0 <= result["data_wait_fraction"] < 1


def test_the_reported_loss_is_that_of_the_saved_weights_in_bf16(make_config: MakeConfig) -> None:
    config = make_config(training__mixed_precision="bf16", training__learning_rate=0.05)
    result = run(config)
    directory = RunDirectory(config.run_directory)
    saved = AutoModelForCausalLM.from_pretrained(directory.final_dir)
    assert {parameter.dtype for parameter in saved.parameters()} == {torch.bfloat16}
    assert saved.model.rotary_emb.inv_freq.dtype == torch.float32
    corpus = open_corpus(config.data)
    tokenizer = AutoTokenizer.from_pretrained(directory.final_dir)
    validation = load_validation(corpus, tokenizer, sequence_length=32, tokens=512)
    again = evaluate(saved, validation, choose_precision(config.training), batch_size=2)
    assert again.loss == result["final_validation_loss"]
    # Only what trained has moved.
    backbone = AutoModelForCausalLM.from_pretrained(config.model.name, dtype=torch.bfloat16)
    plain = dict(drop_streams(saved).named_parameters())
    for name, parameter in backbone.named_parameters():
        assert torch.equal(plain[name], parameter), name


def test_the_final_directory_is_complete(make_config: MakeConfig) -> None:
    config = make_config(training__tokens_per_run=3 * 128)
    base = Path(config.model.name)
    licensed = config.run_directory.parent / "licensed_model"
    shutil.copytree(base, licensed)
    (licensed / "README.md").write_text("---\nlicense: cc0-1.0\n---\n# Tiny\n")
    result = run(config.model_copy(update={"model": config.model.model_copy(update={"name": str(licensed)})}))
    final = Path(result["final_dir"])
    names = {path.name for path in final.iterdir()}
    assert names >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    }
    card = (final / "README.md").read_text()
    for stated in (str(licensed), "cc0-1.0", config.data.repo, "384 tokens", "2 parallel streams"):
        assert stated in card, stated
    assert f"{result['final_validation_loss']:.4f}" in card
    ids = AutoTokenizer.from_pretrained(final)("The old river", return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(final)
    assert model.generate(**ids, max_new_tokens=5, do_sample=False).shape[1] > ids.input_ids.shape[1]
    assert not list(final.rglob("*.bin"))


def test_two_runs_are_the_same_bit_for_bit_and_another_seed_is_not(make_config: MakeConfig) -> None:
    results = [run(make_config("one")), run(make_config("two")), run(make_config("three", training__seed=7))]
    root = Path(results[0]["final_dir"]).parents[2]
    assert_same_run(root / "one", root / "two")
    assert results[2]["data_sha256"] == results[0]["data_sha256"]
    assert results[2]["final_validation_loss"] != results[0]["final_validation_loss"]


def test_every_P_trains_on_the_same_tokens(make_config: MakeConfig) -> None:
    fewer = {"training__tokens_per_run": 6 * 128}
    results = [run(make_config(f"P{P}", parscale__P=P, **fewer)) for P in (1, 2, 4)]
    batch = {"training__microbatch_size": 1, "training__gradient_accumulation_steps": 4, "data__num_workers": 0}
    results.append(run(make_config("batch", parscale__P=2, **fewer, **batch)))
    assert len({result["data_sha256"] for result in results}) == 1
    assert len({result["validation_sha256"] for result in results}) == 1
    assert len({result["backbone_validation_loss"] for result in results[:3]}) == 1
    assert len({result["final_validation_loss"] for result in results}) == 4
    one_stream = RunDirectory(Path(results[0]["final_dir"]).parents[1])
    assert one_stream.read_streams() == []
    assert results[0]["final_validation_loss"] < results[0]["initial_validation_loss"]
    config = json.loads((one_stream.final_dir / "config.json").read_text())
    assert config["model_type"] == "qwen2_parscale_prefix"


def test_full_mode_trains_the_backbone_too(make_config: MakeConfig) -> None:
    config = make_config(training__mode="full", training__learning_rate=1e-3)
    result = run(config)
    assert result["parameters_trained"] == result["parameters_total"]
    assert result["final_validation_loss"] < result["initial_validation_loss"] - 0.05
    saved = drop_streams(AutoModelForCausalLM.from_pretrained(result["final_dir"]))
    backbone = AutoModelForCausalLM.from_pretrained(config.model.name)
    assert not torch.equal(saved.model.embed_tokens.weight, backbone.model.embed_tokens.weight)


@pytest.mark.parametrize("first_stage", ["plain", "parscale"])
def test_two_stages(make_config: MakeConfig, first_stage: str) -> None:
    """A second run starts where the first one ended: the first loss measured is the last one."""
    streams = {"parscale__P": 1, "parscale__prefix_length": 0} if first_stage == "plain" else {}
    first = run(make_config("first", training__mode="full", **streams))
    second = run(make_config("second", training__init_from=first["final_dir"], training__tokens_per_run=6 * 128))
    key = "backbone_validation_loss" if first_stage == "plain" else "initial_validation_loss"
    assert second[key] == first["final_validation_loss"]
    assert second["final_validation_loss"] < second["initial_validation_loss"]
    card = Path(second["final_dir"], "README.md").read_text(encoding="utf-8")
    assert f"Base model: `{first['final_dir']}`, an earlier stage" in card


def test_init_from_refuses_other_streams_and_other_tokenizers(make_config: MakeConfig, tmp_path: Path) -> None:
    first = run(make_config("first", training__tokens_per_run=3 * 128))
    refused = make_config("second", parscale__P=4, training__init_from=first["final_dir"])
    with pytest.raises(ValueError, match=r"has P 2, but parscale\.P is 4"):
        run(refused)
    other = tmp_path / "other_tokenizer"
    shutil.copytree(first["final_dir"], other)
    content = json.loads((other / "tokenizer.json").read_text())
    content["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="another tokenizer"):
        run(make_config("third", training__init_from=str(other)))


def test_a_finished_run_returns_its_result_and_touches_nothing(make_config: MakeConfig) -> None:
    config = make_config(training__tokens_per_run=3 * 128)
    result = run(config)
    files = {path: path.stat().st_mtime_ns for path in config.run_directory.rglob("*") if path.name != ".lock"}
    assert run(config) == result
    assert files == {path: path.stat().st_mtime_ns for path in config.run_directory.rglob("*") if path.name != ".lock"}


def test_bad_input_leaves_no_trace_of_training(make_config: MakeConfig, tmp_path: Path) -> None:
    for overrides, message in (
        ({"training__device": "tpu"}, "'tpu' is not allowed"),
        ({"model__name": str(tmp_path / "nowhere")}, "nowhere"),
        ({"data__validation_tokens": 10**7}, "validation"),
    ):
        config = make_config("bad" + message.split()[0].strip("'"), **overrides)
        with pytest.raises(ValueError, match=message):
            run(config)
        directory = RunDirectory(config.run_directory)
        assert directory.checkpoints() == []
        assert directory.read_metrics() == []
        assert not directory.finished


def test_a_corpus_smaller_than_the_budget_stops_the_run(make_config: MakeConfig) -> None:
    config = make_config(training__tokens_per_run=10**6, training__gradient_accumulation_steps=64)
    with pytest.raises(ValueError, match="smaller than the token budget"):
        run(config)
    assert not RunDirectory(config.run_directory).finished


def test_a_killed_validation_is_taken_up_again(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies in a validation that follows a checkpoint of the same step."""
    whole = make_config("whole", training__checkpoint_interval_steps=8)
    run(whole)
    killed = make_config("killed", training__checkpoint_interval_steps=8)
    validate = PeriodicValidation.on_boundary

    def die(self: PeriodicValidation, loop: Any) -> None:
        if loop.step == 8:
            raise KeyboardInterrupt
        validate(self, loop)

    monkeypatch.setattr(PeriodicValidation, "on_boundary", die)
    with pytest.raises(KeyboardInterrupt):
        run(killed)
    monkeypatch.setattr(PeriodicValidation, "on_boundary", validate)
    run(killed)
    assert_same_run(whole.run_directory, killed.run_directory)


@pytest.mark.parametrize("after", ["write_documents", "model_card", "write_result"])
def test_a_run_that_dies_while_finishing_finishes_next_time(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    from parcontrol.training import finish

    run(make_config("whole"))
    config = make_config("killed")

    def die(*arguments: Any) -> None:
        raise KeyboardInterrupt

    owner: Any = RunDirectory if after == "write_result" else finish
    whole = getattr(owner, after)
    monkeypatch.setattr(owner, after, die)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    monkeypatch.setattr(owner, after, whole)
    assert not RunDirectory(config.run_directory).finished
    run(config)
    assert_same_run(config.run_directory.parent / "whole", config.run_directory)


def test_checkpoints_hold_only_what_trains_and_no_pickle(make_config: MakeConfig) -> None:
    config = make_config()
    result = run(config)
    newest = RunDirectory(config.run_directory).checkpoints()[-1]
    assert {path.suffix for path in newest.iterdir()} == {".safetensors", ".json"}
    parameters = load_file(newest / "parameters.safetensors")
    assert sum(tensor.numel() for tensor in parameters.values()) == result["parameters_trained"]
    assert all("prefix_" in name or "aggregate_layer" in name for name in parameters)
    size = sum(path.stat().st_size for path in newest.iterdir())
    assert size < 3 * 4 * result["parameters_trained"] + 20_000


def test_a_checkpoint_that_no_descriptor_is_left_for_is_not_called_damaged(make_config: MakeConfig) -> None:
    config = make_config(training__tokens_per_run=5 * 128)
    run(config)
    directory = RunDirectory(config.run_directory)
    newest = directory.checkpoints()[-1]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(TooManyFilesError, match="Raise the limit and repeat"), explained(config, directory):
            Checkpoint.read(newest)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_checkpoint_that_no_memory_is_left_for_is_not_called_damaged(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(training__tokens_per_run=5 * 128)
    run(config)
    directory = RunDirectory(config.run_directory)

    def no_room(path: Path) -> None:
        raise MemoryError("Cannot allocate memory (os error 12)")  # as safetensors says it

    monkeypatch.setattr("parcontrol.training.checkpoint.load_file", no_room)
    with pytest.raises(OutOfMemoryError, match="Cannot allocate memory"), explained(config, directory):
        Checkpoint.newest(directory)


def test_a_damaged_checkpoint_is_named(make_config: MakeConfig) -> None:
    config = make_config()
    run(config)
    newest = RunDirectory(config.run_directory).checkpoints()[-1]
    (newest / "optimizer.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"step_00000024 cannot be read .* delete it"):
        Checkpoint.read(newest)


def test_resuming_with_other_data_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config()
    corpus = tmp_path / "corpus"
    shutil.copytree(config.data.repo, corpus)
    config = make_config(data__repo=str(corpus))
    run(config)
    (config.run_directory / "result.json").unlink()
    (corpus / "val.jsonl.zst").write_bytes((corpus / "test.jsonl.zst").read_bytes())
    with pytest.raises(ValueError, match="validation_sha256 was"):
        run(config)


def test_devices_are_chosen_in_order_and_refused_by_name() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert choose_device(None).type == best
    for name in ("gpu", "cuda:x", ""):
        with pytest.raises(ValueError, match="is not allowed"):
            choose_device(name)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"'cuda:3' is not available here; available: .*cpu"):
            choose_device("cuda:3")


def test_auto_precision_is_bf16_exactly_where_the_processor_has_it(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(training__mixed_precision="auto").training
    for capabilities, expected in (({"avx512_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert has_native_bf16(torch.device("cpu")) == (expected == torch.bfloat16)
        assert choose_precision(config).compute == expected


def test_a_diverging_run_stops_and_keeps_only_finite_checkpoints(make_config: MakeConfig) -> None:
    config = make_config(
        training__mode="full",
        training__learning_rate=1e30,
        training__warmup_tokens=0,
        training__log_interval_steps=10,
        training__checkpoint_interval_steps=1,
    )
    with pytest.raises(NonFiniteError, match=r"step \d+ is not finite.*train/.*No checkpoint has been written since"):
        run(config)
    directory = RunDirectory(config.run_directory)
    assert not directory.finished
    assert directory.checkpoints()
    for path in directory.checkpoints():
        for tensors in (Checkpoint.read(path).parameters, Checkpoint.read(path).moments):
            assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_out_of_memory_advises_a_shorter_sequence_and_changes_nothing(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(
        data__sequence_length=1024,
        data__validation_tokens=1024,
        training__tokens_per_run=1024,
        training__microbatch_size=1,
        training__gradient_accumulation_steps=1,
    )

    def too_large(*arguments: Any) -> None:
        torch.empty(2**60, dtype=torch.uint8)  # the allocator's own refusal

    monkeypatch.setattr(TrainingLoop, "_backward", too_large)
    with pytest.raises(OutOfMemoryError, match=r"out of memory with .*data\.sequence_length to 512"):
        run(config)
    assert RunDirectory(config.run_directory).read_config().data.sequence_length == 1024


def test_the_console_tells_tokens_loss_speed_and_time_left(
    make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="parcontrol"):
        run(make_config(training__tokens_per_run=6 * 128))
    lines = [record.getMessage() for record in caplog.records]
    trained = [line for line in lines if re.match(r"step 3/6 · 384/768 tokens · loss \d\.\d{4} · .* tokens/s · ", line)]
    assert len(trained) == 1
    assert trained[0].endswith("left")
    assert any(line.startswith("P = 2, peft: 2.66k of 33.67k parameters train, on cpu in float32") for line in lines)
    assert any(line.startswith("backbone alone: validation loss") for line in lines)


def test_a_terminal_gets_a_live_display(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from parcontrol.training import console

    output = io.StringIO()
    terminal = Console(file=output, force_terminal=True, width=120)
    monkeypatch.setattr(console, "get_console", lambda: terminal)
    run(make_config(training__tokens_per_run=6 * 128))
    shown = output.getvalue()
    assert "768/768 tokens" in shown
    assert "tokens/s" in shown
    assert "left" in shown


def test_validation_books_each_token_on_its_document(make_config: MakeConfig) -> None:
    config = make_config()
    model = AutoModelForCausalLM.from_pretrained(config.model.name)
    tokenizer = AutoTokenizer.from_pretrained(config.model.name)
    validation = load_validation(open_corpus(config.data), tokenizer, sequence_length=32, tokens=512)
    losses: dict[int, list[float]] = {}
    for block, owners in zip(validation.blocks, validation.document_ids, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(block)[None]).logits[0].double()
        for position in range(1, len(block)):
            loss = -logits[position - 1].log_softmax(-1)[block[position]].item()
            losses.setdefault(int(owners[position]), []).append(loss)
    assert len(losses) == validation.documents > 1
    for batch_size in (1, 3, 16):
        measured = evaluate(model, validation, choose_precision(config.training), batch_size=batch_size)
        for document, expected in losses.items():
            assert measured.tokens[document] == len(expected)
            assert measured.loss_sum[document] == pytest.approx(sum(expected), rel=1e-6)


def test_meta_names_the_commit_of_a_checkout_and_nothing_for_a_copy(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess

    import parcontrol
    from parcontrol.training.meta import git_state

    command = ["git", "-C", str(repository), "rev-parse", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True)
    expected = head.stdout.strip() if head.returncode == 0 else None
    state = git_state()
    assert (state and state["commit"]) == expected
    copy = tmp_path / "parcontrol"
    copy.mkdir()
    (copy / "__init__.py").touch()
    monkeypatch.setattr(parcontrol, "__file__", str(copy / "__init__.py"))
    assert git_state() is None
