"""`infineg run`: from pictures to a report, whatever of it is not done yet; and the last run."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.dataset import Dataset
from support.builds import ENCODER, folder_entry
from support.inputs import drawings, things, write_folder
from support.processes import call_infineg
from train.model.info import read_model_info


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve pictures of a target, and sixty others."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "cats", drawings("cat", 12))
    write_folder(tmp_path / "things", things(60))
    data: dict[str, Any] = {
        "target": {"name": "otter"},
        "positives": [folder_entry("positives", tmp_path / "cats")],
        "sources": [folder_entry("things", tmp_path / "things", label_state="verified_absent")],
        "encoder": ENCODER,
        "selection": {"budget": 30, "pilot": 20, "quarantine": "off"},
        "split": {"val": 0.1, "test": 0.1},
        "output": {"path": "data", "image_size": 64},
        "build": {"workers": 1},
        "train": {"run": "runs/otter", "steps": 20, "device": "cpu"},
    }
    path = tmp_path / "otter.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_everything_is_done_once_and_what_changed_gets_a_run_of_its_own(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call_infineg(capsys, "run", config)
    assert code == 0, err
    run = Path("runs/otter")
    assert f"report: {run.absolute()}/report.html" in out
    assert "its pictures" in out
    written = (run / "report.html").stat().st_mtime_ns

    code, out, _ = call_infineg(capsys, "run", config)
    assert (code, "its pictures" in out) == (0, True)
    assert (run / "report.html").stat().st_mtime_ns == written
    assert sorted(path.name for path in Path("runs").iterdir()) == ["otter"]

    code, out, _ = call_infineg(capsys, "run", config, "--set", "train.weight_decay=1")
    assert (code, "infineg predict runs/otter-2 " in out) == (0, True)
    write_folder(Path("more"), things(40, seed=5))
    data = yaml.safe_load(config.read_text())
    data["sources"].append(folder_entry("more", Path("more").absolute()))
    config.write_text(yaml.safe_dump(data))
    code, out, _ = call_infineg(capsys, "run", config)
    assert (code, "infineg predict runs/otter-3 " in out) == (0, True)
    info = read_model_info("runs/otter-3")
    assert info is not None
    assert info.generation == 2

    code, out, _ = call_infineg(capsys, "predict", "last", "cats", "--json")
    assert (code, len(out.splitlines())) == (0, 12)
    os.utime("runs/otter/model.json")
    wanted = call_infineg(capsys, "predict", "runs/otter", "cats", "--json")[1]
    assert call_infineg(capsys, "predict", "last", "cats", "--json")[1] == wanted
    assert {json.loads(line)["targets"][0] if "targets" in json.loads(line) else "otter"
            for line in wanted.splitlines()} == {"otter"}  # fmt: skip


def test_positives_that_are_added_are_taken_when_that_is_accepted(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_infineg(capsys, "run", config)[0] == 0
    before = Path("data/generations/000001.json").read_bytes()
    for number, picture in enumerate(drawings("cat", 3, seed=7)):
        (Path("cats") / f"new{number}.jpg").write_bytes(picture)
    code, _, err = call_infineg(capsys, "run", config)
    assert code == 1
    assert "3 added" in err
    assert "--accept-changes" in err
    code, out, err = call_infineg(capsys, "run", config, "--accept-changes")
    assert code == 0, err
    assert "infineg predict runs/otter-2 " in out
    assert Path("data/generations/000001.json").read_bytes() == before
    info = read_model_info("runs/otter-2")
    assert info is not None
    assert info.generation == 2
    positives = Dataset("data").read_generation(2).sources[0]
    assert (positives.role, positives.counts.read) == ("positive", 15)


def test_build_of_hours_asks_for_yes_and_says_how_to_bound_it(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = yaml.safe_load(config.read_text())
    data["sources"] = [{"name": "endless", "kind": "squares", "max_candidates": 10**8}]
    config.write_text(yaml.safe_dump(data))
    code, _, err = call_infineg(capsys, "run", config)
    assert code == 2
    assert "Give --yes" in err
    bound = re.search(r"--set (sources\.endless\.max_candidates=)\d+", err)
    assert bound is not None, err
    assert not list(Path("data").glob("shards/*/*")), "nothing was built"
    code, out, err = call_infineg(capsys, "run", config, "--set", f"{bound[1]}100")
    assert code == 0, err
    assert "report: " in out


def test_shards_that_do_not_fit_on_the_disk_are_not_begun(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(config.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    code, _, err = call_infineg(capsys, "run", config)
    assert code == 1
    assert "0.0 MB are free. Free some, choose another output.path" in err
    assert not list(Path("data").glob("shards/*/*"))


def test_last_without_a_run_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call_infineg(capsys, "evaluate", "last")
    assert code == 2
    assert f"no finished run in {tmp_path}/runs" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"run": "r", "stepss": 3}}, "train.stepss"),
        ({"evaluate": {"alphas": 3}}, "evaluate.alphas"),
        ({"sources": [folder_entry("gone", Path("/gone"))]}, "gone: /gone: no such folder"),
        ({"sources": [{"name": "s", "kind": "squares", "params": {"a": 1}}]}, "s: kind squares"),
    ],
)
@pytest.mark.parametrize("command", ["build", "run"])
def test_what_is_wrong_is_said_before_any_work(
    config: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    change: dict[str, Any],
    message: str,
) -> None:
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), **change}))
    code, _, err = call_infineg(capsys, command, config)
    assert code == 2
    assert message in err
    assert not Path("data/reference.json").exists()
    assert not Path("data/embeddings").exists()
