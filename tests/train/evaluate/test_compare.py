"""`infineg compare`: paired differences, their intervals, and the pictures that changed sides."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError
from support.processes import call_infineg
from support.train_runs import SHORT, run_training, write_dataset
from train.evaluate.compare import compare_runs, read_runs
from train.evaluate.run import evaluate_run
from train.metrics.comparison import difference
from train.model.info import read_model_info, write_model_info


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs on one data set, the second after so few steps that it says other things."""
    root = tmp_path_factory.mktemp("compare")
    write_dataset(root / "data", image_size=40, noise=2.0)
    paths = []
    for name, steps in (("long", 60), ("short", 1)):
        run = run_training(root / "data", root / name, **SHORT | {"steps": steps})
        evaluate_run(run)
        paths.append(run)
    return paths[0], paths[1]


def test_difference_counts_only_pictures_on_which_runs_disagree() -> None:
    first_N = np.array([True] * 6 + [False] * 94)
    second_N = np.array([False] * 4 + [True] * 2 + [True] * 1 + [False] * 93)
    found = difference(first_N, second_N, np.ones(100))
    assert (found.num_only_first, found.num_only_second, found.n) == (4, 1, 100)
    assert (found.first, found.second, found.value) == pytest.approx((0.06, 0.03, -0.03))
    assert found.low < -0.03 < 0 < found.high
    # What both get wrong cancels: a hundred more of these change nothing but n.
    wider = difference(*(np.r_[each, [True] * 100] for each in (first_N, second_N)), np.ones(200))
    assert wider.value == pytest.approx(-0.015)
    assert wider.high - wider.low < found.high - found.low


@pytest.mark.parametrize("is_weighted", [False, True])
def test_interval_covers_the_true_difference(is_weighted: bool) -> None:
    """1,000 tests of 300 pictures; weighted: a tenth of them stand for five others each."""
    rng = np.random.default_rng(0)
    shares = {(1, 0): 0.03, (0, 1): 0.06, (1, 1): 0.02, (0, 0): 0.89}
    kinds = list(shares)
    num_held = 0
    for _ in range(1000):
        drawn = rng.choice(4, size=300, p=list(shares.values()))
        first_N, second_N = (np.array([kinds[d][side] for d in drawn], bool) for side in (0, 1))
        weights_N = np.where(rng.random(300) < 0.1, 5.0, 1.0) if is_weighted else np.ones(300)
        found = difference(first_N, second_N, weights_N)
        num_held += found.low <= 0.03 <= found.high
    assert num_held >= 945


def test_rates_are_those_of_evaluate_where_both_test_the_same(runs: tuple[Path, Path]) -> None:
    (comparison,) = compare_runs(read_runs(runs))
    for run, side in zip(runs, ("first", "second"), strict=True):
        metrics = json.loads((run / "metrics.json").read_text())["target"]["cat"]
        wanted = {"TPR at the threshold": {"": metrics["tpr"]}}
        wanted["FPR at the threshold"] = metrics["fpr"]
        wanted["FPR at TPR 95 %"] = metrics["fpr_at_tpr95"]
        for rate, by_stratum in comparison.rates.items():
            assert by_stratum
            for stratum, each in by_stratum.items():
                assert getattr(each, side) == pytest.approx(wanted[rate][stratum]["value"])
                assert each.n == wanted[rate][stratum]["n"]
    assert {(row["first"] >= 0) != (row["second"] >= 0) for row in comparison.changed} == {True}


def test_command_prints_a_table_and_writes_a_page_with_the_pictures(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "compare.html"
    code, out, err = call_infineg(capsys, "compare", *runs, "--out", page)
    (comparison,) = compare_runs(read_runs(runs))
    assert code == 0, err
    assert f"{len(comparison.changed)} pictures changed sides" in " ".join(out.split())
    html = page.read_text()
    assert comparison.changed[0]["key"] in html
    assert 0 < html.count("data:image/jpeg") <= len(comparison.changed)
    assert "<script" not in html
    listed = json.loads(call_infineg(capsys, "compare", *runs, "--json")[1])
    (of_second,) = listed["comparisons"]
    assert [row["key"] for row in of_second["changed"]] == [
        row["key"] for row in comparison.changed
    ]


def test_a_run_is_equal_to_itself(runs: tuple[Path, Path]) -> None:
    (comparison,) = compare_runs(read_runs([runs[0], runs[0]]))
    assert comparison.changed == []
    assert {d.value for rates in comparison.rates.values() for d in rates.values()} == {0.0}


def change_predictions(run: Path, **columns: Any) -> None:
    rows = pq.read_table(run / "predictions.parquet")
    for name, values in columns.items():
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, name, values(rows))
    pq.write_table(rows, run / "predictions.parquet")


def test_only_pictures_with_one_label_in_all_runs_count(
    runs: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = shutil.copytree(runs[1], tmp_path / "other")
    rows = pq.read_table(other / "predictions.parquet").filter(pc.field("split") == "test")
    relabelled = rows["key"][0].as_py()
    change_predictions(
        other,
        label=lambda rows: pc.if_else(pc.equal(rows["key"], relabelled), "dog", rows["label"]),
    )
    first, second = read_runs([runs[0], other])
    assert first.rows["key"].to_pylist() == second.rows["key"].to_pylist()
    assert len(first.rows) == len(rows) - 1
    assert "1 common pictures have different labels" in caplog.text


def test_runs_that_cannot_be_compared_are_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    other = shutil.copytree(runs[1], tmp_path / "other")
    change_predictions(
        other, key=lambda rows: pa.array([f"other-{n}" for n in range(len(rows))])
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"no test picture in common \(.*long: 95, .*other: 95\)"):
        read_runs([runs[0], other])
    with pytest.raises(ConfigError, match="two runs or more"):
        read_runs(runs[:1])
    with pytest.raises(ConfigError, match="no evaluated run is there; `infineg evaluate"):
        read_runs([runs[0], tmp_path])
    info = read_model_info(runs[1])
    assert info is not None
    renamed = shutil.copytree(runs[1], tmp_path / "renamed")
    write_model_info(renamed, info.model_copy(update={"targets": ("dog",)}))
    with pytest.raises(ConfigError, match="no target in common"):
        compare_runs(read_runs([runs[0], renamed]))


def test_page_without_the_data_set_has_no_pictures_and_says_so(
    runs: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    copies = [shutil.copytree(run, tmp_path / run.name) for run in runs]
    for copy in copies:
        config = (copy / "config.yaml").read_text()
        (copy / "config.yaml").write_text(config.replace(str(runs[0].parent / "data"), "/none"))
    code, _, err = call_infineg(capsys, "compare", *copies, "--out", tmp_path / "page.html")
    assert code == 0, err
    assert "has no pictures" in caplog.text
    assert "cannot be read from here" in (tmp_path / "page.html").read_text()
