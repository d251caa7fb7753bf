"""The harness's own tasks without the network, and what is ours in SQuAD v2 and WikiText."""

import ast
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api.instance import Instance

from parcontrol.leaderboard.harness import SAMPLES
from parcontrol.leaderboard.tasks.squadv2.squadv2 import best_over_thresholds
from parcontrol.leaderboard.tasks.wikitext.standard_error import perplexity_standard_error
from tests.leaderboard.scripted_model import ScriptedModel, evaluate, write_rows

# --- squadv2 ---

# Passage, question, right answers (none: it has no answer), reply, exact match and F1 in percent.
PASSAGES = [
    ("Ada built it in 1871.", "Who built it?", ["Ada", "Ada Thorne"], " Ada Thorne.", 100, 100),
    # 1 common word of 2 against 1: F1 2/3.
    ("It is 212 km long.", "How long is it?", ["212 km"], " 212", 0, 100 * 2 / 3),
    ("The sea is blue.", "Who owns the sea?", [], "", 100, 100),
    ("The sky is blue.", "Who owns the sky?", [], " unanswerable", 0, 0),
    ("The tea is hot.", "What is the tea?", ["hot"], "", 0, 0),
    ("In D.C. it rains.", "Where does it rain?", ["D.C."], " in the D.C.", 0, 100 * 2 / 3),
]


@pytest.fixture
def squad(tmp_path: Path) -> Path:
    rows = [
        {
            "id": str(i),
            "title": f"Title {i}",
            "context": context,
            "question": question,
            "answers": {"text": answers, "answer_start": [0] * len(answers)},
        }
        for i, (context, question, answers, *_) in enumerate(PASSAGES)
    ]
    # A second question about a passage is no example for the first.
    rows.append({**rows[0], "id": "again", "question": "When was it built?"})
    write_rows(tmp_path, "lighteval/squad_v2/squad_v2/validation-00000-of-00001.jsonl", rows)
    return tmp_path


def script_squad(unanswerable: float = 0.5) -> ScriptedModel:
    replies = {question: reply for _, question, _, reply, *_ in PASSAGES} | {"When was it built?": "1871"}
    return ScriptedModel(
        write=lambda prompt, how: replies[prompt.rpartition("Question: ")[2].removesuffix("\n\nAnswer:")],
        likelihood=lambda prompt, continuation: math.log(unanswerable),
    )


def test_squad_is_scored_by_hand_and_without_code_from_elsewhere(squad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "evaluate", None)  # the library with which the harness fetches the metric
    results = evaluate("squadv2", script_squad(), squad)
    metrics = results["results"]["squadv2"]
    # The last question's reply is wrong.
    expected = {"exact": [*(exact for *_, exact, _ in PASSAGES), 0], "f1": [*(f1 for *_, f1 in PASSAGES), 0]}
    for metric, scores in expected.items():
        assert [sample[metric] for sample in results["samples"]["squadv2"]] == pytest.approx(scores)
        assert metrics[f"{metric},none"] == pytest.approx(np.mean(scores))
        assert metrics[f"{metric}_stderr,none"] == pytest.approx(np.std(scores, ddof=1) / math.sqrt(len(scores)))
    # Silence is right for 2 of 7; taking back the first answer, which is right, gives the best: 3 of 7.
    assert metrics["best_exact,none"] == pytest.approx(300 / 7)
    assert all(results["higher_is_better"]["squadv2"].values())


