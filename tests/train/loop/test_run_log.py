"""What whoever waits for a run is shown."""

import logging
from pathlib import Path

import pytest

from pipeline.telemetry import progress
from train.loop.run_log import RunLog


def test_progress_tells_rate_time_left_and_data_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    caplog.set_level(logging.INFO)
    with RunLog(tmp_path, first_step=0, num_steps=10, batch_size=8) as log:
        log.advance()
        log.write(0, {"loss": 0.5, "data_wait": 0.123})
        log.advance()
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("train: 8 of 80 samples, ")
    assert first.endswith(" left")
    assert second.startswith("train: 16 of 80 samples, ")
    assert second.endswith(" s left, data wait 12%")
