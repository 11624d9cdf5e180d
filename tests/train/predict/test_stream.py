"""`infineg predict RUN --config CONFIG --source NAME`: every sample once, whatever dies."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.errors import ConfigError
from support.builds import config_of, first_samples, squares, write_config
from support.corpus import unusable
from support.processes import (
    call_infineg,
    kill_session,
    run_infineg,
    running_infineg,
    wait_until,
)
from train.predict import stream
from train.predict.output import predict_paths

NUM_PICTURES = 600


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = tmp_path / "things"
    folder.mkdir()
    for number, sample in enumerate(first_samples(squares(num_pictures=30), 30)):
        (folder / f"{number:02}.jpg").write_bytes(sample.image)
    for name, (image, _) in unusable().items():
        (folder / f"x-{name}.jpg").write_bytes(image)
    things = {"name": "things", "kind": "image_folder", "params": {"path": str(folder)}}
    many = squares("many", num_pictures=NUM_PICTURES, per_partition=40)
    endless: dict[str, Any] = {"name": "endless", "kind": "squares", "params": {"image_size": 32}}
    loaded = config_of(tmp_path / "data", [things, many, endless], build={"workers": 2})
    return write_config(tmp_path / "config.yaml", loaded)


def rows_of(out: str | Path) -> list[dict[str, Any]]:
    names = sorted(storage.list_files(str(out), (".parquet",)))
    tables = []
    for name in names:
        with storage.open_read(storage.join(str(out), name)) as file:
            tables.append(pq.read_table(file))
    rows: list[dict[str, Any]] = pa.concat_tables(tables).to_pylist()
    return rows


def test_it_is_what_predict_says_of_the_files(
    run: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ("predict", run, "--config", config, "--source", "things", "--out", out)
    code, _, err = call_infineg(capsys, *arguments)
    assert code == 0, err
    assert "32 pictures (" in err
    assert "; 9 not readable, the first: " in err
    found = {Path(row["path"]).name: row for row in rows_of(out)}
    expected = {Path(each.path).name: each for each in predict_paths(run, [tmp_path / "things"])}
    assert found.keys() == expected.keys()
    for name, each in expected.items():
        assert (found[name]["error"] is None) == (each.prediction is not None)
        if each.prediction is not None:
            assert found[name]["label"] == each.prediction.label
            assert found[name]["logits"] == pytest.approx(each.prediction.logits, abs=1e-4)
            assert found[name]["thresholds"] == pytest.approx(each.prediction.thresholds)


def test_a_killed_one_goes_on_and_has_every_sample_once(
    run: Path, config: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    arguments = ("predict", run, "--config", config, "--source", "many", "--out", out)
    small = ("--set", "sources.many.params.num_pictures=6000")
    with running_infineg(*arguments, *small, log=log) as command:
        wait_until(lambda: bool(list(out.glob("*.parquet"))), command, log)
        kill_session(command)
    done = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert 0 < len(done) < 3
    with running_infineg(*arguments, *small, log=log) as command:
        assert command.wait(timeout=100) == 0, log.read_text()
    assert "resuming: " in log.read_text()
    assert {path: path.stat().st_mtime_ns for path in done} == done, "they are not made again"
    rows = rows_of(out)
    assert len({row["path"] for row in rows}) == len(rows) == 6000
    assert not [path for path in out.iterdir() if path.name.startswith(".")], "nothing is left"


def test_on_s3_with_the_prior_and_threshold_of_the_command(
    run: Path, config: Path, s3_root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--config", config, "--source", "many", "--out", s3_root)
    asked = ("--prior", "0.01", "--threshold", "0.9")
    code, _, err = call_infineg(capsys, "predict", run, *where, *asked)
    assert code == 0, err
    rows = rows_of(s3_root)
    assert len(rows) == NUM_PICTURES
    assert {row["prior"] for row in rows} == {0.01}
    assert rows[0]["thresholds"]["cat"] == pytest.approx(0.9)
    code, _, err = call_infineg(capsys, "predict", run, *where)
    assert code == 2
    assert "holds other predictions (prior is 0.01, now None)" in " ".join(err.split())


def test_files_that_change_are_refused(
    run: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--config", config, "--source", "things", "--out", tmp_path / "out")
    assert call_infineg(capsys, "predict", run, *where)[0] == 0
    shutil.copy(tmp_path / "things/00.jpg", tmp_path / "things/99.jpg")
    code, _, err = call_infineg(capsys, "predict", run, *where)
    assert code == 2
    assert "source_sha256" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "things", "--out", "out"], "predicted by --config CONFIG"),
        (["--config", "CONFIG", "--source", "things"], "--out FOLDER"),
        (["--config", "CONFIG", "--source", "nobody", "--out", "out"], "the config has cats"),
        (["--config", "CONFIG", "--source", "endless", "--out", "out"], "set max_candidates"),
        ([], "give PATHs of images"),
    ],
)
def test_wrong_use_is_named(
    arguments: list[str],
    message: str,
    run: Path,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [str(config) if word == "CONFIG" else word for word in arguments]
    code, _, err = call_infineg(capsys, "predict", run, *words)
    assert code == 2
    assert message in " ".join(err.split())
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.parquet").write_bytes(b"mine")
    about = stream._About(
        model_sha256="", prior=None, threshold=None, source="", source_sha256="", num_spans=1
    )
    with pytest.raises(ConfigError, match="holds other files"):
        stream._begin(str(tmp_path), about)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.parquet"]


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_on_ray_it_is_the_same(run: Path, config: Path, tmp_path: Path) -> None:
    arguments = ("predict", run, "--config", config, "--source", "many", "--out")
    for out, *address in (["here"], ["ray", "--address", "local"]):
        code, output = run_infineg(
            *arguments, tmp_path / out, *address, log=tmp_path / f"log-{out}"
        )
        assert code == 0, output
    assert rows_of(tmp_path / "ray") == rows_of(tmp_path / "here")
