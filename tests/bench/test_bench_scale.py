"""What a build costs its driver as data sets grow, simulated; `make bench` prints tables.

Everything but reading and embedding: rows are made up, and written, listed, packed and read by
the project's own functions. `SCALE=1000000` for the largest size, which takes ten minutes more.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.build.reading import PlannedSource, iterate_spans
from pipeline.curate.verify import verify_dataset
from pipeline.dataset.dataset import Dataset, generation_path
from pipeline.dataset.dedup import SeenImages
from pipeline.dataset.metadata import Generation, PartRecord, ShardRecord
from pipeline.dataset.status import read_running
from pipeline.sources import open_source
from pipeline.sources.survey import survey
from support.builds import config_of, squares
from support.costs import cost_of
from support.synthetic import (
    SOURCE,
    pack_round,
    plan_of,
    seen_images,
    tables_of,
    write_dataset,
    write_part_records,
    write_parts,
)

pytestmark = pytest.mark.slow
LARGEST = int(os.environ.get("SCALE", 100_000))
SIZES = [size for size in (10**3, 10**4, 10**5, 10**6) if size <= LARGEST]


def print_figures(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    lines = [columns, ["---"] * len(columns), *([str(value) for value in row] for row in rows)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    print(f"\n{title}\n{text}")


def list_partitions(number: int) -> int:
    """Surveys a source of so many partitions, and goes through its spans."""
    entry = squares(num_pictures=number, per_partition=1)
    config = config_of("unused", [entry])
    source = open_source(entry["kind"], entry["params"])
    listing = survey(source, config.sources[0], config)
    plan = plan_of(listing.num_partitions).model_copy(update={"partitions_per_span": 512})
    planned = PlannedSource(config.sources[0], source, plan)
    return sum(len(span) for span in iterate_spans(planned))


def scan_parts(root: str) -> int:
    """Like a build that resumes."""
    return sum(1 for _ in Dataset(root).iterate_parts(SOURCE, 1))


def look(root: str) -> int:
    """Like `infineg status`."""
    running = read_running(root)
    return running.sources[0].num_read


def test_partitions_and_parts(tmp_path: Path) -> None:
    rows = []
    for size in SIZES:
        root = tmp_path / str(size)
        write_part_records(root, size)
        Dataset(str(root)).write_plan(plan_of(2 * size))
        listed, scanned = cost_of(list_partitions, size), cost_of(scan_parts, str(root))
        status = cost_of(look, str(root))
        assert (scanned.value, status.value) == (size, 512 * size)
        costs = (listed, scanned, status)
        rows.append([f"{size:,}", *(f"{c.seconds:.2f} s, {c.megabytes:.0f} MB" for c in costs)])
    columns = ["partitions, or parts of a round", "list", "resume", "status"]
    print_figures("partitions and parts", columns, rows)


def pack(root: str, number: int) -> tuple[float, int, int]:
    """Writes a round; returns seconds of its tables, bytes of its ledger, and samples packed."""
    parts = list(Dataset(root).iterate_parts(SOURCE, 1))
    assert len(parts) == number
    began = time.perf_counter()
    tables = tables_of(root, parts)
    seconds = time.perf_counter() - began
    files = pack_round(root, tables)
    size = (Path(root) / tables.ledger.path).stat().st_size
    return seconds, size, sum(file.num_samples for file in files)


def write(root: str, number: int) -> int:
    """Returns bytes of the parts."""
    records: list[PartRecord] = write_parts(root, number)
    return sum((Path(root) / record.path).stat().st_size for record in records)


@pytest.mark.timeout(3600)
def test_pack(tmp_path: Path) -> None:
    rows = []
    for number in (20, 200, 2000):
        root = str(tmp_path / str(number))
        written = cost_of(write, root, number)
        packed = cost_of(pack, root, number)
        candidates = 512 * number
        seconds, ledger_bytes, num_samples = packed.value
        rows.append(
            [
                f"{number:,}",
                f"{candidates:,}",
                f"{written.value / candidates:.0f}",
                f"{candidates / seconds:,.0f}",
                f"{num_samples / (packed.seconds - seconds):,.0f}",
                f"{packed.megabytes:.0f}",
                f"{ledger_bytes / candidates:.1f}",
                f"{num_samples:,}",
            ]
        )
    columns = [
        "parts", "candidates", "part bytes a candidate", "tables, candidates a second",
        "shards, samples a second", "MB", "ledger bytes a candidate", "packed",
    ]  # fmt: skip
    print_figures("pack, 1 % selected, images of 20 kB", columns, rows)


def see(number: int) -> float:
    """Seconds to refuse the duplicates of a round of 10,000 beside `number` images."""
    seen = SeenImages()
    for first in range(0, number, 100_000):
        seen.add(seen_images(min(100_000, number), first))
    few = seen_images(10_000, number)
    began = time.perf_counter()
    seen.admit(few)
    return time.perf_counter() - began


@pytest.mark.timeout(3600)
def test_seen_images(tmp_path: Path) -> None:  # noqa: ARG001
    rows = []
    for number in [10**5, 10**6, *([10**7] if LARGEST >= 10**6 else [])]:
        cost = cost_of(see, number)
        rows.append(
            [f"{number:,}", f"{cost.megabytes:.0f}", f"{cost.seconds:.1f}", f"{cost.value:.2f}"]
        )
    columns = ["images in shards", "MB", "read s", "a round of 10,000 s"]
    print_figures("duplicates", columns, rows)


def read_record(root: str) -> int:
    return len(Dataset(root).read_generation().shards)


def test_generation(tmp_path: Path) -> None:
    rows = []
    for number in SIZES:
        root = tmp_path / str(number)
        shards = tuple(
            ShardRecord(
                path=f"shards/train/{SOURCE}-{n:06d}.tar", sha256=f"{n:064x}",
                size_bytes=25_000_000, sidecar_path=f"shards/train/{SOURCE}-{n:06d}.parquet",
                sidecar_sha256=f"{n:064x}", num_samples=1000, source=SOURCE, split="train",
                label="",
            )
            for n in range(number)
        )  # fmt: skip
        generation = Generation(
            number=1, parent=None, sources=(), shards=shards, quarantine=(), next_numbers={}
        )
        Dataset(str(root)).commit_generation(generation)
        size = (root / generation_path(1)).stat().st_size
        cost = cost_of(read_record, str(root))
        rows.append(
            [f"{number:,}", f"{size / 1e6:.1f}", f"{cost.seconds:.2f}", f"{cost.megabytes:.0f}"]
        )
    print_figures("record of a generation", ["shards", "MB", "read s", "memory MB"], rows)


def verify(root: str) -> tuple[int, int]:
    result = verify_dataset(root)
    assert result.problems == []
    return result.num_rows, result.num_samples


@pytest.mark.timeout(3600)
def test_verify(tmp_path: Path) -> None:
    rows = []
    for num_parts in (20, 200, 1000):
        root = str(tmp_path / str(num_parts))
        write_dataset(root, num_parts, dim=4, image_bytes=2000, share=0.02)
        cost = cost_of(verify, root)
        num_rows, num_samples = cost.value
        rows.append(
            [
                f"{num_rows:,}",
                f"{num_samples:,}",
                f"{num_rows / cost.seconds:,.0f}",
                f"{cost.megabytes:.0f}",
            ]
        )
    print_figures("verify", ["candidates", "packed", "candidates a second", "MB"], rows)
