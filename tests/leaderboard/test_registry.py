"""The list of tasks: complete, consistent with what the harness builds from it, and the source of the documentation."""

import subprocess
import sys
from pathlib import Path

import pytest

from parcontrol.cli.leaderboard import tasks as command
from parcontrol.leaderboard.harness import SAMPLES, build_tasks
from parcontrol.leaderboard.registry import registry, select

# The averages as the public leaderboard defines them.
FACTUALITY = {"nq_open", "triviaqa", "popqa", "fever", "truefalse", "truthfulqa_mc2"}
FAITHFULNESS = {
    *("memo_trap", "ifeval", "nq_swap", "race", "squadv2", "cnndm", "xsum", "halueval_qa", "faithdial"),
}
OUTPUT = {"generate": "generate_until", "choice": "multiple_choice", "rolling": "loglikelihood_rolling"}


def names(specs: list) -> list[str]:
    return [spec.name for spec in specs]


def test_names_and_columns_are_unique() -> None:
    labels = [column.label for spec in registry() for column in spec.columns]
    assert len(set(labels)) == len(labels)
    assert len(set(names(registry()))) == len(registry())


def test_each_group_averages_one_column_of_each_of_its_tasks() -> None:
    averaged = [(spec.group, spec.name, c.metric) for spec in registry() for c in spec.columns if c.averaged]
    assert {name for group, name, _ in averaged if group == "Factuality"} == FACTUALITY
    assert {name for group, name, _ in averaged if group == "Faithfulness"} == FAITHFULNESS
    assert len(averaged) == len(FACTUALITY) + len(FAITHFULNESS)
    assert {metric for _, name, metric in averaged if name in ("xsum", "cnndm")} == {"rougeL"}


@pytest.mark.parametrize("name", sorted(FACTUALITY | FAITHFULNESS))
def test_averaged_columns_are_percentages(name: str) -> None:
    (spec,) = select([name])
    for column in spec.columns:
        if column.averaged:
            assert column.scale == (1 if name == "squadv2" else 100)
            assert column.higher_is_better


def test_select() -> None:
    assert names(select(["xsum", "nq_open", "xsum"])) == ["nq_open", "xsum"]
    assert names(select(["Other", "wikitext"])) == ["wikitext", "winogrande"]
    assert select(["all"]) == list(registry())
    assert set(names(select(["all"]))) - set(names(select(["demo"]))) == {"nq_open_64", "triviaqa_64"}


@pytest.mark.parametrize(
    ("asked", "message"),
    [(["truefals"], "unknown task 'truefals'; the nearest is 'truefalse'"), ([], "no task is named: give names")],
)
def test_select_refuses(asked: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select(asked)


@pytest.fixture(scope="module")
def built() -> dict:
    """All tasks of the sample set, as the harness has them."""
    return {task.config.task: task for task in build_tasks(select(["demo"]), sample_set=True).tasks}


@pytest.mark.parametrize("spec", select(["demo"]), ids=lambda spec: spec.name)
def test_the_harness_agrees(spec, built: dict) -> None:
    task = built[spec.name]
    config = task.config
    assert config.metadata["version"] == task.VERSION == spec.version
    assert (config.num_fewshot or 0) == spec.num_fewshot
    assert (config.dataset_path, config.dataset_name) == (spec.dataset, spec.config)
    assert (config.dataset_kwargs or {}).get("revision") == spec.revision
    assert (config.test_split or config.validation_split) == spec.split
    if spec.num_fewshot:
        assert config.fewshot_split == spec.split
    assert OUTPUT[spec.kind] == task.OUTPUT_TYPE
    at_once = {column.metric for column in spec.columns} - set(spec.scored_later)
    assert at_once <= set(task.aggregation())
    for column in spec.columns:
        if column.metric in at_once:
            assert task.higher_is_better()[column.metric] == column.higher_is_better
    assert spec.unparsed_metric is None or spec.unparsed_metric in task.aggregation()
    # What is published about a task tells nothing of the machine.
    assert str(SAMPLES.parent) not in str(config.to_dict())


@pytest.mark.parametrize("name", ["nq_open", "triviaqa"])
def test_variants_with_64_examples(name: str) -> None:
    """They differ from the others in name, examples and heading alone."""
    few, many = select([name, f"{name}_64"])
    assert (few.num_fewshot, many.num_fewshot) == (8, 64)
    assert (many.dataset, many.config, many.split, many.version) == (few.dataset, few.config, few.split, few.version)
    with pytest.raises(ValueError, match=rf"task {name}_64: dataset .* has 1\d rows, and 64 examples for each row"):
        build_tasks([many], sample_set=True)


def test_starts_without_heavy_libraries() -> None:
    check = (
        "import sys, parcontrol.leaderboard.registry as r; r.markdown_table();"
        "print([m for m in ('torch', 'transformers', 'datasets', 'lm_eval', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("page", ["README.md", "docs/leaderboard/tasks.md"])
def test_documentation_is_current(repository: Path, page: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`parcontrol leaderboard tasks --markdown` makes the table again."""
    assert command.main(["--markdown"]) == 0
    lines = (repository / page).read_text().splitlines(keepends=True)
    begin = lines.index("| Task | Group | Column | Data: repo · config · split | Kind | Shots | Metric | Version |\n")
    length = next(index for index, line in enumerate(lines[begin:]) if not line.startswith("|"))
    assert "".join(lines[begin : begin + length]) == capsys.readouterr().out


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["wikitext", "xsum"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["task", "xsum", "XSum/FactKB", "XSum/BERTScore-P", "wikitext"]
    assert "WikiText/Word perplexity  word_perplexity ↓" in lines[-1]
    assert command.main(["wikitxt"]) == 2
    assert "nearest is 'wikitext'" in capsys.readouterr().err
