"""HaluEval through the harness: what the judge is asked, how its replies are read, and both metrics by hand."""

import hashlib
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as parquet
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from lm_eval.utils import apply_template

from parcontrol.leaderboard.harness import _replace_instruction, build_tasks
from parcontrol.leaderboard.registry import select
from parcontrol.leaderboard.tasks.halueval.judgement import read_judgement
from tests.leaderboard.scripted_model import ScriptedModel, evaluate, write_rows

TAILS = {
    "halueval_qa": "#Knowledge#: {knowledge}\n#Question#: {question}\n#Answer#: {answer}\n#Your Judgement#:",
    "halueval_dialogue": "#Knowledge#: {knowledge}\n#Dialogue History#: {dialogue_history}\n#Response#: {response}\n"
    "#Your Judgement#:",
    "halueval_summarization": "#Document#: {document}\n#Summary#: {summary}\n#Your Judgement#:",
}
FIELDS = ("knowledge", "question", "answer", "dialogue_history", "response", "document", "summary")
# Reply, how it is read, what would be right.
REPLIES = [
    (" Yes", "yes", "yes"),
    (" No.", "no", "no"),
    ("**Yes**", "yes", "yes"),
    ("Yes, because the answer names another year.", "yes", "no"),
    ("The answer is no", "no", "yes"),
    ("Not enough information", None, "no"),
    ("", None, "yes"),
    ("The answer is not hallucinated.", None, "no"),
    ("no\n#Knowledge#: another", "no", "no"),
    ("Yes or No", None, "yes"),
]


def rows() -> list[dict[str, str]]:
    """A row for each reply, with template syntax in it that must stay as it is."""
    texts = [{field: f"{field} {i}: {{{{ x }}}} {{% raw %}}" for field in FIELDS} for i in range(len(REPLIES))]
    return [{**text, "hallucination": right} for text, (_, _, right) in zip(texts, REPLIES, strict=True)]


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    for kind in ("qa", "dialogue", "summarization"):
        write_rows(tmp_path, f"pminervini/HaluEval/{kind}_samples/data-00000-of-00001.jsonl", rows())
    return tmp_path


@pytest.mark.parametrize("task", TAILS)
def test_prompt(task: str, judged: Path) -> None:
    model = ScriptedModel(lambda prompt, how: "")
    evaluate(task, model, judged)
    for (prompt, how), row in zip(model.asked, rows(), strict=True):
        tail = TAILS[task].format(**row)
        assert prompt.endswith("\n\n" + tail)
        # Two examples of each kind, in the form of the row.
        instruction, *examples = prompt.removesuffix(tail).removesuffix("\n\n").split("\n\n")
        assert "hallucinat" in instruction
        assert '"Yes"' in instruction
        assert '"No"' in instruction
        heads = [line.split(": ")[0] for line in TAILS[task].split("\n")[:-1]]
        assert [[line.split(": ")[0] for line in example.split("\n")[:-1]] for example in examples] == [heads] * 4
        assert sorted(example.rpartition("#Your Judgement#: ")[2] for example in examples) == ["No", "No", "Yes", "Yes"]
        assert how == {"until": ["\n#"], "max_gen_toks": 32, "do_sample": False}


@pytest.mark.parametrize("task", TAILS)
def test_scores_by_hand(task: str, judged: Path) -> None:
    replies = iter(reply for reply, *_ in REPLIES)
    results = evaluate(task, ScriptedModel(lambda prompt, how: next(replies)), judged)
    metrics = results["results"][task]
    # Right: 1, 2, 3 and 9. Unparsed: 6, 7, 8 and 10; these are wrong, not left out.
    assert metrics["acc,none"] == metrics["unparsed,none"] == 0.4
    for metric in ("acc", "unparsed"):
        assert metrics[f"{metric}_stderr,none"] == pytest.approx(math.sqrt(0.4 * 0.6 / 9))
    assert results["n-samples"][task]["effective"] == len(REPLIES)
    assert results["higher_is_better"][task] == {"acc": True, "unparsed": False}
    assert [sample["unparsed"] for sample in results["samples"][task]] == [read is None for _, read, _ in REPLIES]


