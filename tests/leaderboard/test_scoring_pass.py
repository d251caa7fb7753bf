"""The pass over stored generations: what it writes, what it leaves alone, and metrics that cannot be had."""

import json
import math
import shutil
import statistics
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from parcontrol.cli.leaderboard.score import main
from parcontrol.leaderboard.evaluate.model_spec import Conditions
from parcontrol.leaderboard.evaluate.spool import RESULTS, SAMPLES, finished_tasks, read_samples, write_task
from parcontrol.leaderboard.publish import publish
from parcontrol.leaderboard.registry import registry
from parcontrol.leaderboard.scoring import bertscore, factkb, rescore
from parcontrol.leaderboard.scoring.bertscore import BertScore
from parcontrol.leaderboard.scoring.factkb import FactKB
from parcontrol.leaderboard.scoring.published import rescore_published
from parcontrol.leaderboard.scoring.rescoring import rescore_directory, scorers_of
from parcontrol.leaderboard.scoring.scorers import SCORERS, make_scorers
from parcontrol.leaderboard.scoring.selfcheck import nli
from parcontrol.leaderboard.scoring.selfcheck.nli import NliScorer
from parcontrol.leaderboard.scoring.selfcheck.passage import Passage, consistency
from parcontrol.leaderboard.scoring.selfcheck.qa import QaModels
from parcontrol.leaderboard.store import LocalStore, update
from tests.leaderboard.scorer_models import (
    roberta_tokenizer,
    save_chooser,
    save_doubter,
    save_encoder,
    save_generator,
    save_nli,
    save_roberta_classifier,
)
from tests.leaderboard.scripted_model import ScriptedModel, evaluate, write_rows

ARTICLES = ["the mayor opens a bridge of the city", "a storm hits the coast", "nobody was hurt"]
SUMMARIES = ["the mayor opens a bridge", "", "he won a prize and sang"]
MODEL = "someone/model"


@pytest.fixture(scope="module")
def scorer_mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All models that score, tiny, under their names."""
    mirror = tmp_path_factory.mktemp("mirror")
    models = mirror / "models"
    save_roberta_classifier(models / factkb.REPO)
    roberta_tokenizer().save_pretrained(models / factkb.TOKENIZER)
    save_encoder(models / bertscore.REPO, layers=bertscore.LAYER)
    save_nli(models / nli.REPO, ["LABEL_0", "LABEL_1"])
    qa = QaModels()
    save_generator(models / qa.questions, {"he won.": "what was won <sep> prize"})
    save_generator(models / qa.distractors, {"what was won <sep> prize <sep> he won.": "city <sep> house"})
    save_chooser(models / qa.answering)
    save_doubter(models / qa.answerability)
    return mirror


@pytest.fixture
def reachable(scorer_mirror: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes the models that score reachable, when called."""
    return lambda: monkeypatch.setenv("PARCONTROL_MIRROR", str(scorer_mirror))


def finish(task: str, model: ScriptedModel, data: Path) -> Path:
    """Evaluates a task and leaves it as the worker does; returns its directory."""
    results = evaluate(task, model, data)
    samples = results.pop("samples")[task]
    directory = data / "spool" / task
    identity = {"sha": "0" * 40, "precision": "float32", "weight_type": "Original", "chat_template": False}
    block = {"model": MODEL, **identity, **asdict(Conditions()), "absent": {}, "failed": {}, "duration_s": {}}
    write_task(directory, results | {"parcontrol": block, "total_evaluation_time_seconds": "1"}, samples)
    return directory


@pytest.fixture
def xsum(tmp_path: Path) -> Path:
    """XSum as the worker leaves it: three summaries, one empty."""
    rows = [{"document": text, "summary": "a bridge opens", "id": "1"} for text in ARTICLES]
    write_rows(tmp_path, "EdinburghNLP/xsum/test.jsonl", rows)
    written = dict(zip(ARTICLES, SUMMARIES, strict=True))
    return finish(
        "xsum", ScriptedModel(lambda prompt, how: next(written[a] for a in ARTICLES if a in prompt)), tmp_path
    )


@pytest.fixture
def selfcheck(tmp_path: Path) -> Path:
    """SelfCheckGPT as the worker leaves it: one passage with five samples, one passage without text."""
    rows = [{"wiki_bio_text": "The mayor won."}, {"wiki_bio_text": "The bird sang."}]
    write_rows(tmp_path, "potsawee/wiki_bio_gpt3_hallucination/evaluation.jsonl", rows)

    def write(prompt: str, how: dict[str, Any]) -> str:
        if "bird" in prompt:
            return "" if not how["do_sample"] else "it sang"
        return "he sang in the city" if how["do_sample"] else "he won."

    return finish("selfcheckgpt", ScriptedModel(write), tmp_path)


