"""The four scorers of SelfCheckGPT against slow references; sentences; passages without text."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertForMultipleChoice, BertForSequenceClassification

from parcontrol.leaderboard.scoring.bertscore import BertScore
from parcontrol.leaderboard.scoring.models import AbsentError
from parcontrol.leaderboard.scoring.selfcheck.bertscore import BertScoreScorer
from parcontrol.leaderboard.scoring.selfcheck.ngram import NgramScorer
from parcontrol.leaderboard.scoring.selfcheck.nli import NliScorer
from parcontrol.leaderboard.scoring.selfcheck.passage import Inconsistency, Passage, consistency
from parcontrol.leaderboard.scoring.selfcheck.qa import QaModels, QaScorer, Question
from parcontrol.leaderboard.scoring.selfcheck.sentences import split_sentences
from tests.leaderboard.scorer_models import (
    WORDS,
    bert_tokenizer,
    save_chooser,
    save_doubter,
    save_encoder,
    save_generator,
    save_nli,
)

SENTENCES = ["The mayor opens a bridge.", "He won a prize."]
PASSAGE = Passage(
    " ".join(SENTENCES),
    ["The mayor opens a house. He sang.", "A storm hits the coast and nobody was hurt.", "He won."],
)


# --- sentences ---


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        (" … !\n\n?", []),
        ("One sentence without an end", ["One sentence without an end"]),
        (
            "Dr. J. R. Smith Jr. left St. Louis, U.S. in Sept. 1950. He paid $3.14! Why? Nobody knows.",
            ["Dr. J. R. Smith Jr. left St. Louis, U.S. in Sept. 1950.", "He paid $3.14!", "Why?", "Nobody knows."],
        ),
        ('"Stop!" he said. Then he left.', ['"Stop!"', "he said.", "Then he left."]),
        ("A heading\nA line. Another\n- item", ["A heading", "A line.", "Another", "- item"]),
        (
            "john smith -lrb- born 1950 -rrb- is a singer . he won .",
            ["john smith -lrb- born 1950 -rrb- is a singer .", "he won ."],
        ),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


@given(st.text(alphabet="aB. \n!3", max_size=40))
def test_sentences_lose_no_word(text: str) -> None:
    found = "".join(split_sentences(text))
    assert [character for character in found if character.isalnum()] == [c for c in text if c.isalnum()]


# --- passages ---


class Fixed:
    """A scorer with given scores."""

    name = "fixed"

    def __init__(self, average: list[float], maximum: list[float]) -> None:
        self.scores = Inconsistency(average, maximum)
        self.seen: list[Passage] = []

    def inconsistency(self, sentences: Sequence[str], passage: Passage) -> Inconsistency:
        self.seen.append(passage)
        return self.scores


def test_consistency_is_what_is_left_of_inconsistency() -> None:
    scorer = Fixed([0.2, 0.6], [0.3, 0.9])
    assert consistency(scorer, PASSAGE) == pytest.approx({"selfcheck_fixed_avg": 0.6, "selfcheck_fixed_max": 0.1})
    assert scorer.seen == [PASSAGE]


def test_empty_samples_contradict() -> None:
    scorer = Fixed([0.2, 0.6], [0.3, 0.9])
    found = consistency(scorer, Passage(PASSAGE.text, ["He won.", "", " \n", "…"]))
    assert found == pytest.approx({"selfcheck_fixed_avg": 0.6 / 4, "selfcheck_fixed_max": 0.1 / 4})
    assert scorer.seen == [Passage(PASSAGE.text, ["He won."])]


@pytest.mark.parametrize(
    "passage", [Passage("", ["He won."]), Passage(" …", ["He won."]), Passage("He won.", ["", " "])]
)
def test_nothing_to_compare_scores_nothing(passage: Passage) -> None:
    scorer = Fixed([0.0], [0.0])
    assert consistency(scorer, passage) == {"selfcheck_fixed_avg": 0, "selfcheck_fixed_max": 0}
    assert not scorer.seen


# --- n-grams ---


@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6), min_size=1, max_size=3), st.data())
def test_ngram_against_reference(sentences: list[list[str]], data: st.DataObject) -> None:
    samples = data.draw(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=8), min_size=1, max_size=3))
    texts = [" ".join(sentence).capitalize() + "." for sentence in sentences]
    found = NgramScorer().inconsistency(texts, Passage(" ".join(texts), [" ".join(sample) for sample in samples]))
    seen = [word for sentence in sentences for word in sentence] + [word for sample in samples for word in sample]
    for index, sentence in enumerate(sentences):
        chances = [seen.count(word) / len(seen) for word in sentence]
        assert found.for_average[index] == pytest.approx(1 - math.prod(chances) ** (1 / len(chances)))
        assert found.for_maximum[index] == pytest.approx(1 - min(chances))


# --- NLI ---


@torch.inference_mode()
def contradiction_by_hand(directory: Path, entails: int, contradicts: int, sentence: str, sample: str) -> float:
    inputs = bert_tokenizer()(sentence, sample, return_tensors="pt")
    logits = BertForSequenceClassification.from_pretrained(directory).eval()(**inputs).logits[0].tolist()
    return math.exp(logits[contradicts]) / (math.exp(logits[contradicts]) + math.exp(logits[entails]))


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize(
    ("labels", "entails", "contradicts"),
    [
        (["LABEL_0", "LABEL_1"], 0, 1),
        (["contradiction", "entailment"], 1, 0),
        (["CONTRADICTION", "NEUTRAL", "ENTAILMENT"], 2, 0),
    ],
)
def test_nli_against_reference(
    labels: list[str], entails: int, contradicts: int, batch_size: int, tmp_path: Path
) -> None:
    save_nli(tmp_path, labels)
    found = NliScorer(batch_size, str(tmp_path)).inconsistency(SENTENCES, PASSAGE)
    expected = [
        sum(contradiction_by_hand(tmp_path, entails, contradicts, sentence, sample) for sample in PASSAGE.samples) / 3
        for sentence in SENTENCES
    ]
    assert found.for_average == found.for_maximum == pytest.approx(expected, abs=1e-5)


def test_nli_needs_its_labels(tmp_path: Path) -> None:
    save_nli(tmp_path, ["good", "bad", "neutral"])
    with pytest.raises(
        AbsentError, match=r"no label says entailment and contradiction among \['bad', 'good', 'neutral'\]"
    ):
        NliScorer(4, str(tmp_path)).inconsistency(SENTENCES, PASSAGE)


# --- BERTScore ---


def test_bertscore_against_reference(tmp_path: Path) -> None:
    encoder = BertScore(4, str(save_encoder(tmp_path)), layer=1)
    found = BertScoreScorer(encoder).inconsistency(SENTENCES, PASSAGE)
    samples = [["The mayor opens a house.", "He sang."], [PASSAGE.samples[1]], ["He won."]]
    for score, sentence in zip(found.for_average, SENTENCES, strict=True):
        best = [max(encoder.match([sentence], [other])[0].f1 for other in sample) for sample in samples]
        assert score == pytest.approx(1 - sum(best) / 3, abs=1e-5)


def test_bertscore_of_equal_texts(tmp_path: Path) -> None:
    scorer = BertScoreScorer(BertScore(4, str(save_encoder(tmp_path)), layer=1))
    assert scorer.inconsistency(SENTENCES, Passage(PASSAGE.text, [PASSAGE.text])).for_average == pytest.approx(
        [0, 0], abs=1e-5
    )


# --- questions and answers ---


@pytest.fixture(scope="module")
def qa(tmp_path_factory: pytest.TempPathFactory) -> QaScorer:
    directory = tmp_path_factory.mktemp("qa")
    asked = {
        "the mayor opens a bridge.": "who opens a bridge <sep> mayor",
        "he won a prize.": "what was won <sep> prize",
    }
    text = " ".join(asked)
    wrong = {
        f"who opens a bridge <sep> mayor <sep> {text}": "bird <sep> house <sep> river",
        f"what was won <sep> prize <sep> {text}": "city <sep> prize <sep> city",
    }
    return QaScorer(
        8,
        QaModels(
            str(save_generator(directory / "questions", asked)),
            str(save_generator(directory / "distractors", wrong)),
            str(save_chooser(directory / "answering")),
            str(save_doubter(directory / "answerability")),
        ),
    )


QA_PASSAGE = Passage(
    "the mayor opens a bridge. he won a prize.", ["a bird opens the house", "the mayor was hurt in the city", "he won"]
)
QA_SENTENCES = ["the mayor opens a bridge.", "he won a prize."]


def test_questions(qa: QaScorer) -> None:
    first, second = qa.questions(QA_SENTENCES, QA_PASSAGE.text)
    assert first[0] == Question("who opens a bridge", ("mayor", "bird", "house", "river"))
    assert second[0] == Question("what was won", ("prize", "city"))


@torch.inference_mode()
def test_answers_against_reference(qa: QaScorer) -> None:
    question = Question("who opens a bridge", ("mayor", "bird", "house", "river"))
    chooser = BertForMultipleChoice.from_pretrained(qa.models.answering).eval()
    doubter = BertForSequenceClassification.from_pretrained(qa.models.answerability).eval()
    tokenizer = bert_tokenizer()
    choices, answerable = [], []
    for passage in QA_PASSAGE.samples:
        logits = [
            chooser(
                **{
                    name: tensor.unsqueeze(0)
                    for name, tensor in tokenizer(
                        f"{passage} [CLS] {question.text}", option, return_tensors="pt"
                    ).items()
                }
            ).logits.item()
            for option in question.options
        ]
        choices.append(logits.index(max(logits)))
        logit = doubter(**tokenizer(f"{question.text} [SEP] {passage}", return_tensors="pt")).logits.item()
        answerable.append(1 / (1 + math.exp(-logit)))
    for batch_size in (1, 8, 100):
        scorer = QaScorer(batch_size, qa.models)
        assert scorer.choices(question, QA_PASSAGE.samples) == choices
        assert scorer.answerability(question.text, QA_PASSAGE.samples) == pytest.approx(answerable, abs=1e-5)


def test_qa_score_by_hand(qa: QaScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    # The passage chooses option 0. One sample does so too and answers the question with 0.5, two choose others, with
    # 1 and 0.25; gamma = 0.8 / 0.2 = 4: 4^1.25 / (4^0.5 + 4^1.25).
    monkeypatch.setattr(qa, "choices", lambda question, passages: [0, 0, 1, 3][: len(passages)])
    monkeypatch.setattr(qa, "answerability", lambda question, passages: [0.5, 1.0, 0.25])
    found = qa.inconsistency(QA_SENTENCES, QA_PASSAGE)
    assert found.for_average == pytest.approx([4**1.25 / (4**0.5 + 4**1.25)] * 2)


def test_qa_end_to_end(qa: QaScorer) -> None:
    found = qa.inconsistency(QA_SENTENCES, QA_PASSAGE)
    expected = []
    for questions in qa.questions(QA_SENTENCES, QA_PASSAGE.text):
        scores = []
        for question in questions:
            (own,) = qa.choices(question, [QA_PASSAGE.text])
            same = other = 0.0
            for sample in QA_PASSAGE.samples:
                (choice,), (alpha,) = qa.choices(question, [sample]), qa.answerability(question.text, [sample])
                same, other = (same + alpha, other) if choice == own else (same, other + alpha)
            scores.append(4**other / (4**same + 4**other))
        expected.append(sum(scores) / len(scores))
    assert found.for_average == found.for_maximum == pytest.approx(expected, abs=1e-5)
    assert found == qa.inconsistency(QA_SENTENCES, QA_PASSAGE)


def test_sentences_without_a_question_are_undecided(qa: QaScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qa, "questions", lambda sentences, passage: [[] for _ in sentences])
    assert qa.inconsistency(QA_SENTENCES, QA_PASSAGE).for_average == [0.5, 0.5]


def test_equal_samples_agree(qa: QaScorer) -> None:
    found = qa.inconsistency(QA_SENTENCES, Passage(QA_PASSAGE.text, [QA_PASSAGE.text] * 5))
    assert max(found.for_average) < 0.5
