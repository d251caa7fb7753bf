"""BERTScore and FactKB against slow references: one text at a time, no padding, matching by hand."""

from pathlib import Path

import pytest
import torch
from transformers import RobertaForSequenceClassification, RobertaModel, RobertaTokenizer

from parcontrol.leaderboard.scoring.bertscore import LAYER, BertScore
from parcontrol.leaderboard.scoring.factkb import FactKB
from parcontrol.leaderboard.scoring.models import AbsentError
from tests.leaderboard.scorer_models import (
    POSITIONS,
    WORDS,
    roberta_tokenizer,
    save_encoder,
    save_nli,
    save_roberta_classifier,
)

LONG = " ".join(WORDS * 3)
SUMMARIES = ["the mayor opens a bridge", "storm", "", "nobody was hurt and the old bird sang", " \n", "naïve 数"]
DOCUMENTS = ["the mayor of the city opens a new bridge", LONG, "the river", "a storm hits the coast", "the", LONG]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder"), layers=3)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = save_roberta_classifier(tmp_path_factory.mktemp("classifier"))
    roberta_tokenizer().save_pretrained(directory)
    return directory


@torch.inference_mode()
def bert_score_by_hand(directory: Path, layer: int, candidate: str, reference: str) -> tuple[float, float]:
    """Precision and F1 after the paper's equations; start and end can be matched but are not averaged over."""
    tokenizer = RobertaTokenizer.from_pretrained(directory, add_prefix_space=True)
    model = RobertaModel.from_pretrained(directory).eval()
    vectors = []
    for text in (candidate, reference):
        ids = tokenizer(text.strip()).input_ids
        ids = ids if len(ids) <= POSITIONS else [*ids[: POSITIONS - 1], ids[-1]]
        hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0]
        vectors.append([vector / vector.norm() for vector in hidden])
    best = [
        sum(max(float(x @ y) for y in others) for x in own[1:-1]) / (len(own) - 2)
        for own, others in (vectors, reversed(vectors))
    ]
    precision, recall = best
    return precision, 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("layer", [1, 2])
def test_bert_score_against_reference(encoder: Path, layer: int) -> None:
    matches = BertScore(4, str(encoder), layer).match(SUMMARIES, DOCUMENTS)
    for match, summary, document in zip(matches, SUMMARIES, DOCUMENTS, strict=True):
        expected = bert_score_by_hand(encoder, layer, summary, document) if summary.strip() else (0.0, 0.0)
        assert match == pytest.approx(expected, abs=1e-5)


def test_bert_score_against_the_library(encoder: Path) -> None:
    from collections import defaultdict

    from bert_score.utils import bert_cos_score_idf, model2layers

    assert model2layers["roberta-large"] == LAYER
    scorer = BertScore(4, str(encoder), 2)
    model, tokenizer = scorer.loaded.model, scorer.loaded.tokenizer
    tokenizer.model_max_length = POSITIONS
    weights = defaultdict(lambda: 1.0, {tokenizer.cls_token_id: 0.0, tokenizer.sep_token_id: 0.0})
    for summary, document in zip(SUMMARIES, DOCUMENTS, strict=True):
        if summary.strip():
            scores = bert_cos_score_idf(model, [document], [summary], tokenizer, weights, batch_size=1, device="cpu")
            precision, _, f1 = scores[0].tolist()
            assert scorer.match([summary], [document])[0] == pytest.approx((precision, f1), abs=1e-5)


def test_bert_score_of_equal_texts(encoder: Path) -> None:
    assert BertScore(4, str(encoder), 2).match([LONG], [LONG]) == [pytest.approx((1, 1), abs=1e-5)]


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_bert_score_does_not_depend_on_the_batch(encoder: Path, batch_size: int) -> None:
    # More pairs than one chunk of batches has.
    many = BertScore(batch_size, str(encoder), 2).match(SUMMARIES * 5, DOCUMENTS * 5)
    once = BertScore(8, str(encoder), 2).match(SUMMARIES, DOCUMENTS)
    assert [value for match in many for value in match] == pytest.approx([v for m in once for v in m] * 5, abs=1e-5)


def test_bert_score_needs_its_layer(encoder: Path) -> None:
    with pytest.raises(AbsentError, match="no encoder with the 17 layers"):
        BertScore(4, str(encoder)).match(["a"], ["b"])


@torch.inference_mode()
def factual_by_hand(directory: Path, summary: str, document: str) -> float:
    """P of the second label for `<s> summary </s></s> document </s>`, the document cut at its end."""
    tokenizer = roberta_tokenizer()
    first, second = (tokenizer(text, add_special_tokens=False).input_ids for text in (summary.strip(), document))
    second = second[: POSITIONS - len(first) - 4]
    start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    ids = [start, *first, end, end, *second, end]
    logits = RobertaForSequenceClassification.from_pretrained(directory).eval()(torch.tensor([ids])).logits[0]
    return float(logits[1].exp() / logits.exp().sum())


def test_factkb_against_reference(classifier: Path) -> None:
    scores = FactKB(2, str(classifier)).probabilities(SUMMARIES, DOCUMENTS)
    expected = [
        factual_by_hand(classifier, summary, document) if summary.strip() else 0.0
        for summary, document in zip(SUMMARIES, DOCUMENTS, strict=True)
    ]
    assert scores == pytest.approx(expected, abs=1e-5)
    assert max(scores) - min(score for score in scores if score) > 0.05  # the tiny model has opinions


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_factkb_does_not_depend_on_the_batch(classifier: Path, batch_size: int) -> None:
    scores = FactKB(batch_size, str(classifier)).probabilities(SUMMARIES, DOCUMENTS)
    assert scores == pytest.approx(FactKB(3, str(classifier)).probabilities(SUMMARIES, DOCUMENTS), abs=1e-5)


def test_a_summary_longer_than_the_model(classifier: Path) -> None:
    (score,) = FactKB(1, str(classifier)).probabilities([LONG], [LONG])
    assert 0 < score < 1


def test_factkb_is_a_classifier_with_two_labels(tmp_path: Path) -> None:
    with pytest.raises(AbsentError, match="has 3 labels instead of 2"):
        FactKB(1, str(save_nli(tmp_path, ["a", "b", "c"]))).probabilities(["a"], ["b"])
