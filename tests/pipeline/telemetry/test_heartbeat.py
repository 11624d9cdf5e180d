"""Long work is never silent, and short work says nothing of its own."""

import itertools
import logging
import time

import pytest

from pipeline.telemetry import heartbeat
from pipeline.telemetry.heartbeat import never_silent
from pipeline.telemetry.progress import Progress


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A tenth of the times."""
    for name in ("_FIRST_S", "_SILENCE_S", "_CHECK_S"):
        monkeypatch.setattr(heartbeat, name, getattr(heartbeat, name) / 10)
    caplog.set_level(logging.INFO)


def test_no_silence_is_longer_than_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    began = time.time()
    with never_silent("reading"):
        time.sleep(1.6)
    times = [began, *(record.created for record in caplog.records)]
    assert times[1] - began < 0.3, "the first line comes within 3 s"
    assert len(times) >= 4
    assert max(b - a for a, b in itertools.pairwise(times)) < 0.6
    assert all(message.startswith("reading: ") for message in caplog.messages)


def test_lines_of_the_work_itself_are_enough(caplog: pytest.LogCaptureFixture) -> None:
    with never_silent():
        for _ in range(8):
            logging.getLogger("pipeline.some").info("committed")
            time.sleep(0.1)
    assert set(caplog.messages) == {"committed"}


def test_progress_says_how_far_it_is_also_if_it_stands_still(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with never_silent(), Progress("pilot", total=412, unit="candidates") as progress:
        progress.advance(100)
        time.sleep(0.4)
    assert caplog.messages == ["pilot: 100 of 412 candidates, 0 s so far"]


def test_other_training_processes_are_silent(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with never_silent():
        time.sleep(0.4)
    assert caplog.messages == []
