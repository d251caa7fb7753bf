"""Loading of models that score: mirror, pickled weights, and everything that makes a metric absent."""

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification

from parcontrol.leaderboard.scoring.models import AbsentError, load_model
from tests.leaderboard.scorer_models import (
    POSITIONS,
    roberta_tokenizer,
    save_encoder,
    save_nli,
    save_roberta_classifier,
)


def load(repo: str | Path, tokenizer: str | Path | None = None) -> Any:
    return load_model(AutoModelForSequenceClassification, str(repo), tokenizer and str(tokenizer))


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    directory = save_roberta_classifier(tmp_path / "classifier")
    roberta_tokenizer().save_pretrained(directory)
    return directory


def test_mirror_and_tokenizer_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARCONTROL_MIRROR", str(tmp_path))
    save_roberta_classifier(tmp_path / "models/someone/classifier")
    roberta_tokenizer().save_pretrained(tmp_path / "models/someone/tokenizer")
    loaded = load("someone/classifier", "someone/tokenizer")
    assert loaded.source["model"] == "someone/classifier"
    assert re.fullmatch("local-[0-9a-f]{64}", loaded.source["sha"])
    assert not loaded.model.training
    # RoBERTa has more positions than tokens fit in.
    assert loaded.max_length == POSITIONS


def test_tokenizer_beside_the_model_wins(classifier: Path) -> None:
    assert len(load(classifier, "someone/not-there").tokenizer) == len(roberta_tokenizer())


def test_pickled_weights_give_the_same_model(classifier: Path) -> None:
    before = load(classifier).model.state_dict()
    weights = classifier / "model.safetensors"
    torch.save(load_file(weights), classifier / "pytorch_model.bin")
    weights.unlink()
    after = load(classifier).model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_pickled_code_is_not_run(classifier: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return (Path.touch, (classifier / "executed",))

    (classifier / "model.safetensors").unlink()
    (classifier / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(AbsentError, match="cannot be loaded"):
        load(classifier)
    assert not (classifier / "executed").exists()


def test_out_of_reach() -> None:
    with pytest.raises(AbsentError, match="someone/not-there cannot be loaded: "):
        load("someone/not-there")


def test_damaged_weights(classifier: Path) -> None:
    (classifier / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(AbsentError, match="cannot be loaded"):
        load(classifier)


def test_random_weights_are_not_taken_for_a_model(tmp_path: Path) -> None:
    directory = save_encoder(tmp_path / "headless")
    with pytest.raises(AbsentError, match=r"headless lacks weights: classifier\."):
        load(directory)


def without_pooler(directory: Path) -> Path:
    weights = directory / "model.safetensors"
    kept = {key: value for key, value in load_file(weights).items() if "pooler" not in key}
    assert len(kept) < len(load_file(weights))
    save_file(kept, weights, {"format": "pt"})
    return directory


def test_an_encoder_needs_no_pooler(tmp_path: Path) -> None:
    directory = without_pooler(save_encoder(tmp_path))
    assert load_model(AutoModel, str(directory)).model.config.model_type == "roberta"


def test_a_classifier_needs_its_pooler(tmp_path: Path) -> None:
    with pytest.raises(AbsentError, match=r"lacks weights: bert\.pooler\.dense"):
        load(without_pooler(save_nli(tmp_path, ["entailment", "contradiction"])))