@pytest.mark.parametrize(
    ("reply", "judgement"),
    [
        *((reply, read) for reply, read, _ in REPLIES),
        *((reply, "yes") for reply in ("YES!", "\n\nYes", "- yes", "(Yes)", "'Yes'", "Yes: wrong year", "Yes.No")),
        *((reply, "yes") for reply in ("#Your Judgement#: Yes", "Answer: Yes.", "I would say yes.", r"\boxed{Yes}")),
        *(
            (reply, "yes")
            for reply in ("It contradicts the text, so yes", 'The reply is "Yes"', "Final verdict: **YES**")
        ),
        *((reply, "no") for reply in ("NO\n\n", "> No", '"No"', "*No*, since", "No hallucination", "Yes or no? No.")),
        *((reply, "no") for reply in ("Your judgement: No", "The answer is: No, it", "I think no, since", "no;")),
        *((reply, "no") for reply in ("<think>Yes? No, wait: yes.</think>\n\nNo", "No, the answer is Yes")),
        *((reply, None) for reply in ("Nothing", "None", "Nope", "Now", "Noted", "Yesterday", "Yeah", "Non", "Not.")),
        *(
            (reply, None)
            for reply in (
                "No one knows",
                "no-one",
                "No idea",
                "No comment",
                "yes/no",
                "Neither yes nor no",
                '"Yes" or "No"',
            )
        ),
        *(
            (reply, None)
            for reply in ("There is no information", "The summary is no hallucination", "So no claim fails")
        ),
        *((reply, None) for reply in ("The answer is yes. The answer is no.", "I can't say yes", "<think>No")),
        # "no" in front of a word judges nothing; what is said later may
        *(
            (reply, None)
            for reply in (
                "No doubt it is hallucinated",
                "No question, this is a hallucination",
                "**No** doubt it is hallucinated",
                "No *evidence* supports it",
                "The answer is no longer correct, so it is hallucinated",
                "The answer is no match for the knowledge",
                "The answer has **no** support",
                "The response is no good: it is hallucinated",
                "It is no good",
                "response: no such fact",
                "Sure, no problem!",
                "No hallucination-free answer",
                "Is it supported? Yes.",
                "Not hallucinated: Yes",
                "No? Maybe",
            )
        ),
        *(
            (reply, "yes")
            for reply in (
                "No evidence for this claim; hallucinated: Yes",
                "No information supports this, so Yes",
                "No doubt: **Yes**",
                "Is it hallucinated? Yes.",
                "**Hallucinated**: Yes",
                "The answer should be Yes",
                "It is yes",
                "1. Yes",
                "Sure! Yes",
                "Yes the year is wrong",
            )
        ),
        *(
            (reply, "no")
            for reply in (
                "</think> No",
                "ok</think>\n\nNo",
                "Yes? Hmm.</think>No.",
                "1. No",
                "Is it a hallucination? No",
                "It is no hallucination.",
                "No\nThe year is right",
                "No because it is supported",
                "**No**\nIt is supported",
                "Hmm, no.",
            )
        ),
    ],
)
def test_reading(reply: str, judgement: str | None) -> None:
    assert read_judgement(reply) == judgement


@given(st.text(), st.sampled_from(["yes", "no"]))
def test_what_follows_the_judgement_changes_nothing(rest: str, word: str) -> None:
    assert read_judgement(f"{word}. {rest}") == word


@given(st.text())
def test_any_reply_is_read_or_not(reply: str) -> None:
    assert read_judgement(reply) in ("yes", "no", None)


# --- instruction_file ---


def build(instruction: Path, judged: Path, *names: str) -> list[Any]:
    return build_tasks(select(names), mirror=str(judged), instruction_file=instruction).tasks


