"""Metrics scraped from a real build and a real training; a build that hangs; logs as JSON."""

import json
import os
import re
import signal
import socket
import time
import urllib.request
from pathlib import Path

import pytest

from pipeline.config.build import MetricsServer
from pipeline.dataset import Dataset
from pipeline.errors import ConfigError
from pipeline.telemetry.metrics import BUILD_METRICS, TRAIN_METRICS, serve_metrics
from support.builds import CATS, config_of, first_samples, folder_entry, squares, write_config
from support.kills import worker_processes
from support.processes import (
    Command,
    free_port,
    run_infineg,
    running_infineg,
    wait_until,
)
from support.train_runs import losses_logged, write_dataset, write_run_config


def scrape(port: int) -> dict[str, float]:
    """By name with labels, as Prometheus reads them; {} if nothing is served."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def last_scraped(process: Command, port: int, log: Path) -> dict[str, float]:
    """What a process that ends well served at the end."""
    last: dict[str, float] = {}
    while process.poll() is None:
        last = scrape(port) or last
        time.sleep(0.02)
    assert process.returncode == 0, log.read_text()
    return last


def bare_names(scraped: dict[str, float]) -> set[str]:
    """The metrics without labels, and without the times of creation the client adds."""
    names = {re.sub(r"\{.*", "", name) for name in scraped}
    return {name for name in names if not name.endswith("_created")}


@pytest.mark.timeout(150)
def test_a_build_serves_what_it_then_commits(tmp_path: Path) -> None:
    root, port, log = tmp_path / "data", free_port(), tmp_path / "log"
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "broken.jpg").write_bytes(b"no picture")
    (odd / "good.jpg").write_bytes(first_samples(CATS, 1)[0].image)
    entries = [squares(num_pictures=1200, per_partition=600), folder_entry("odd", odd)]
    config = config_of(
        root, entries, build={"workers": 1, "metrics": {"port": port}}, output={"path": str(root)}
    )
    with running_infineg("build", write_config(tmp_path / "c.yaml", config), log=log) as process:
        last = last_scraped(process, port, log)
    counts = {s.name: s.counts for s in Dataset(str(root)).read_generation().sources}
    for name, each in counts.items():
        assert last[f'infineg_candidates_total{{source="{name}"}}'] == each.read
        assert last[f'infineg_selected_total{{source="{name}"}}'] == each.selected
    assert last['infineg_rejected_total{reason="unreadable",source="odd"}'] == 1
    assert last["infineg_candidates_planned"] == sum(each.read for each in counts.values())
    assert last["infineg_parts_queued"] == 0
    stages = {name for name in last if name.startswith("infineg_stage_seconds_total")}
    for stage in ("read", "decode", "embed", "select", "write"):
        assert f'infineg_stage_seconds_total{{stage="{stage}"}}' in stages
    assert bare_names(last) == {metric.name for metric in BUILD_METRICS}


@pytest.mark.timeout(90)
def test_a_training_serves_what_it_logs(tmp_path: Path) -> None:
    root, run, log, port = tmp_path / "data", tmp_path / "run", tmp_path / "log", free_port()
    write_dataset(root, image_size=40)
    config = write_run_config(
        root, run, steps=1500, batch_size=16, log_every=1, workers=0, metrics={"port": port}
    )
    with running_infineg("train", config, log=log) as process:
        last = last_scraped(process, port, log)
    step = int(last["infineg_train_step"])
    assert step > 1
    nearby = losses_logged(run)[max(step - 2, 0) : step + 2]  # the next one may be under way
    assert any(last["infineg_train_loss"] == pytest.approx(loss) for loss in nearby)
    assert bare_names(last) == {metric.name for metric in TRAIN_METRICS}


def test_a_port_that_is_taken_is_told_before_the_work() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = MetricsServer(port=taken.getsockname()[1])
        message = r"build\.metrics\.port: cannot serve on 127\.0\.0\.1:\d+ \(Address already"
        with (
            pytest.raises(ConfigError, match=message),
            serve_metrics(BUILD_METRICS, server, "build.metrics.port"),
        ):
            pass


@pytest.mark.cluster
@pytest.mark.timeout(150)
def test_a_build_that_hangs_says_where_and_goes_on(tmp_path: Path) -> None:
    """Its only worker is stopped for a while, as by a storage that does not answer."""
    root, log = tmp_path / "data", tmp_path / "log"
    config = config_of(
        root, [squares(num_pictures=3600, per_partition=600)],
        build={"workers": 1, "stuck_after_s": 2},
    )  # fmt: skip
    path = write_config(tmp_path / "c.yaml", config)
    with running_infineg("--log-format", "json", "build", path, log=log) as process:
        wait_until(lambda: "committed squares" in log.read_text(), process, log)
        (worker,) = worker_processes(process.pid)
        os.kill(worker, signal.SIGSTOP)
        before = log.read_text().count("no part was committed")  # while the worker started, say
        wait_until(lambda: log.read_text().count("no part was committed") > before, process, log)
        os.kill(worker, signal.SIGCONT)
        assert process.wait(timeout=60) == 0, log.read_text()
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    (*_, stuck) = [line for line in lines if "no part was committed" in line["message"]]
    assert stuck["level"] == "warning"
    assert re.search(r"In flight: squares span \d \(partitions .*\), \d+ s", stuck["message"])


def test_logs_are_json_lines_where_the_environment_says_so(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", image_size=40)
    config = write_run_config(tmp_path / "data", tmp_path / "run", steps=20, workers=0)
    code, text = run_infineg("train", config, log=tmp_path / "a", INFINEG_LOG="yaml")
    assert (code, "'yaml' is not one of 'text', 'json'" in text) == (2, True)
    code, text = run_infineg("train", config, log=tmp_path / "b", INFINEG_LOG="json")
    assert code == 0, text
    found = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert any(line["message"].startswith("trained ") for line in found)
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in found)
