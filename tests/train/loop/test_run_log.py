"""Progress of a run in the log of the process."""

import logging
from pathlib import Path

import pytest

from pipeline.telemetry import progress
from train.loop.run_log import open_run_log


def test_progress_shows_rate_time_left_and_data_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    caplog.set_level(logging.INFO)
    with open_run_log(tmp_path, first_step=0, num_steps=10, batch_size=8) as log:
        log.advance()
        log.write(0, {"loss": 0.5, "data_wait": 0.123})
        log.advance()
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("train: 8 of 80 samples, ")
    assert first.endswith(" left")
    assert second.startswith("train: 16 of 80 samples, ")
    assert second.endswith(" s left, data wait 12%")
