"""Tasks with given answers through the harness: what is asked, what is right, and accuracy by hand."""

import ast
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

from tests.leaderboard.scripted_model import ScriptedModel, evaluate, write_rows


def chooser(answer: Callable[[str], str]) -> ScriptedModel:
    """A model that finds one continuation of each prompt likelier than the others."""
    return ScriptedModel(likelihood=lambda prompt, continuation: 0.0 if continuation == answer(prompt) else -1.0)


def accuracy(results: dict[str, Any], task: str) -> float:
    """The accuracy, whose standard error has to be that of a share."""
    metrics, n = results["results"][task], results["n-samples"][task]["effective"]
    assert metrics["acc_stderr,none"] == pytest.approx(
        math.sqrt(metrics["acc,none"] * (1 - metrics["acc,none"]) / (n - 1))
    )
    assert results["higher_is_better"][task] == {"acc": True}
    return metrics["acc,none"]


# --- memo_trap ---

TRAPS = [
    {
        "prompt": 'End with "heavy": Absence makes the heart grow',
        "classes": "[' heavy.', ' fonder.']",
        "answer_index": 0,
    },
    {
        "prompt": "End as usual: It's no use crying over",
        "classes": '[" spilt milk.", " it\'s milk."]',
        "answer_index": 0,
    },
    {"prompt": "End with \"été\": L'hirondelle ne fait pas l'", "classes": "[' hiver.', ' été.']", "answer_index": 1},
]


@pytest.fixture
def traps(tmp_path: Path) -> Path:
    rows = [{**trap, "round": 2, "part": 1} for trap in TRAPS]
    write_rows(tmp_path, "pminervini/inverse-scaling/memo-trap/data.jsonl", rows)
    return tmp_path


def test_memo_trap_adds_no_space(traps: Path) -> None:
    model = chooser(lambda prompt: "")
    evaluate("memo_trap", model, traps)
    assert model.asked == [(trap["prompt"], ending) for trap in TRAPS for ending in ast.literal_eval(trap["classes"])]
    assert model.asked[0][1] == " heavy."
    assert model.asked[3][1] == " it's milk."


def test_memo_trap_by_hand(traps: Path) -> None:
    right = {trap["prompt"]: ast.literal_eval(trap["classes"])[trap["answer_index"]] for trap in TRAPS}
    assert accuracy(evaluate("memo_trap", chooser(right.__getitem__), traps), "memo_trap") == 1
    first = {trap["prompt"]: ast.literal_eval(trap["classes"])[0] for trap in TRAPS}
    assert accuracy(evaluate("memo_trap", chooser(first.__getitem__), traps), "memo_trap") == pytest.approx(2 / 3)


# --- truefalse ---


def test_truefalse(tmp_path: Path) -> None:
    truth = {f"Statement {i} holds.": int(i % 3 == 0) for i in range(12)}
    rows = [{"statement": statement, "label": label} for statement, label in truth.items()]
    for split, part in (("cieacf", rows), ("generated", rows[:1]), ("facts", rows[:2])):
        write_rows(tmp_path, f"pminervini/true-false/data/{split}-00000-of-00001.jsonl", part)

    def asked(prompt: str) -> str:
        return prompt.rpartition("Statement: ")[2].removesuffix("\nLabel:")

    model = chooser(lambda prompt: " true" if truth[asked(prompt)] else " false")
    assert accuracy(evaluate("truefalse", model, tmp_path), "truefalse") == 1
    assert {continuation for _, continuation in model.asked} == {" true", " false"}
    examples = {f"Statement: {statement}\nLabel: {'true' if label else 'false'}" for statement, label in truth.items()}
    for prompt, _ in model.asked:
        *shots, last = prompt.split("\n\n")
        assert len(set(shots)) == 8
        assert set(shots) <= {example for example in examples if not example.startswith(last)}
    assert accuracy(evaluate("truefalse", chooser(lambda prompt: " true"), tmp_path), "truefalse") == pytest.approx(
        1 / 3
    )


# --- fever ---


def fever_rows() -> list[dict[str, Any]]:
    names = ["supported", "refuted", "SUPPORTS", "REFUTES", "NOT ENOUGH INFO"]
    rows = [{"id": i, "label": names[i % 5], "claim": f"Claim number {i}."} for i in range(15)]
    # A row for each piece of evidence, and the same claim under another number.
    return [*rows, rows[0], rows[0], {**rows[1], "id": 99}]


def test_fever(tmp_path: Path) -> None:
    write_rows(tmp_path, "pminervini/hl-fever/v1.0/dev-00000-of-00001.jsonl", fever_rows())
    write_rows(tmp_path, "pminervini/hl-fever/v1.0/train-00000-of-00001.jsonl", fever_rows()[:1])
    model = chooser(lambda prompt: " supported")
    results = evaluate("fever", model, tmp_path)
    # Of the 12 decided claims 6 are supported; one refuted claim is there twice.
    assert results["n-samples"]["fever"]["effective"] == 13
    assert accuracy(results, "fever") == pytest.approx(6 / 13)
    asked = {prompt.split("\n\n")[-1] for prompt, _ in model.asked}
    assert asked == {f"Claim: Claim number {i}.\nLabel:" for i in range(15) if i % 5 != 4}
    assert {continuation for _, continuation in model.asked} == {" supported", " refuted"}
    for prompt, _ in model.asked:
        *shots, last = prompt.split("\n\n")
        assert len(set(shots)) == 8
        assert not any(shot.startswith(last) for shot in shots)
        assert all(shot.endswith((" supported", " refuted")) for shot in shots)


