"""XSum and CNN/DM through the harness: what is asked, and ROUGE-L against values computed by hand."""

from pathlib import Path

import pytest

from tests.leaderboard.scripted_model import ScriptedModel, evaluate, write_rows

ARTICLES = {
    "The mayor opened a bridge on Monday. It cost three million.": "Mayor opens bridge",
    "A storm hit the coast at night. Nobody was hurt.": "Storm hits coast, nobody hurt",
    "[Live] results of the match": "[One goal]",
}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    articles = [{"document": text, "summary": summary, "id": "1"} for text, summary in ARTICLES.items()]
    write_rows(tmp_path, "EdinburghNLP/xsum/data/test-00000-of-00001.jsonl", articles)
    articles = [{"article": text, "highlights": summary, "id": "1"} for text, summary in ARTICLES.items()]
    write_rows(tmp_path, "cnn_dailymail/3.0.0/test-00000-of-00001.jsonl", articles)
    return tmp_path


def script(replies: list[str]) -> ScriptedModel:
    by_article = dict(zip(ARTICLES, replies, strict=True))
    return ScriptedModel(lambda prompt, how: next(reply for text, reply in by_article.items() if text in prompt))


@pytest.mark.parametrize(
    ("task", "instruction", "stop"),
    [
        ("xsum", "Summarize the article in one sentence. Summary:", "\n"),
        ("cnndm", "Summarize the article. Summary:", "\n\n"),
    ],
)
def test_prompt(task: str, instruction: str, stop: str, rows: Path) -> None:
    model = script(["", "", ""])
    evaluate(task, model, rows)
    prompts = [prompt for prompt, _ in model.asked]
    assert prompts == [f"Article: {text}\n{instruction}" for text in ARTICLES]
    assert all(how["until"] == [stop] and not how["do_sample"] for _, how in model.asked)


@pytest.mark.parametrize("task", ["xsum", "cnndm"])
def test_gold_summaries(task: str, rows: Path) -> None:
    results = evaluate(task, script(list(ARTICLES.values())), rows)
    assert results["results"][task]["rougeL,none"] == 1
    assert results["higher_is_better"][task]["rougeL"]


@pytest.mark.parametrize("task", ["xsum", "cnndm"])
def test_score_by_hand(task: str, rows: Path) -> None:
    # 1: "mayor open bridg" against "a mayor open the new bridg" (stemmed): 3 common, P 3/6, R 3/3, F 2/3.
    # 2: nothing in common; 3: nothing written.
    results = evaluate(task, script(["A mayor opened the new bridges", "unrelated words", ""]), rows)
    metrics = results["results"][task]
    assert metrics["rougeL,none"] == pytest.approx(2 / 9)
    # Sample standard deviation of (2/3, 0, 0) over the root of 3.
    assert metrics["rougeL_stderr,none"] == pytest.approx(2 / 9)
    assert [sample["rougeL"] for sample in results["samples"][task]] == [pytest.approx(2 / 3), 0, 0]


def test_rows_keep_what_the_scoring_pass_needs(rows: Path) -> None:
    results = evaluate("cnndm", script(["one", "two", "three"]), rows)
    samples = results["samples"]["cnndm"]
    assert [sample["doc"]["document"] for sample in samples] == list(ARTICLES)
    assert [sample["doc"]["summary"] for sample in samples] == list(ARTICLES.values())
    assert [sample["filtered_resps"] for sample in samples] == [["one"], ["two"], ["three"]]


@pytest.mark.mirror
def test_real_rows(mirror: Path) -> None:
    # The article's first sentence: a weak summary, but never worth nothing over 20 articles.
    model = ScriptedModel(lambda prompt, how: prompt.removeprefix("Article: ").split(".")[0])
    metrics = evaluate("xsum", model, mirror, limit=20)["results"]["xsum"]
    assert metrics["sample_len"] == 20
    assert 0 < metrics["rougeL,none"] < 0.5
