"""Heat map and cluster map: right colours, missing values shown, one model or one column is enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from parcontrol.cli.leaderboard.analysis import main
from parcontrol.leaderboard.charts import Matrix, cluster_map, heat_map, matrix, save
from parcontrol.leaderboard.registry import select
from parcontrol.leaderboard.results import read_results
from parcontrol.leaderboard.store import LocalStore
from parcontrol.leaderboard.table import leaderboard_table
from tests.leaderboard.result_documents import OTHER_SHA, ours, put


def table(directory: Path, *documents: dict[str, Any]) -> pd.DataFrame:
    put(directory, {f"org/m/results_{number}.json": document for number, document in enumerate(documents)})
    return leaderboard_table(read_results(LocalStore(directory)))


def texts(figure: Any) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def labels(figure: Any) -> tuple[list[str], list[str]]:
    axes = max(figure.axes, key=lambda axes: len(axes.texts))
    return [text.get_text() for text in axes.get_yticklabels()], [text.get_text() for text in axes.get_xticklabels()]


def test_the_best_of_a_column_is_one_whichever_direction_is_better(tmp_path: Path) -> None:
    made = table(
        tmp_path,
        ours({"fever": {"acc,none": 0.9}, "wikitext": {"word_perplexity,none": 10.0}}, model="org/good"),
        ours({"fever": {"acc,none": 0.5}, "wikitext": {"word_perplexity,none": 30.0}}, model="org/middle"),
        ours({"fever": {"acc,none": 0.1}, "wikitext": {"word_perplexity,none": 50.0}}, model="org/bad"),
    )
    data = matrix(made, select(["all"]))
    goodness = dict(zip(data.models, data.goodness.tolist(), strict=True))
    assert data.columns == ("FEVER/Acc", "WikiText/Word perplexity")
    assert goodness == {"org/good": [1, 1], "org/middle": [pytest.approx(0.5), 0.5], "org/bad": [0, 0]}


def test_values_stand_in_the_cells_and_missing_ones_are_dashes(tmp_path: Path) -> None:
    made = table(
        tmp_path,
        ours({"fever": {"acc,none": 0.9}, "race": {"acc,none": 0.1234}}, model="org/both"),
        ours({"fever": {"acc,none": 0.5}}, model="org/one"),
        ours({"unknown": {"acc,none": 0.5}}, model="org/none"),
    )
    data = matrix(made, select(["all"]))
    assert set(data.models) == {"org/both", "org/one"}
    figure = heat_map(data)
    assert sorted(texts(figure)) == ["12.3", "50.0", "90.0", "–"]
    assert [text.get_text() for legend in figure.legends for text in legend.get_texts()] == ["no result"]


def test_alike_models_stand_side_by_side() -> None:
    """Two families, shuffled; the order of the cluster map keeps each together, with values in their rows."""
    generator = np.random.default_rng(0)
    family = generator.permutation([0, 1] * 6)
    goodness = np.clip(family[:, None] * 0.7 + generator.uniform(0, 0.3, (12, 5)), 0, 1)
    goodness[0, 1] = goodness[3, 2] = np.nan
    values = np.round(goodness * 100, 1)
    models = tuple(f"family {number} model {index}" for index, number in enumerate(family))
    data = Matrix(models, tuple(f"column {index}" for index in range(5)), values, goodness)
    figure = cluster_map(data)

    rows, columns = labels(figure)
    assert sorted(rows) == sorted(models)
    assert len({tuple(name[:8] for name in half) for half in (rows[:6], rows[6:])}) == 2
    assert len({name[:8] for name in rows[:6]}) == len({name[:8] for name in rows[6:]}) == 1
    shown = np.array(texts(figure)).reshape(12, 5)
    for row, name in enumerate(rows):
        for column, label in enumerate(columns):
            value = values[models.index(name), int(label.split()[1])]
            assert shown[row, column] == ("–" if np.isnan(value) else f"{value:.1f}")


@pytest.mark.parametrize("draw", [heat_map, cluster_map])
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 4), (4, 1), (2, 2), (400, 3)], ids=lambda shape: f"{shape[0]} models, {shape[1]} columns"
)
def test_any_size_can_be_drawn(tmp_path: Path, draw: Any, shape: tuple[int, int]) -> None:
    values = np.random.default_rng(1).uniform(0, 100, shape)
    data = Matrix(
        tuple(f"$org/model_{row}" for row in range(shape[0])),
        tuple(f"c{i}" for i in range(shape[1])),
        values,
        values / 100,
    )
    figure = draw(data)
    save(figure, tmp_path / "plot.png")
    picture = imread(tmp_path / "plot.png")
    assert min(picture.shape[:2]) > 100
    assert max(picture.shape[:2]) < 15_000
    assert picture[..., :3].std() > 0.01


def test_models_that_share_no_column_are_drawn(tmp_path: Path) -> None:
    nan = np.nan
    values = np.array([[1.0, nan], [nan, 2.0], [nan, 3.0]])
    figure = cluster_map(Matrix(("a", "b", "c"), ("x", "y"), values, np.array([[0.5, nan], [nan, 0.0], [nan, 1.0]])))
    assert sorted(texts(figure)) == ["1.0", "2.0", "3.0", "–", "–", "–"]


def test_the_same_numbers_give_the_same_file(tmp_path: Path) -> None:
    data = Matrix(("a", "b"), ("x", "y"), np.eye(2), np.eye(2))
    for name in ("one.svg", "two.svg"):
        save(cluster_map(data), tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


class TestCommand:
    @pytest.fixture(autouse=True)
    def _board(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PARCONTROL_LEADERBOARD", str(tmp_path / "board"))

    def test_all_files_are_written(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        documents = [
            ours({"fever": {"acc,none": 0.9}, "race": {"acc,none": 0.2}}, model="org/a", P=2),
            ours({"fever": {"acc,none": 0.5}}, model="org/a", sha=OTHER_SHA),
        ]
        files = {f"org/a/results_{number}.json": document for number, document in enumerate(documents)}
        put(tmp_path / "board/results", {**files, "org/b/results_1.json": b"<html>"})
        assert main(["--output", str(tmp_path / "out"), "--tasks", "Factuality"]) == 0

        shown = capsys.readouterr().out
        names = ["leaderboard.tsv", "leaderboard.parquet"]
        names += [f"{name}.{suffix}" for name in ("heatmap", "clustermap") for suffix in ("png", "svg")]
        assert shown.splitlines()[:-1] == [str(tmp_path / "out" / name) for name in names]
        assert shown.splitlines()[-1].startswith("result files set aside: 1;")
        read = pd.read_csv(tmp_path / "out/leaderboard.tsv", sep="\t")
        assert read["FEVER/Acc"].tolist() == [90, 50]
        assert "RACE/Acc" not in read
        assert pd.read_parquet(tmp_path / "out/leaderboard.parquet")["P"].tolist() == [2, pd.NA]
        assert "org/a (0123456)" in (tmp_path / "out/heatmap.svg").read_text()

    def test_nothing_is_written_without_results(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--output", str(tmp_path / "out"), "--tasks", "fever"]) == 2
        assert capsys.readouterr().err.startswith("error: no model has a result of fever")
        assert not (tmp_path / "out").exists()

    def test_a_place_that_cannot_be_written_is_named(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        put(tmp_path / "board/results", {"org/a/results_1.json": ours({"fever": {"acc,none": 0.9}})})
        (tmp_path / "file").write_text("")
        assert main(["--output", str(tmp_path / "file")]) == 2
        assert "cannot be written" in capsys.readouterr().err
