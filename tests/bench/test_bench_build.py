"""How times grow with sizes: full-length measurements, printed by `make bench`."""

import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.schema import Config
from support.builds import build_inline, config_of, squares, write_config
from support.processes import kill_session, run_infineg, start_infineg, wait_until

pytestmark = pytest.mark.slow
NUM_RUNS = 3


def print_figures(text: str) -> None:
    sys.stdout.write(f"\n{text}\n")


def dataset_of(root: Path, *, num_shards: int) -> list[dict[str, Any]]:
    """Builds a data set of about so many shards; returns its sources."""
    sources = [squares(num_pictures=3 * num_shards, per_partition=1000)]
    build_inline(config_with_small_shards(root, sources))
    return sources


def config_with_small_shards(root: Path, sources: list[dict[str, Any]]) -> Config:
    return config_of(root, sources, selection={"budget": 10**9}, output={"samples_per_shard": 3})


def test_adding_a_source_costs_the_same_beside_10_and_1000_shards(tmp_path: Path) -> None:
    roots = {number: tmp_path / str(number) for number in (10, 1000)}
    sources = {number: dataset_of(root, num_shards=number) for number, root in roots.items()}
    seconds: dict[int, list[float]] = {number: [] for number in roots}
    for run in range(NUM_RUNS):
        for number, root in roots.items():  # interleaved: the machine is noisy
            sources[number].append(squares(f"more{run}", num_pictures=5000, seed=run + 1))
            path = write_config(
                tmp_path / f"{number}.yaml", config_with_small_shards(root, sources[number])
            )
            began = time.monotonic()
            code, output = run_infineg("build", path, log=tmp_path / "log")
            assert code == 0, output
            seconds[number].append(time.monotonic() - began)
    medians = {number: statistics.median(values) for number, values in seconds.items()}
    print_figures(f"adding a source of 5,000: {seconds}, ratio {medians[1000] / medians[10]:.3f}")
    assert medians[1000] < 1.15 * medians[10]


@pytest.mark.parametrize("num_partitions", [10**3, 10**4, 10**5, 10**6])
def test_start_and_memory_do_not_depend_on_the_number_of_partitions(
    tmp_path: Path, num_partitions: int
) -> None:
    stream = squares(num_pictures=num_partitions, per_partition=1)
    config = config_of(tmp_path / "data", [stream], selection={"budget": num_partitions // 50})
    path, log = write_config(tmp_path / "config.yaml", config), tmp_path / "log"
    first = tmp_path / "data/parts/squares/000001/000000-000000.json"
    began = time.monotonic()
    process = start_infineg("build", path, log=log)
    try:
        wait_until(lambda: first.exists(), process, log)
        seconds = time.monotonic() - began
        deadline = time.monotonic() + 60
        megabytes = 0.0
        while process.poll() is None and time.monotonic() < deadline:
            status = Path(f"/proc/{process.pid}/status").read_text()
            megabytes = int((re.findall(r"VmHWM:\s+(\d+) kB", status) or [0])[0]) / 1000
            time.sleep(0.1)
    finally:
        kill_session(process)
    print_figures(
        f"{num_partitions:,} partitions: first commit {seconds:.1f} s, driver {megabytes:,.0f} MB"
    )
    assert seconds < 30


def test_generation_of_many_rounds_costs_what_the_round_costs(tmp_path: Path) -> None:
    stream = squares(num_pictures=200_000, per_partition=500)
    config = config_of(
        tmp_path / "data",
        [stream],
        selection={"budget": 20_000},
        output={"candidates_per_round": 2000, "samples_per_shard": 100},
    )
    path, log = write_config(tmp_path / "config.yaml", config), tmp_path / "log"
    code, output = run_infineg("build", path, log=log, timeout=1200)
    assert code == 0, output
    times = [
        int(h) * 3600 + int(m) * 60 + int(s)
        for h, m, s in re.findall(r"(\d\d):(\d\d):(\d\d) committed generation", output)
    ]
    early, late = times[20] - times[10], times[-1] - times[-11]
    print_figures(f"{len(times)} generations: 10 early ones {early} s, the last 10 {late} s")
    assert late < 2 * early + 2