def read(directory: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return json.loads((directory / RESULTS).read_text()), read_samples(directory / SAMPLES)


def test_summaries(xsum: Path, reachable: Callable[[], None]) -> None:
    reachable()
    before, _ = read(xsum)
    assert rescore(xsum) == {}
    results, samples = read(xsum)
    metrics = results["results"]["xsum"]
    expected = {
        "factkb": FactKB().probabilities(SUMMARIES, ARTICLES),
        "bertscore_precision": [match.precision for match in BertScore().match(SUMMARIES, ARTICLES)],
    }
    for metric, values in expected.items():
        assert values[1] == 0  # of the empty summary
        assert [sample[metric] for sample in samples] == pytest.approx(values, abs=1e-6)
        assert metrics[f"{metric},none"] == pytest.approx(sum(values) / 3, abs=1e-6)
        assert metrics[f"{metric}_stderr,none"] == pytest.approx(statistics.stdev(values) / math.sqrt(3), abs=1e-6)
        assert results["higher_is_better"]["xsum"][metric] is True
    assert results["parcontrol"]["scorers"]["xsum"]["factkb"] == [FactKB().loaded.source]
    assert metrics["rougeL,none"] == before["results"]["xsum"]["rougeL,none"]


def test_passages(selfcheck: Path, reachable: Callable[[], None]) -> None:
    reachable()
    assert rescore(selfcheck) == {}
    results, samples = read(selfcheck)
    metrics = results["results"]["selfcheckgpt"]
    by_hand = consistency(NliScorer(), Passage("he won.", ["he sang in the city"] * 5))
    for scorer in ("nli", "ngram", "bertscore", "qa"):
        for which in ("avg", "max"):
            metric = f"selfcheck_{scorer}_{which}"
            first, second = (sample[metric] for sample in samples)
            assert 0 < first < 1
            assert second == 0  # nothing was written
            assert metrics[f"{metric},none"] == pytest.approx(first / 2)
    assert samples[0]["selfcheck_nli_avg"] == pytest.approx(by_hand["selfcheck_nli_avg"], abs=1e-6)
    assert len(results["parcontrol"]["scorers"]["selfcheckgpt"]["selfcheck_qa_max"]) == 4


def test_a_scorer_touches_its_own_metric_only(xsum: Path, reachable: Callable[[], None]) -> None:
    reachable()
    results_before, samples_before = read(xsum)
    rescore_directory(xsum, ["factkb"])
    results, samples = read(xsum)
    for key in ("factkb,none", "factkb_stderr,none"):
        del results["results"]["xsum"][key]
    del results["higher_is_better"]["xsum"]["factkb"], results["parcontrol"]["scorers"]
    for sample in samples:
        del sample["factkb"]
        sample["metrics"].remove("factkb")
    assert results == results_before
    assert samples == samples_before


def test_the_same_figures_again(xsum: Path, selfcheck: Path, reachable: Callable[[], None]) -> None:
    reachable()
    for directory in (xsum, selfcheck):
        rescore(directory)
        first = {path.name: path.read_bytes() for path in directory.iterdir()}
        rescore_directory(directory, ["rougeL", "factkb", "bertscore_precision", "selfcheck_nli", "selfcheck_ngram"])
        rescore_directory(directory, ["selfcheck_qa", "selfcheck_bertscore"])
        assert {path.name: path.read_bytes() for path in directory.iterdir()} == first


def test_the_batch_size_does_not_matter(xsum: Path, selfcheck: Path, reachable: Callable[[], None]) -> None:
    reachable()
    for directory, task in ((xsum, "xsum"), (selfcheck, "selfcheckgpt")):
        rescore(directory)
        first = read(directory)[0]["results"][task]
        names = ["factkb", "bertscore_precision", "selfcheck_nli", "selfcheck_qa", "selfcheck_bertscore"]
        rescore_directory(directory, names, batch_size=1)
        assert read(directory)[0]["results"][task] == pytest.approx(first, abs=1e-5)


def test_models_out_of_reach(xsum: Path, selfcheck: Path, reachable: Callable[[], None]) -> None:
    failures = rescore(xsum)
    assert set(failures) == {"factkb", "bertscore_precision"}
    results, _ = read(xsum)
    assert results["parcontrol"]["absent"] == {"xsum": failures}
    assert failures["factkb"].startswith(f"{factkb.REPO} cannot be loaded: ")
    assert not any(key.startswith(("factkb", "bertscore")) for key in results["results"]["xsum"])
    assert results["results"]["xsum"]["rougeL,none"] > 0
    # What needs no model is there all the same.
    assert len(rescore(selfcheck)) == 6
    assert read(selfcheck)[0]["results"]["selfcheckgpt"]["selfcheck_ngram_avg,none"] > 0
    # Once the models are there, the figures are, and the reasons are gone.
    reachable()
    assert rescore(xsum) == {}
    assert read(xsum)[0]["parcontrol"]["absent"] == {}


def test_a_figure_stays_when_its_scorer_is_lost(
    xsum: Path, reachable: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    reachable()
    rescore(xsum)
    before = read(xsum)
    monkeypatch.delenv("PARCONTROL_MIRROR")
    assert set(rescore_directory(xsum, ["factkb"]).failures) == {"factkb"}
    assert read(xsum) == before


def test_no_finished_task(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished task"):
        rescore(tmp_path)


def test_the_registry_and_the_scorers_agree() -> None:
    scored = {metric for scorer in make_scorers() for metric in scorer.metrics}
    assert scored >= {metric for spec in registry() for metric in spec.scored_later}
    served = {name for spec in registry() for name in scorers_of(spec.harness_task, {}, None)}
    assert served == set(SCORERS)


# --- published generations ---


@pytest.fixture
def store(xsum: Path, selfcheck: Path, tmp_path: Path) -> LocalStore:
    """A results repository: both tasks in one file as the worker publishes them, and files of somebody else."""
    store = LocalStore(tmp_path / "results")
    publish(store, list(finished_tasks(xsum.parent).values()))
    others = {
        "other/model/results_2024-01-01T00-00-00.000000.json": b'{"results": {"xsum": {"rougeL,none": 0.1}}}',
        "broken/model/results_2024-01-01T00-00-00.000000.json": b"<html>",
    }
    update(store, lambda snapshot: others, "test")
    return store


def published(store: LocalStore) -> str:
    """The path of our result file."""
    (path,) = (path for path in store.snapshot().files if path.startswith(f"{MODEL}/results_"))
    return path


def test_published_generations(store: LocalStore, xsum: Path, selfcheck: Path, reachable: Callable[[], None]) -> None:
    reachable()
    before = store.snapshot()
    outcomes = {outcome.task: outcome for outcome in rescore_published(store)}
    assert set(outcomes) == {"xsum", "selfcheckgpt"}
    assert set(outcomes["xsum"].figures) == {"factkb", "bertscore_precision"}
    document = json.loads(store.read(published(store)))
    for directory, task in ((xsum, "xsum"), (selfcheck, "selfcheckgpt")):
        rescore(directory)
        results, samples = read(directory)
        assert document["results"][task] == results["results"][task]
        shutil.copyfile(directory / SAMPLES, directory / "kept")
        (directory / SAMPLES).write_bytes(
            store.read(published(store).replace("results_", f"samples_{task}_").replace(".json", ".jsonl.zst"))
        )
        assert read_samples(directory / SAMPLES) == samples
    after = store.snapshot()
    assert {path for path in after.files if after.files[path] != before.files[path]} == {
        path for path in after.files if path.startswith(MODEL)
    }
    # There is nothing left to do, and running a scorer again changes nothing.
    assert list(rescore_published(store)) == []
    assert next(rescore_published(store, names=["factkb"])).figures == {
        "factkb": document["results"]["xsum"]["factkb,none"]
    }
    assert store.snapshot() == after


def test_published_generations_without_models(store: LocalStore) -> None:
    outcomes = list(rescore_published(store, [MODEL]))
    assert {metric for outcome in outcomes for metric in outcome.failures} >= {"factkb", "selfcheck_qa_avg"}
    document = json.loads(store.read(published(store)))
    assert set(document["parcontrol"]["absent"]["xsum"]) == {"factkb", "bertscore_precision"}
    assert list(rescore_published(store, ["someone/else"])) == []


def test_published_generations_changed_meanwhile(store: LocalStore, reachable: Callable[[], None]) -> None:
    reachable()
    path = published(store)
    content = store.read(path)
    read_many = store.read

    def read_and_interfere(wanted: str, *args: Any) -> bytes:
        found = read_many(wanted, *args)
        if "samples_selfcheckgpt" in wanted:
            update(store, lambda snapshot: {path: content + b"\n"}, "somebody else")
        return found

    store.read = read_and_interfere  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="was changed by somebody else while it was scored"):
        list(rescore_published(store))
    assert read_many(path) == content + b"\n"


# --- the command ---


def test_command(
    store: LocalStore,
    xsum: Path,
    tmp_path: Path,
    reachable: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PARCONTROL_LEADERBOARD", str(tmp_path))
    assert main([str(xsum)]) == 1
    assert f"{xsum}: xsum factkb is absent: {factkb.REPO} cannot be loaded: " in capsys.readouterr().out
    reachable()
    assert main([str(xsum)]) == 0
    figure = read(xsum)[0]["results"]["xsum"]["factkb,none"]
    assert f"{xsum}: xsum factkb {figure:.4f}\n" in capsys.readouterr().out
    assert main(["--model", "someone/else"]) == 0
    assert capsys.readouterr().out == "nothing to score\n"
    assert main(["--model", MODEL, "--scorers", "factkb", "--batch-size", "2"]) == 0
    assert capsys.readouterr().out == f"{published(store)}: xsum factkb {figure:.4f}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scorers", "factbk"], "unknown scorer 'factbk'; the nearest is 'factkb'"),
        (["nowhere"], "nowhere holds no finished task"),
        (["nowhere", "--model", "a/b"], "--model chooses in the results repository"),
        (["--batch-size", "0"], "--batch-size 0: at least 1 is needed"),
    ],
)
def test_command_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(arguments)
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
