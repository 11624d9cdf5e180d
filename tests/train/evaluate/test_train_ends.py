"""One finished run: a training ends with calibration and metrics, once, in one process."""

import contextlib
import io
import os
from pathlib import Path

import pytest

from support.processes import call_infineg
from support.train_runs import FINETUNE, SHORT, run_ranks, write_dataset, write_run_config
from train.cli import main
from train.model.info import read_model_info
from train.predict.detector import Detector


def _is_calibrated(run: Path) -> bool:
    info = read_model_info(run)
    assert info is not None
    return info.calibration is not None


def test_what_train_leaves_predicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path / "data", image_size=40)
    run = tmp_path / "run"
    config = write_run_config(tmp_path / "data", run, **FINETUNE)
    code, text, _ = call_infineg(capsys, "train", config)
    assert code == 0
    assert "FPR at TPR 95 %" in text
    assert f"Next: infineg predict {run} PATH" in text
    names = {"model.onnx", "model.safetensors", "metrics.json", "report.html"}
    assert names <= {path.name for path in run.iterdir()}
    assert Detector.load(run).targets == ("cat",)
    written = (run / "metrics.json").stat().st_mtime_ns
    code, text, _ = call_infineg(capsys, "train", config)
    assert code == 0
    assert (run / "metrics.json").stat().st_mtime_ns == written, "what is done is not done again"


def test_evaluation_is_left_out_if_told_and_made_up_for_by_the_next_command(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    config = write_run_config(dataset, run, **SHORT)
    code, text, _ = call_infineg(capsys, "train", config, "--no-evaluate")
    assert code == 0
    assert f"Next: infineg evaluate {run}" in text
    assert not _is_calibrated(run)
    assert not (run / "model.onnx").exists()
    code, _, _ = call_infineg(capsys, "train", config)
    assert code == 0
    assert _is_calibrated(run)
    assert (run / "model.onnx").exists()


def _train(config: Path, folder: Path) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main(["train", str(config)])
    (folder / f"said-{os.environ['RANK']}").write_text(said.getvalue())


@pytest.mark.cluster
def test_of_many_processes_the_first_evaluates(dataset: Path, tmp_path: Path) -> None:
    config = write_run_config(dataset, tmp_path / "run", **SHORT)
    run_ranks(_train, config, tmp_path)
    assert _is_calibrated(tmp_path / "run")
    assert "trained and evaluated" in (tmp_path / "said-0").read_text()
    assert (tmp_path / "said-1").read_text() == ""