@pytest.mark.parametrize("label", ["perhaps", None, 1])
def test_fever_refuses_other_labels(label: Any, tmp_path: Path) -> None:
    rows = [{"id": i, "label": label, "claim": f"Claim number {i}."} for i in range(12)]
    write_rows(tmp_path, "pminervini/hl-fever/v1.0/dev.jsonl", rows)
    with pytest.raises(ValueError, match=f"label {label!r} of FEVER is none of SUPPORTED, SUPPORTS, REFUTED, REFUTES"):
        evaluate("fever", chooser(lambda prompt: ""), tmp_path)


# --- faithdial ---

LABELS = [["Hallucination"], ["Entailment"], ["Hallucination", "Entailment"], ["Generic", "Uncooperative"]]


@pytest.fixture
def dialogues(tmp_path: Path) -> Path:
    rows = [
        {
            "dialog_idx": i,
            "history": [f"Question {i}?"] if i % 2 else [f"Hello {i}.", "Hello, I am a bot.", f"Question {i}?"],
            "knowledge": f"Knowledge {i}.",
            "original_response": None if i == 5 else f"Original {i}.",
            "response": f"Corrected {i}.",
            "BEGIN": LABELS[i % 4],
            "VRM": ["Disclosure"],
        }
        for i in range(12)
    ]
    rows.append(
        {**rows[2], "history": [*rows[2]["history"], "Corrected 2.", "More?"], "original_response": "Original 12."}
    )
    write_rows(tmp_path, "McGill-NLP/FaithDial/plain_text/test/0000.jsonl", rows)
    write_rows(tmp_path, "McGill-NLP/FaithDial/plain_text/test_random_split/0000.jsonl", rows[:1])
    return tmp_path


def test_faithdial_asks(dialogues: Path) -> None:
    model = chooser(lambda prompt: "")
    evaluate("faithdial", model, dialogues)
    asked = [prompt.split("\n\n")[-1] for prompt, continuation in model.asked if continuation == " true"]
    assert len(asked) == 13
    assert asked[2] == (
        "#Knowledge#: Knowledge 2.\n"
        "#Dialogue History#: [Human]: Hello 2. [Assistant]: Hello, I am a bot. [Human]: Question 2?\n"
        "#Response#: Original 2.\n"
        "#Hallucinated#:"
    )
    # Where nothing was corrected, the reply is the original.
    assert "\n#Response#: Corrected 5.\n" in asked[5]


def test_faithdial_examples_are_of_other_dialogues(dialogues: Path) -> None:
    model = chooser(lambda prompt: "")
    evaluate("faithdial", model, dialogues)
    for prompt, _ in model.asked:
        *shots, last = prompt.split("\n\n")
        knowledge = last.split("\n")[0]
        assert len(shots) == 8
        assert not any(shot.startswith(knowledge + "\n") for shot in shots)
        assert all(shot.endswith((" true", " false")) for shot in shots)


def test_faithdial_by_hand(dialogues: Path) -> None:
    # Rows 0, 2, 4, …, 10 and the additional one are hallucinated: 7 of 13.
    assert accuracy(evaluate("faithdial", chooser(lambda prompt: " true"), dialogues), "faithdial") == pytest.approx(
        7 / 13
    )
    assert accuracy(evaluate("faithdial", chooser(lambda prompt: " false"), dialogues), "faithdial") == pytest.approx(
        6 / 13
    )


# --- real rows ---


@pytest.mark.mirror
def test_real_traps(mirror: Path) -> None:
    rows = parquet.read_table(
        mirror / "datasets/pminervini/inverse-scaling/memo-trap/data-00000-of-00001.parquet"
    ).to_pylist()
    right = {row["prompt"]: ast.literal_eval(row["classes"])[row["answer_index"]] for row in rows}
    model = chooser(right.__getitem__)
    assert accuracy(evaluate("memo_trap", model, mirror), "memo_trap") == 1
    assert len(model.asked) == 2 * len(rows) == 1872
    assert all(continuation.startswith(" ") and not prompt.endswith(" ") for prompt, continuation in model.asked)


@pytest.mark.mirror
def test_real_statements(mirror: Path) -> None:
    rows = parquet.read_table(mirror / "datasets/pminervini/true-false/data/cieacf-00000-of-00001.parquet").to_pylist()
    model = chooser(lambda prompt: " true")
    results = evaluate("truefalse", model, mirror, limit=200)
    assert accuracy(results, "truefalse") == sum(row["label"] for row in rows[:200]) / 200
    for (prompt, _), row in zip(model.asked[::2], rows, strict=False):
        *shots, last = prompt.split("\n\n")
        assert last == f"Statement: {row['statement']}\nLabel:"
        assert len(shots) == 8
        assert not any(shot.startswith(last) for shot in shots)