@pytest.mark.parametrize("task", TAILS)
def test_instruction_file(task: str, judged: Path, tmp_path: Path) -> None:
    text = "Judge {{knowledge}} {% endraw %}{{ 7*7 }}{% raw %} {# '\\n\" #}\n\n#Knowledge#: é\n#Your Judgement#: Yes"
    (tmp_path / "instruction.txt").write_text(text + "\n\n", encoding="utf-8")
    (built,) = build(tmp_path / "instruction.txt", judged, task)
    prompts = [built.fewshot_context(row, num_fewshot=0) for row in built.eval_docs]
    assert prompts == [f"{text}\n\n{TAILS[task].format(**row)}" for row in rows()]
    assert built.config.metadata["instruction_sha256"] == hashlib.sha256(text.encode()).hexdigest()


@given(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"])),
        st.lists(
            st.sampled_from(
                [*"{}%#-'\"\\\n\r\t nux1{é😀\u2028\x85\0", "endraw", "raw", "{{", "{%", "{#", "\\x7b", "7*7"]
            )
        ).map("".join),
    )
)
@example("{% endraw %}{{ cycler.__init__.__globals__.os.getpid() }}{% raw %}")
@example("' }}{{ 7*7 }}{{ '")
@example("\\' }}{{ 7*7 }}{{ \\'")
@example("{# a comment #}{%- if x -%} {{ '}}' }}")
@example("first\n\nsecond\r\nthird\\")
def test_an_instruction_is_only_text(text: str) -> None:
    task = SimpleNamespace(config=SimpleNamespace(doc_to_text="old\n\n#Row#: {{row}}", metadata={}))
    task.set_config = lambda name, value: setattr(task.config, name, value)
    _replace_instruction(task, text)
    assert apply_template(task.config.doc_to_text, {"row": "{{ x }}"}) == f"{text}\n\n#Row#: {{{{ x }}}}"


def test_instruction_file_leaves_other_tasks_alone(judged: Path, tmp_path: Path) -> None:
    (tmp_path / "instruction.txt").write_text("Judge.")
    trap = {"prompt": "p", "classes": "[' a', ' b']", "answer_index": 0}
    write_rows(judged, "pminervini/inverse-scaling/memo-trap/data.jsonl", [trap])
    other, judge = build(tmp_path / "instruction.txt", judged, "memo_trap", "halueval_qa")
    assert other.fewshot_context(trap, num_fewshot=0) == "p"
    assert judge.fewshot_context(rows()[0], num_fewshot=0).startswith("Judge.\n\n#Knowledge#: ")


def test_instruction_file_refused(judged: Path, tmp_path: Path) -> None:
    instruction = tmp_path / "instruction.txt"
    with pytest.raises(ValueError, match=r"the instruction file .* cannot be read"):
        build(instruction, judged, "halueval_qa")
    instruction.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"the instruction file .* cannot be read"):
        build(instruction, judged, "halueval_qa")
    instruction.write_text(" \n")
    with pytest.raises(ValueError, match=r"the instruction file .* is empty"):
        build(instruction, judged, "halueval_qa")
    with pytest.raises(ValueError, match="2 are chosen: halueval_qa, halueval_dialogue"):
        build(instruction, judged, "halueval_qa", "halueval_dialogue")
    with pytest.raises(ValueError, match="one HaluEval task at a time, and 0 are chosen"):
        build(instruction, judged, "memo_trap")


# --- real rows ---


@pytest.mark.mirror
@pytest.mark.parametrize("task", TAILS)
def test_real_rows(task: str, mirror: Path) -> None:
    path = mirror / f"datasets/pminervini/HaluEval/{task.removeprefix('halueval_')}_samples/data-00000-of-00001.parquet"
    real = parquet.read_table(path).to_pylist()[:100]
    model = ScriptedModel(lambda prompt, how: "Yes.")
    metrics = evaluate(task, model, mirror, limit=100)["results"][task]
    assert metrics["acc,none"] == sum(row["hallucination"] == "yes" for row in real) / 100
    assert metrics["unparsed,none"] == 0
    for (prompt, _), row in zip(model.asked, real, strict=True):
        assert prompt.endswith("\n\n" + TAILS[task].format(**row))
