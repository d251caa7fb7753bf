"""The plan of a sweep, and the checks that keep its runs comparable."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parcontrol.config import config_differences, load_config
from parcontrol.experiment.comparison import NotComparableError, check_plan, check_results
from parcontrol.experiment.plan import PlannedRun, make_plan
from parcontrol.runs import RunDirectory

Plan = Callable[..., list[PlannedRun]]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    def make(P_values: tuple[int, ...] = (1, 2), seeds: Any = None, **overrides: object) -> list[PlannedRun]:
        dotted = {key.replace("__", "."): value for key, value in overrides.items()}
        return make_plan(None, dotted, P_values, seeds, tmp_path)

    return make


def started(run: PlannedRun) -> RunDirectory:
    """A run directory with a record, as training leaves it."""
    with RunDirectory.open_for_training(run.config) as directory:
        directory.append_metrics({"step": 0, "tokens": 0})
    return directory


def finished(run: PlannedRun, **changes: object) -> None:
    result = {"tokens": 128, "data_sha256": "d", "validation_sha256": "v"} | changes
    started(run).write_result({key: value for key, value in result.items() if value is not None})


def test_one_run_for_each_P_and_seed_seed_by_seed(plan: Plan, tmp_path: Path) -> None:
    runs = plan((8, 1), seeds=[3, 1])
    assert [run.name for run in runs] == ["P8_seed3", "P1_seed3", "P8_seed1", "P1_seed1"]
    assert [(run.config.parscale.P, run.config.training.seed) for run in runs] == [(8, 3), (1, 3), (8, 1), (1, 1)]
    assert [run.config.run_directory for run in runs] == [tmp_path / run.name for run in runs]


def test_runs_differ_in_nothing_but_P_seed_and_place(plan: Plan) -> None:
    runs = plan((1, 2, 4), seeds=[1, 2], training__learning_rate=1e-3)
    for run in runs:
        differing = set(config_differences(runs[0].config, run.config))
        assert differing <= {"parscale.P", "training.seed", "output_dir"}
        assert run.config.training.learning_rate == 1e-3
        assert run.config.data == runs[0].config.data


def test_the_base_file_counts_and_without_seeds_its_seed_stays(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("training: {seed: 7, tokens_per_run: 12_000_000}\nparscale: {P: 4}\noutput_dir: elsewhere\n")
    (run,) = make_plan(base, {}, [2], output_dir=tmp_path / "sweep")
    assert (run.name, run.config.training.seed, run.config.parscale.P) == ("P2", 7, 2)
    assert run.config.run_directory == tmp_path / "sweep" / "P2"
    assert run.total_tokens == 12_000_000 // 16_384 * 16_384


@pytest.mark.parametrize(
    ("P_values", "seeds", "words"), [((1, 2, 1), None, "--P-values: 1"), ((1,), [5, 5], "--seeds: 5")]
)
def test_nothing_is_run_twice(plan: Plan, P_values: tuple[int, ...], seeds: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"{words} is given twice"):
        plan(P_values, seeds)


def test_a_run_is_new_then_resumed_then_finished(plan: Plan) -> None:
    (run,) = plan((2,))
    assert run.state == "new"
    directory = started(run)
    assert run.state == "new", "without a checkpoint there is nothing to go on from"
    directory.checkpoint_path(3).mkdir(parents=True)
    assert run.state == "resume"
    directory.write_result({"tokens": 1})
    assert run.state == "finished"


# --- before the start ---


def test_a_fresh_plan_and_one_that_goes_on_are_fine(plan: Plan) -> None:
    runs = plan((1, 2, 4), seeds=[1, 2])
    check_plan(runs)
    started(runs[0])
    finished(runs[1])
    check_plan(runs)
    check_plan(plan((1, 8), seeds=[1]))


def test_runs_that_differ_in_something_else_are_refused(plan: Plan) -> None:
    runs = plan((1, 2))
    config = load_config(None, {"parscale.P": 2, "training.learning_rate": 1.0, "output_dir": str(runs[1].directory)})
    with pytest.raises(NotComparableError, match=r"P1 and .* they differ in training\.learning_rate 0\.003 and 1\.0"):
        check_plan([runs[0], PlannedRun(config)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"training__learning_rate": 0.5}, r"training\.learning_rate 0\.003 and 0\.5"),
        ({"training__tokens_per_run": 12_000_000}, r"training\.tokens_per_run 16000000 and 12000000"),
        ({"data__seed": 1}, r"data\.seed 42 and 1"),
        ({"training__seed": 1}, r"training\.seed 42 and 1"),
    ],
)
def test_a_directory_with_another_configuration_is_refused(plan: Plan, change: dict[str, Any], words: str) -> None:
    runs = plan((1, 2))
    started(plan((2,), **change)[0])
    with pytest.raises(NotComparableError, match=rf"the plan for P2 and .*/P2 cannot be compared: .*{words}"):
        check_plan(runs)


def test_a_directory_of_another_P_is_refused(plan: Plan, tmp_path: Path) -> None:
    other = load_config(None, {"parscale.P": 4, "output_dir": str(tmp_path / "P2")})
    started(PlannedRun(other))
    with pytest.raises(NotComparableError, match=r"parscale\.P 2 and 4"):
        check_plan(plan((1, 2)))


def test_runs_beside_the_plan_must_fit_too_as_a_report_shows_them(plan: Plan) -> None:
    started(plan((4,))[0])
    check_plan(plan((1, 2)))
    started(plan((8,), data__sequence_length=512)[0])
    with pytest.raises(NotComparableError, match=r"/P8 cannot be compared: .*data\.sequence_length 1024 and 512"):
        check_plan(plan((1, 2)))


def test_what_is_no_run_does_not_disturb(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "report.html").write_text("x")
    RunDirectory.open_for_training(plan((2,), data__seed=9)[0].config).close()  # never started: gives way
    check_plan(plan((1, 2)))
    check_results(tmp_path)


def test_where_logs_go_and_the_device_may_differ(plan: Plan) -> None:
    started(plan((2,), logging__level="DEBUG", training__device="cpu", data__num_workers=0)[0])
    check_plan(plan((1, 2)))


def test_no_resume_refuses_what_is_there(plan: Plan) -> None:
    runs = plan((1, 2))
    check_plan(runs, resume=False)
    started(runs[1])
    with pytest.raises(ValueError, match=r"/P2 already holds a run"):
        check_plan(runs, resume=False)


def test_an_unreadable_configuration_is_refused(plan: Plan) -> None:
    runs = plan((1, 2))
    (started(runs[1]).path / "config.yaml").write_text("parscale: [")
    with pytest.raises(NotComparableError, match="P2 holds a run of an unknown configuration"):
        check_plan(runs)


def test_damaged_records_are_left_to_the_run(plan: Plan) -> None:
    runs = plan((1, 2))
    (started(runs[1]).path / "metrics.jsonl").write_text("{damaged\n")
    check_plan(runs)


# --- after the end ---


def test_equal_results_can_be_compared(plan: Plan, tmp_path: Path) -> None:
    runs = plan((1, 2, 4))
    finished(runs[0])
    finished(runs[1])
    started(runs[2])
    assert list(check_results(tmp_path)) == ["P1", "P2"]


@pytest.mark.parametrize(("key", "value"), [("tokens", 64), ("data_sha256", "e"), ("validation_sha256", "w")])
def test_unequal_data_are_refused_by_name_and_value(plan: Plan, tmp_path: Path, key: str, value: object) -> None:
    runs = plan((1, 2))
    finished(runs[0])
    finished(runs[1], **{key: value})
    before = {"tokens": 128, "data_sha256": "d", "validation_sha256": "v"}[key]
    with pytest.raises(NotComparableError, match=re.escape(f"their {key} differ (P1 {before}, P2 {value})")):
        check_results(tmp_path)


def test_a_result_without_a_hash_or_unreadable_is_refused(plan: Plan, tmp_path: Path) -> None:
    (run,) = plan((1,))
    finished(run, data_sha256=None)
    with pytest.raises(NotComparableError, match="result of P1 cannot be compared: it has no data_sha256"):
        check_results(tmp_path)
    (run.directory.path / "result.json").write_text("{")
    with pytest.raises(NotComparableError, match=r"result of P1 cannot be compared: .*no valid JSON"):
        check_results(tmp_path)
