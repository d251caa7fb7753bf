"""Questions with short answers through the harness: prompts letter by letter, examples, and exact match by hand."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

from parcontrol.leaderboard.tasks.exact_match import is_match, normalize
from tests.leaderboard.scripted_model import ScriptedModel, evaluate, write_rows

# Question, right answers, reply, and whether the reply is right.
REPLIES = [
    ("where does congress meet", ["Washington, D.C.", "DC"], " Washington, D.C.", True),
    ("where is the white house", ["Washington, D.C."], " washington d.c.", True),
    ("what is the title", ["The Old Man and the Sea"], " Old Man and Sea", True),
    ("which city hosts the louvre", ["Paris"], " Paris\n\nQ: who asked?\nA: me", True),
    ("which city hosts the uffizi", ["Florence"], "\nFlorence", False),
    ("who sings halo", ["Beyoncé"], " Beyonce\u0301", True),
    ("who sang halo", ["Beyoncé"], " Beyonce", False),
    ("who sings crazy in love", ["Beyoncé", "Jay-Z"], " “Jay-Z”!", True),
    ("how many are there", ["12"], " 12,", True),
    ("how many more are there", ["12"], " 1 2", False),
    ("who is the author", ["Jane Austen"], " It is Jane Austen", False),
    ("what is empty", ["nothing"], "", False),
    ("which band is it", ["The The"], " ", False),
    ("which other band is it", ["The The"], " The The", True),
    ("who wrote faust", ["Johann Wolfgang von Goethe", "Goethe"], " GOETHE.", True),
    ("in which country is bern", ["Schweiz", "Switzerland"], " Switzerland, in Europe", False),
]
TASKS = {
    "nq_open": ("nq_open/nq_open/validation-00000-of-00001", "Q: {}?\nA:", 8),
    "triviaqa": ("trivia_qa/rc.nocontext/validation-00000-of-00001", "Question: {}?\nAnswer:", 8),
    "popqa": ("akariasai/PopQA/test", "Q: {}?\nA:", 8),
    "nq_swap": ("pminervini/NQ-Swap/data/dev-00000-of-00001", "Context: about {0}.\nQuestion: {0}?\nAnswer:", 4),
}


def row(task: str, question: str, answers: list[str]) -> dict[str, Any]:
    """A row in the schema of the task's dataset."""
    match task:
        case "nq_open":
            return {"question": question, "answer": answers}
        case "triviaqa":
            return {"question": question, "answer": {"value": answers[0], "aliases": answers}}
        case "popqa":
            return {"question": question, "possible_answers": json.dumps(answers)}
        case _:
            texts = {"org_context": "changed", "org_answer": ["changed"], "sub_context": f"about {question}."}
            return {"question": question, **texts, "sub_answer": answers}


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    rows = [row(request.param, question, answers) for question, answers, *_ in REPLIES]
    write_rows(tmp_path, f"{TASKS[request.param][0]}.jsonl", rows)
    return request.param


def last_question(task: str, prompt: str) -> str:
    """The question that a prompt ends with."""
    before, after = TASKS[task][1].rsplit("{", 1)[0][-10:], TASKS[task][1].rsplit("}", 1)[1]
    assert prompt.endswith(after)
    return prompt.removesuffix(after).rpartition(before)[2]


def script(task: str, replies: dict[str, str]) -> ScriptedModel:
    return ScriptedModel(lambda prompt, how: replies[last_question(task, prompt)])


def test_scores_by_hand(task: str, tmp_path: Path) -> None:
    replies = {question: reply for question, _, reply, _ in REPLIES}
    results = evaluate(task, script(task, replies), tmp_path)
    scores = {sample["doc"]["question"]: sample["exact_match"] for sample in results["samples"][task]}
    assert scores == {question: float(right) for question, _, _, right in REPLIES}
    share, n = 9 / 16, 16
    assert results["results"][task]["exact_match,none"] == share
    assert results["results"][task]["exact_match_stderr,none"] == pytest.approx(
        math.sqrt(share * (1 - share) / (n - 1))
    )
    assert results["higher_is_better"][task] == {"exact_match": True}


def test_every_right_answer_counts(task: str, tmp_path: Path) -> None:
    for choose in (min, max):
        results = evaluate(task, script(task, {q: choose(answers) for q, answers, *_ in REPLIES}), tmp_path)
        assert results["results"][task]["exact_match,none"] == 1


def test_prompts(task: str, tmp_path: Path) -> None:
    """Examples of other rows with their first right answer, then the row; generation ends at a newline only."""
    _, template, shots = TASKS[task]
    model = script(task, dict.fromkeys([question for question, *_ in REPLIES], ""))
    evaluate(task, model, tmp_path)
    answered = {template.format(question) + " " + answers[0] for question, answers, *_ in REPLIES}
    for (prompt, how), (question, answers, *_) in zip(model.asked, REPLIES, strict=True):
        *examples, asked = prompt.split("\n\n")
        assert asked == template.format(question)
        assert len(set(examples)) == len(examples) == shots
        assert set(examples) <= answered - {template.format(question) + " " + answers[0]}
        assert how == {"until": ["\n"], "max_gen_toks": 64, "do_sample": False}