def test_squad_prompt(squad: Path) -> None:
    model = script_squad()
    evaluate("squadv2", model, squad)
    written = [(prompt, how) for prompt, how in model.asked if isinstance(how, dict)]
    assert {how for _, how in model.asked if isinstance(how, str)} == {" unanswerable"}
    for (prompt, how), (context, question, *_) in zip(written, PASSAGES, strict=False):
        title, *_ = prompt.rpartition("Title: ")[2].split("\n")
        assert prompt.endswith(f"Title: {title}\n\nBackground: {context}\n\nQuestion: {question}\n\nAnswer:")
        assert how["until"] == ["\n"]
        assert prompt.count(f"Background: {context}\n") == 1
        assert prompt.count("Title: ") == 5
    first = written[0][0]
    assert "Answer: unanswerable\n\nTitle" in first or "Answer: hot\n\nTitle" in first
    assert "Answer:  " not in first


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        # Answered rightly and surely: everything answered, but for the unanswerable one.
        ([(100, 0.1, True, True), (100, 0.2, True, True), (0, 0.9, False, True)], 100),
        # The unanswerable one looks answerable: answer none (1/3), or all three (2/3).
        ([(100, 0.5, True, True), (100, 0.6, True, True), (0, 0.1, False, True)], 200 / 3),
        # Nothing is right: leave all unanswered.
        ([(0, 0.1, True, True), (0, 0.2, True, True), (100, 0.3, False, False)], 100 / 3),
    ],
)
def test_best_threshold(rows: list[tuple[float, float, bool, bool]], best: float) -> None:
    assert best_over_thresholds(rows) == pytest.approx(best)
    # By trying all thresholds: below it the reply counts, above it silence does.
    tried = [
        np.mean([score if p <= threshold else 100.0 * (not answerable) for score, p, answerable, _ in rows])
        for threshold in [-1, *(p for _, p, *_ in rows)]
    ]
    assert best_over_thresholds(rows) == pytest.approx(max(tried))


# --- wikitext ---


class Rolling(ScriptedModel):
    """Gives every text a log-likelihood of its own."""

    def __init__(self, loglikelihoods: list[float]) -> None:
        super().__init__()
        self.loglikelihoods = loglikelihoods

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        return self.loglikelihoods


def test_wikitext_has_a_standard_error(tmp_path: Path) -> None:
    pages = [" = Sea = \n \n The sea is wide . \n", " = Sky = \n \n The sky is high and blue . \n"]
    write_rows(
        tmp_path, "EleutherAI/wikitext_document_level/wikitext-2-raw-v1/test.jsonl", [{"page": p} for p in pages]
    )
    metrics = evaluate("wikitext", Rolling([-22.0, -39.0]), tmp_path)["results"]["wikitext"]
    # 10 and 12 pieces between white space, the empty ones at both ends among them.
    assert metrics["word_perplexity,none"] == pytest.approx(math.exp(61 / 22))
    ratio = 61 / 22
    residuals = [22 - ratio * 10, 39 - ratio * 12]
    by_hand = math.exp(ratio) * math.sqrt(2 / 1 * sum(r * r for r in residuals)) / 22
    assert metrics["word_perplexity_stderr,none"] == pytest.approx(by_hand)


def test_standard_error_of_perplexity_agrees_with_the_jackknife() -> None:
    chosen = np.random.default_rng(0)
    words = chosen.integers(50, 400, size=400)
    texts = [(-float(chosen.normal(3.0, 0.3) * n), int(n)) for n in words]

    def perplexity(sample: list[tuple[float, int]]) -> float:
        return math.exp(-sum(ll for ll, _ in sample) / sum(n for _, n in sample))

    left_out = np.array([perplexity(texts[:i] + texts[i + 1 :]) for i in range(len(texts))])
    jackknife = math.sqrt((len(texts) - 1) * np.mean((left_out - left_out.mean()) ** 2))
    assert perplexity_standard_error(texts) == pytest.approx(jackknife, rel=0.02)
    assert perplexity_standard_error(texts[:1]) == "N/A"


# --- the rest: over the sample set, with replies whose scores are known ---

# Task, right answer of a row as the position of the choice that the harness asks for.
RIGHT = {
    "truthfulqa_mc1": lambda row: 0,
    "winogrande": lambda row: int(row["answer"]) - 1,
    "race": lambda row: "ABCD".index(ast.literal_eval(row["problems"])[-1]["answer"]),
}


class Chooser(ScriptedModel):
    """Finds the right choice of each row likeliest, or the wrong ones."""

    def __init__(self, right: Any, sign: int) -> None:
        super().__init__()
        self.right, self.sign = right, sign

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        return [(self.sign * float(request.idx == self.right(request.doc)), False) for request in requests]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("task", RIGHT)
def test_choices_of_the_harness(task: str, sign: int) -> None:
    results = evaluate(task, Chooser(RIGHT[task], sign), SAMPLES)
    assert results["results"][task]["acc,none"] == (sign == 1)
