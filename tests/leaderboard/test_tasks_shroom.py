"""SHROOM through the harness: what is asked, accuracy and rank correlation against independent values."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from parcontrol.leaderboard.evaluate.spool import RESULTS, read_samples, write_task
from parcontrol.leaderboard.scoring import rescore
from parcontrol.leaderboard.scoring.rank import spearman, spearman_stderr
from tests.leaderboard.scripted_model import ScriptedModel, evaluate, write_rows

YES, NO = "Hallucination", "Not Hallucination"
SHARES = [0.0, 0.2, 0.4, 0.6, 1.0]


def row(hyp: str, share: float, **other: Any) -> dict[str, Any]:
    votes = round(share * 5)
    labels = [YES] * votes + [NO] * (5 - votes)
    label = YES if share > 0.5 else NO
    texts = {"src": "le chat <b>", "tgt": "the cat", "hyp": hyp, "ref": "either", "model": "", "task": "MT"}
    return texts | {"labels": labels, "label": label, "p(Hallucination)": share} | other


def rows() -> list[dict[str, Any]]:
    return [row(f"output {index}", share) for index, share in enumerate(SHARES)]


def believer(beliefs: list[float]) -> ScriptedModel:
    """Gives its P(Hallucination) of the row that a prompt is about; the likelihoods do not add up to 1."""
    by_output = {f"Output: output {index}\n": belief for index, belief in enumerate(beliefs)}

    def likelihood(prompt: str, answer: str) -> float:
        belief = next(belief for output, belief in by_output.items() if output in prompt)
        return math.log({f" {YES}": belief, f" {NO}": 1 - belief}[answer]) - 3

    return ScriptedModel(likelihood=likelihood)


def test_prompt(tmp_path: Path) -> None:
    write_rows(tmp_path, "pminervini/shroom/MT.jsonl", [row("a dog", 1.0), row("  the cat ", 0.0, tgt=None)])
    model = ScriptedModel(likelihood=lambda prompt, answer: -1.0)
    evaluate("shroom_mt", model, tmp_path)
    first, second = model.asked[0][0], model.asked[2][0]
    assert first.startswith("A system translated its source.")
    assert first.endswith("\nSource: le chat <b>\nReference: the cat\nOutput: a dog\nLabel:")
    assert second.endswith("\nSource: le chat <b>\nOutput: the cat\nLabel:")
    assert [answer for _, answer in model.asked[:2]] == [f" {YES}", f" {NO}"]


@pytest.mark.parametrize(
    ("kind", "did"), [("DM", "explained the meaning of a word"), ("MT", "translated"), ("PG", "put its source into")]
)
@pytest.mark.parametrize("other", [{}, {"task": "definition modeling"}])
def test_the_split_says_what_the_system_did(kind: str, did: str, other: dict[str, str], tmp_path: Path) -> None:
    bare = {key: value for key, value in row("a dog", 1.0).items() if key != "task"}
    write_rows(tmp_path, f"pminervini/shroom/{kind}.jsonl", [bare | other] * 2)
    model = ScriptedModel(likelihood=lambda prompt, answer: -1.0)
    evaluate(f"shroom_{kind.lower()}", model, tmp_path)
    assert model.asked[0][0].startswith(f"A system {did}")


def lower(one: dict[str, Any]) -> dict[str, Any]:
    return one | {"label": one["label"].lower() + " ", "labels": [label.upper() for label in one["labels"]]}


@pytest.mark.parametrize("missing", [[], ["p(Hallucination)"], ["p(Hallucination)", "label"]])
def test_labels_in_any_case(missing: list[str], tmp_path: Path) -> None:
    without = [{key: value for key, value in lower(one).items() if key not in missing} for one in rows()]
    write_rows(tmp_path, "pminervini/shroom/MT.jsonl", without)
    results = evaluate("shroom_mt", believer([0.1, 0.2, 0.3, 0.7, 0.9]), tmp_path)
    assert results["results"]["shroom_mt"]["acc,none"] == 1
    assert results["results"]["shroom_mt"]["spearman,none"] == 1


@pytest.mark.parametrize("wrong", [{"label": "Halucination"}, {"labels": [NO, "Halucination"]}])
def test_an_unknown_label_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    write_rows(tmp_path, "pminervini/shroom/MT.jsonl", [*rows()[:2], rows()[2] | wrong])
    with pytest.raises(
        ValueError, match=r"task shroom_mt: .*row 3 of SHROOM has the label 'Halucination', and neither"
    ):
        evaluate("shroom_mt", believer([]), tmp_path)


@pytest.mark.parametrize("kind", ["DM", "MT", "PG"])
def test_agreeing_model(kind: str, tmp_path: Path) -> None:
    write_rows(tmp_path, f"pminervini/shroom/{kind}.jsonl", [{**one, "task": kind} for one in rows()])
    task = f"shroom_{kind.lower()}"
    results = evaluate(task, believer([0.1, 0.2, 0.3, 0.7, 0.9]), tmp_path)
    assert results["results"][task]["acc,none"] == 1
    assert results["results"][task]["spearman,none"] == 1
    assert results["higher_is_better"][task] == {"acc": True, "spearman": True}


def test_scores_by_hand(tmp_path: Path) -> None:
    write_rows(tmp_path, "pminervini/shroom/MT.jsonl", rows())
    results = evaluate("shroom_mt", believer([0.6, 0.1, 0.3, 0.4, 0.9]), tmp_path)
    # Right are rows 1, 2 and 4. Ranks (4, 1, 2, 3, 5) against (1, 2, 3, 4, 5): 1 - 6 (9 + 1 + 1 + 1) / (5 * 24) = 0.4.
    assert results["results"]["shroom_mt"]["acc,none"] == pytest.approx(3 / 5)
    assert results["results"]["shroom_mt"]["spearman,none"] == pytest.approx(0.4)
    pairs = [sample["spearman"] for sample in results["samples"]["shroom_mt"]]
    assert pairs == [
        (pytest.approx(model), share) for model, share in zip([0.6, 0.1, 0.3, 0.4, 0.9], SHARES, strict=True)
    ]


def test_an_undecided_model_says_that_all_is_well(tmp_path: Path) -> None:
    write_rows(tmp_path, "pminervini/shroom/MT.jsonl", rows())
    results = evaluate("shroom_mt", believer([0.5] * 5), tmp_path)
    assert results["results"]["shroom_mt"]["acc,none"] == pytest.approx(3 / 5)


def test_rows_with_votes_only(tmp_path: Path) -> None:
    without = [{key: value for key, value in one.items() if key not in ("label", "p(Hallucination)")} for one in rows()]
    write_rows(tmp_path, "pminervini/shroom/MT.jsonl", [*without, without[0] | {"labels": []}])
    results = evaluate("shroom_mt", believer([0.6, 0.1, 0.3, 0.4, 0.9]), tmp_path)
    assert results["n-samples"]["shroom_mt"]["effective"] == 5  # the row that nobody judged is left out
    assert results["results"]["shroom_mt"]["acc,none"] == pytest.approx(3 / 5)
    assert results["results"]["shroom_mt"]["spearman,none"] == pytest.approx(0.4)


def test_unannotated_dataset_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path, "pminervini/shroom/MT.jsonl", [{"src": "a", "tgt": "b", "hyp": "c", "task": "MT"}])
    with pytest.raises(ValueError, match="no row of SHROOM is annotated"):
        evaluate("shroom_mt", believer([]), tmp_path)


def finished(tmp_path: Path, beliefs: list[float]) -> Path:
    write_rows(tmp_path, "pminervini/shroom/MT.jsonl", rows())
    results = evaluate("shroom_mt", believer(beliefs), tmp_path)
    write_task(tmp_path / "shroom_mt", results, results.pop("samples")["shroom_mt"])
    return tmp_path / "shroom_mt"


def read(directory: Path) -> dict[str, Any]:
    return json.loads((directory / RESULTS).read_text(), parse_constant=pytest.fail)  # NaN is no JSON


def test_constant_prediction_has_no_correlation(tmp_path: Path) -> None:
    directory = finished(tmp_path, [0.3] * 5)
    failures = rescore(directory)
    results = read(directory)
    assert "the model's P(Hallucination) is the same in every row" in failures["spearman"]
    assert results["parcontrol"]["absent"] == {"shroom_mt": failures}
    assert not any("spearman" in key for key in results["results"]["shroom_mt"])
    assert results["results"]["shroom_mt"]["acc,none"] == pytest.approx(3 / 5)


def test_standard_error_of_the_correlation(tmp_path: Path) -> None:
    directory = finished(tmp_path, [0.6, 0.1, 0.3, 0.4, 0.9])
    assert rescore(directory) == {}
    metrics = read(directory)["results"]["shroom_mt"]
    assert metrics["spearman,none"] == pytest.approx(0.4)
    assert metrics["spearman_stderr,none"] == pytest.approx((1 - 0.16) * math.sqrt(1.08 / 2))
    assert len(read_samples(directory / "samples.jsonl.zst")) == 5


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=20))
def test_correlation_against_scipy(pairs: list[tuple[int, int]]) -> None:
    first, second = zip(*pairs, strict=True)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert spearman(pairs) is None
    else:
        assert spearman(pairs) == pytest.approx(spearmanr(first, second).statistic)


def test_standard_error_against_simulation() -> None:
    # Normal pairs with correlation 0.6: the spread of 2,000 estimates from 50 pairs each.
    import numpy as np

    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 2000, 50))
    y = 0.6 * x + 0.8 * noise
    estimates = [spearman(list(zip(*pair, strict=True))) for pair in zip(x, y, strict=True)]
    assert spearman_stderr(float(np.mean(estimates)), 50) == pytest.approx(float(np.std(estimates)), rel=0.1)
    assert spearman_stderr(0.5, 3) is None