def test_the_draw_depends_on_seed_and_row_alone(task: str, tmp_path: Path) -> None:
    def prompts(**options: Any) -> list[str]:
        model = script(task, dict.fromkeys([question for question, *_ in REPLIES], ""))
        evaluate(task, model, tmp_path, **options)
        return [prompt for prompt, _ in model.asked]

    everything = prompts()
    assert prompts() == prompts(fewshot_random_seed=1234) == everything
    assert prompts(limit=3) == everything[:3]
    assert prompts(samples={task: [2, 7]}) == [everything[2], everything[7]]
    assert all(a != b for a, b in zip(prompts(fewshot_random_seed=1), everything, strict=True))


def test_the_same_question_elsewhere_is_no_example(tmp_path: Path) -> None:
    """NQ-Swap asks one question over several contexts; an example would give the question away."""
    questions = ["who came first", *(f"question {i}" for i in range(4))]
    rows = [row("nq_swap", q, [f"answer {i}"]) for i, q in enumerate([questions[0]] * 6 + questions[1:])]
    write_rows(tmp_path, "pminervini/NQ-Swap/dev.jsonl", rows)
    model = ScriptedModel(lambda prompt, how: "")
    evaluate("nq_swap", model, tmp_path)
    for prompt, _ in model.asked:
        asked = re.findall("^Question: (.*)$", prompt, re.MULTILINE)
        assert sorted(asked) == sorted(f"{question}?" for question in questions)


def test_too_few_other_questions(tmp_path: Path) -> None:
    rows = [row("nq_swap", question, ["x"]) for question in ["a", "a", "a", "b", "c"]]
    write_rows(tmp_path, "pminervini/NQ-Swap/dev.jsonl", rows)
    with pytest.raises(ValueError, match="4 examples for each row need more rows with other subjects than 2"):
        evaluate("nq_swap", ScriptedModel(lambda prompt, how: ""), tmp_path)


def test_64_examples(tmp_path: Path) -> None:
    write_rows(tmp_path, "nq_open/nq_open/validation.jsonl", [row("nq_open", f"q{i}", [f"a{i}"]) for i in range(70)])
    model = ScriptedModel(lambda prompt, how: "a0")
    results = evaluate("nq_open_64", model, tmp_path)
    assert all(len(set(prompt.split("\n\n"))) == 65 for prompt, _ in model.asked)
    assert results["n-shot"]["nq_open_64"] == 64
    assert results["results"]["nq_open_64"]["exact_match,none"] == 1 / 70


def test_possible_answers_beyond_ascii(tmp_path: Path) -> None:
    """PopQA's field is JSON in which characters may be escaped, or a list."""
    rows = [row("popqa", f"q{i}", [f"answer {i}"]) for i in range(9)]
    rows += [row("popqa", "tea", ["a 🍵 cup"])]
    assert r"\ud83c\udf75" in rows[-1]["possible_answers"]
    write_rows(tmp_path, "akariasai/PopQA/test.jsonl", rows)
    results = evaluate("popqa", ScriptedModel(lambda prompt, how: "A 🍵 cup"), tmp_path)
    assert results["results"]["popqa"]["exact_match,none"] == 1 / 10


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The U.S.A.", "usa"),
        ("  an\tApple,  a  day ", "apple day"),
        ("Another theory", "another theory"),
        ("rock ’n’ roll", "rock n roll"),
        ("STRASSE", "strasse"),
        ("¿Qué?", "qué"),
        ("a", ""),
        ("東京。", "東京"),
        ("$5", "5"),
        ("£5", "£5"),
    ],
)
def test_normalize(text: str, expected: str) -> None:
    assert normalize(text) == expected


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [("", "A", False), ("the", "A", False), ("a", "A", True), ("!!!", "!!!", True), ("", "!!!", False)],
)
def test_right_answers_without_words(answer: str, gold: str, right: bool) -> None:
    assert is_match(answer, gold) is right


@pytest.mark.mirror
def test_real_questions(mirror: Path) -> None:
    rows = parquet.read_table(mirror / "datasets/nq_open/nq_open/validation-00000-of-00001.parquet").to_pylist()
    answers = {row["question"]: row["answer"] for row in rows[:60]}
    assert len(answers) == 60
    last = ScriptedModel(lambda prompt, how: f" {answers[last_question('nq_open', prompt)][-1]}.\n\nQ: next")
    results = evaluate("nq_open", last, mirror, limit=60)
    assert results["results"]["nq_open"]["exact_match,none"] == 1
    assert results["n-samples"]["nq_open"] == {"original": len(rows), "effective": 60}
    known = {f"Q: {row['question']}?\nA: {row['answer'][0]}" for row in rows}
    for prompt, _ in last.asked:
        *examples, asked = prompt.split("\n\n")
        assert len(examples) == 8
        assert set(examples) <= known
        assert not any(example.startswith(asked) for example in examples)
