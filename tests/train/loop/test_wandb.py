"""Weights & Biases is imported only if configured; a stand-in records its calls."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from support.train_runs import SHORT, interrupt_training, read_log, run_training

STAND_IN = """
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
    def finish(self, exit_code):
        self.record("finish", exit_code)

def init(**known):
    run = Run(known["dir"])
    run.record("init", known)
    return run
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "wandb.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)


def read_calls(run: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (run / "calls.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("stand_in")
def test_wandb_gets_the_log_and_stays_offline(dataset: Path, tmp_path: Path) -> None:
    run = run_training(dataset, tmp_path / "run", **SHORT | {"wandb": {"project": "cats"}})
    (_, known), *logs, last = read_calls(run)
    assert (known["project"], known["name"], known["mode"]) == ("cats", "run", "offline")
    assert known["config"]["learning_rate"] == 0.003
    assert [(step, values["train/loss"]) for _, step, values in logs] == [
        (line["samples_seen"], line["loss"]) for line in read_log(run)
    ]
    assert last == ["finish", 0]
    sys.modules.pop("wandb", None)


@pytest.mark.usefixtures("stand_in")
def test_a_resumed_run_goes_on_under_its_id(dataset: Path, tmp_path: Path) -> None:
    section = SHORT | {"wandb": {"project": "cats"}}
    interrupt_training(dataset, tmp_path / "run", at=6, **section)
    run = run_training(dataset, tmp_path / "run", resume=True, **section)
    calls = read_calls(run)
    begun = [call[1] for call in calls if call[0] == "init"]
    assert len(begun) == 2
    assert begun[0]["id"] == begun[1]["id"]
    assert begun[1]["resume"] == "allow"
    assert [call for call in calls if call[0] == "finish"] == [["finish", 1], ["finish", 0]]
    sys.modules.pop("wandb", None)


def test_wandb_is_not_imported_unless_asked_for(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "wandb.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    run_training(dataset, tmp_path / "run", **SHORT)
    assert "wandb" not in sys.modules


def test_wandb_that_is_not_installed_is_named(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"train\.wandb: wandb is not installed; pip install"):
        run_training(dataset, tmp_path / "run", **SHORT | {"wandb": {"project": "cats"}})
