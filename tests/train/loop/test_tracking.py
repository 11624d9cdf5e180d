"""Trackers are imported only if configured; stand-ins record how they are called.

The real ones are tested where they are installed.
"""

import importlib.util
import json
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from support.train_runs import SHORT, interrupt_training, read_log, run_training

STAND_INS = {
    "wandb": """
import json
from pathlib import Path

class Run:
    def __init__(self, folder):
        self.path = Path(folder) / "calls.jsonl"
    def record(self, *call):
        with self.path.open("a") as file:
            file.write(json.dumps(call) + "\\n")
    def log(self, values, step):
        self.record("log", step, values)
    def finish(self, exit_code=0):
        self.record("finish", exit_code)

def init(**known):
    run = Run(known["dir"])
    run.record("init", known)
    return run
""",
    "trackio": """
import os
from wandb import Run

def init(**known):
    run = Run(os.path.dirname(os.environ["TRACKIO_DIR"]))
    run.record("init", known)
    return run
""",
}


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "site").mkdir()
    for name, text in STAND_INS.items():
        (tmp_path / "site" / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("TRACKIO_SPACE_ID", "somebody/space")
    monkeypatch.setenv("TRACKIO_DIR", "elsewhere")
    yield
    for name in STAND_INS:
        sys.modules.pop(name, None)


def tracker(kind: str, **settings: Any) -> dict[str, Any]:
    return SHORT | {"tracker": {"kind": kind, "project": "cats", **settings}}


def read_calls(run: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (run / "calls.jsonl").read_text().splitlines()]


def expected(run: Path) -> list[tuple[int, float]]:
    return [(line["samples_seen"], line["loss"]) for line in read_log(run)]


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_it_gets_the_log_and_stays_offline(kind: str, dataset: Path, tmp_path: Path) -> None:
    run = run_training(dataset, tmp_path / "run", **tracker(kind))
    (_, known), *logs, last = read_calls(run)
    assert (known["project"], known["name"]) == ("cats", "run")
    assert known.get("mode", "offline") == "offline"
    assert known["config"]["learning_rate"] == 0.003
    assert [(step, values["train/loss"]) for _, step, values in logs] == expected(run)
    assert last == ["finish", 0]


@pytest.mark.usefixtures("stand_ins")
def test_a_resumed_run_goes_on_under_its_id(dataset: Path, tmp_path: Path) -> None:
    section = tracker("wandb")
    interrupt_training(dataset, tmp_path / "run", at=6, **section)
    run = run_training(dataset, tmp_path / "run", resume=True, **section)
    calls = read_calls(run)
    begun = [call[1] for call in calls if call[0] == "init"]
    assert len(begun) == 2
    assert begun[0]["id"] == begun[1]["id"]
    assert begun[1]["resume"] == "allow"
    assert [call for call in calls if call[0] == "finish"] == [["finish", 1], ["finish", 0]]


@pytest.mark.skipif(not importlib.util.find_spec("mlflow"), reason="needs mlflow")
@pytest.mark.filterwarnings("ignore")  # of its own libraries
def test_mlflow_has_the_curve_of_an_interrupted_run_in_one(dataset: Path, tmp_path: Path) -> None:
    section = tracker("mlflow")
    interrupt_training(dataset, tmp_path / "run", at=6, **section)
    run = run_training(dataset, tmp_path / "run", resume=True, **section)
    with sqlite3.connect(run / "mlflow.db") as database:
        assert database.execute("select name, status from runs").fetchall() == [("run", "FINISHED")]
        losses = "select step, value from metrics where key = 'train/loss' order by step"
        assert dict(database.execute(losses)) == pytest.approx(dict(expected(run)))


@pytest.mark.skipif(not importlib.util.find_spec("trackio"), reason="needs trackio")
def test_trackio_keeps_the_curve_in_the_run(dataset: Path, tmp_path: Path) -> None:
    run = run_training(dataset, tmp_path / "run", **tracker("trackio"))
    with sqlite3.connect(run / "trackio" / "cats.db") as database:
        steps = [step for (step,) in database.execute("select step from metrics order by step")]
    assert steps == [step for step, _ in expected(run)]


def test_none_is_imported_unless_asked_for(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    for name in ("mlflow", "trackio", "wandb"):
        (tmp_path / "site" / f"{name}.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    run_training(dataset, tmp_path / "run", **SHORT)
    assert not {"mlflow", "trackio", "wandb"} & {*sys.modules}


@pytest.mark.parametrize("kind", ["mlflow", "trackio", "wandb"])
def test_one_that_is_not_installed_is_named(
    kind: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    monkeypatch.setenv("TRACKIO_DIR", "elsewhere")
    message = rf"train\.tracker: {kind} is not installed; pip install {kind}"
    with pytest.raises(ConfigError, match=message):
        run_training(dataset, tmp_path / "run", **tracker(kind))
