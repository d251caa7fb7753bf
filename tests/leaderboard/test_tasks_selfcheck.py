"""SelfCheckGPT through the harness: one greedy and five sampled requests, scores by hand, repeatable samples."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.leaderboard.scripted_model import ScriptedModel, evaluate, write_rows

FIRST = "Dr. John R. Smith Jr. (born 3 May 1950) is a chemist from St. Louis, U.S. state of Missouri."


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    row = {
        "gpt3_text": "John Smith is a chemist.",
        "wiki_bio_text": f"{FIRST} He won prizes.",
        "gpt3_sentences": ["John Smith is a chemist."],
        "annotation": ["accurate"],
        "wiki_bio_test_idx": 7,
        "gpt3_text_samples": ["John Smith is a chemist."],
    }
    write_rows(tmp_path, "potsawee/wiki_bio_gpt3_hallucination/data/evaluation-00000-of-00001.jsonl", [row, row])
    return tmp_path


def script(greedy: str, samples: list[str]) -> ScriptedModel:
    """Writes the same for both rows."""
    left = samples * 2

    def write(prompt: str, how: Mapping[str, Any]) -> str:
        return left.pop(0) if how["do_sample"] else greedy

    return ScriptedModel(write)


def test_requests(rows: Path) -> None:
    model = script("text", ["text"] * 5)
    results = evaluate("selfcheckgpt", model, rows)
    assert len(model.asked) == 12
    assert {prompt for prompt, _ in model.asked} == {
        f"Write a short passage, as in Wikipedia, that goes on from this first sentence.\n\n{FIRST}"
    }
    greedy, *sampled = (how for _, how in model.asked[:6])
    assert greedy == {"until": ["\n\n"], "max_gen_toks": 256, "do_sample": False}
    assert sampled == [{**greedy, "do_sample": True, "temperature": 0.99, "top_p": 1.0, "top_k": 0}] * 5
    assert len(results["samples"]["selfcheckgpt"][1]["filtered_resps"]) == 6


def test_consistent_model(rows: Path) -> None:
    # One word, always the same: it has probability 1.
    metrics = evaluate("selfcheckgpt", script("Yes.", ["Yes."] * 5), rows)["results"]["selfcheckgpt"]
    assert metrics["selfcheck_ngram_avg,none"] == metrics["selfcheck_ngram_max,none"] == 1


def test_scores_by_hand(rows: Path) -> None:
    # Counts over passage and samples: he 1 + 5, won 1, left 1 + 5, sang 5; 18 words.
    # "He won.": the geometric mean of 6/18 and 1/18 is 0.13608; "Left.": 6/18. The least likely word: 1/18.
    results = evaluate("selfcheckgpt", script("He won. Left.", ["He sang, left."] * 5), rows)
    metrics = results["results"]["selfcheckgpt"]
    assert metrics["selfcheck_ngram_avg,none"] == pytest.approx((0.136083 + 1 / 3) / 2, abs=1e-6)
    assert metrics["selfcheck_ngram_max,none"] == pytest.approx(1 / 18)
    assert all(results["higher_is_better"]["selfcheckgpt"].values())


@pytest.mark.parametrize(
    ("greedy", "samples", "share"),
    [
        ("", ["He won."] * 5, 0),
        ("…!", ["He won."] * 5, 0),
        ("He won.", [""] * 5, 0),
        ("Yes.", ["Yes.", "", "Yes.", " ", "Yes."], 3 / 5),
    ],
)
def test_empty_texts_support_nothing(greedy: str, samples: list[str], share: float, rows: Path) -> None:
    metrics = evaluate("selfcheckgpt", script(greedy, samples), rows)["results"]["selfcheckgpt"]
    assert metrics["selfcheck_ngram_avg,none"] == pytest.approx(share)
    assert metrics["selfcheck_ngram_max,none"] == pytest.approx(share)


def test_a_seed_repeats_the_samples(rows: Path, tiny_model_dir: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    model = HFLM(str(tiny_model_dir), device="cpu", dtype="float32", max_length=400)

    def answers(seed: int) -> list[list[str]]:
        results = evaluate("selfcheckgpt", model, rows, limit=1, torch_random_seed=seed)
        return results["samples"]["selfcheckgpt"][0]["filtered_resps"]

    first, again, other = answers(1), answers(1), answers(2)
    assert first == again
    assert len(set(first[1:])) == 5
    assert first[0] == other[0]
    assert set(first[1:]).isdisjoint(other[1:])
