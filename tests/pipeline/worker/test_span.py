"""One span at a time: the parts that a worker commits, its repetition, and its memory."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import storage
from pipeline.build.changes import begin_dataset
from pipeline.config.schema import Config
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import Counts, PartRecord, TakenDown
from pipeline.dataset.schema import Partition
from pipeline.encoders.runtimes import prepare_encoder
from pipeline.errors import TooManyRejects
from pipeline.sources import open_source
from pipeline.worker.span import SAMPLES_PER_PART, ReadTask, SpanWorker
from support.builds import Built, config_of, first_samples, folder_entry, squares


@pytest.fixture
def planned(built: Built, tmp_path: Path) -> Config:
    """A data set with reference bank and plan, of which no part is built."""
    config = config_of(tmp_path / "data", [squares(num_pictures=1300, per_partition=1300)])
    root = config.output.path
    for name in ("reference.json", "reference.parquet"):
        content = storage.read_bytes(storage.join(str(built.root), name))
        storage.write_atomic(storage.join(root, name), content)
    encoder = prepare_encoder(config.encoder, gpus_per_worker=0)
    begin_dataset(config, encoder=encoder.fingerprint, embedding_dim=encoder.embedding_dim)
    plan = Dataset(str(built.root)).read_plan("squares")
    Dataset(root).write_plan(plan)
    return config


def worker_of(config: Config) -> SpanWorker:
    return SpanWorker(config, prepare_encoder(config.encoder, gpus_per_worker=0), TakenDown())


WHOLE = ReadTask(source="squares", partitions=(Partition("p", [0, 1300], 1300),), span=7)


def records_of(config: Config, task: ReadTask) -> list[PartRecord]:
    return [record for record, _ in worker_of(config).build(task)]


def places_of(root: str, records: list[PartRecord]) -> list[tuple[str, int]]:
    rows = pa.concat_tables(
        Dataset(root).read_table(r.path, ["partition", "ordinal"]) for r in records
    )
    return list(zip(rows["partition"].to_pylist(), rows["ordinal"].to_pylist(), strict=True))


def test_span_left_in_the_middle_goes_on_with_the_next_part(planned: Config) -> None:
    root = planned.output.path
    first, is_new = next(worker_of(planned).build(WHOLE))
    assert is_new
    # What a crash before the commit of the second part leaves: its data, but no record.
    second_data = Path(root) / "parts/squares/000001/000007-000001.parquet"
    second_data.write_bytes(b"half a file")
    stamp = (Path(root) / first.path).stat().st_mtime_ns
    built = list(worker_of(planned).build(WHOLE))
    assert [record.counts.read for record, _ in built] == [512, 512, 276]
    assert [record.is_last for record, _ in built] == [False, False, True]
    assert [is_new for _, is_new in built] == [False, True, True]
    assert (Path(root) / first.path).stat().st_mtime_ns == stamp, "a committed part was redone"
    records = [record for record, _ in built]
    assert places_of(root, records) == [("p", n) for n in range(1300)]
    assert records_of(planned, WHOLE) == records, "a repeated task yields the same records"


@pytest.mark.parametrize("tells_sizes", [True, False])
def test_small_partitions_are_read_as_one_stream(planned: Config, tells_sizes: bool) -> None:
    sizes = [200, 0, 400, 1, 99]
    ends = list(itertools.accumulate(sizes, initial=0))
    partitions = tuple(
        Partition(f"p{n}", [ends[n], ends[n + 1]], size if tells_sizes else None)
        for n, size in enumerate(sizes)
    )
    task = ReadTask(source="squares", partitions=partitions)
    worker = worker_of(planned)
    next(worker.build(task))  # and the process dies
    records = records_of(planned, task)
    assert [record.counts.read for record in records] == [512, 188]
    wanted = [(f"p{n}", i) for n, size in enumerate(sizes) for i in range(size)]
    assert places_of(planned.output.path, records) == wanted


@pytest.mark.parametrize(("num_counted", "size"), [(0, None), (20, None), (21, 30), (256, 30)])
def test_pilot_counts_a_partition_whose_end_it_sees(
    planned: Config, num_counted: int, size: int | None
) -> None:
    partition = Partition("p", [0, 30])
    task = ReadTask(source="squares", partitions=(partition,), limit=10, num_counted=num_counted)
    (rows,) = worker_of(planned).score(task)
    assert rows["partition_size"].to_pylist() == [size] * 10


def test_span_that_ends_with_a_part_has_no_empty_one(planned: Config) -> None:
    partition = Partition("even", [0, 2 * SAMPLES_PER_PART])
    records = records_of(planned, ReadTask(source="squares", partitions=(partition,)))
    assert [(r.counts.read, r.is_last) for r in records] == [(512, False), (512, True)]


def test_empty_partition_is_one_empty_part(planned: Config) -> None:
    task = ReadTask(source="squares", partitions=(Partition("none", [0, 0], 0),))
    (record,) = records_of(planned, task)
    assert (record.counts, record.is_last) == (Counts(), True)


# In a process of its own, to measure only its peak.
MEASURE = """
import re, sys
from pathlib import Path
from pipeline.dataset.metadata import TakenDown
from pipeline.config.loading import load_config
from pipeline.worker.span import ReadTask, SpanWorker
from pipeline.encoders.runtimes import prepare_encoder
from pipeline.sources import open_source

config = load_config(sys.argv[1])
worker = SpanWorker(config, prepare_encoder(config.encoder, gpus_per_worker=0), TakenDown())
entry = config.sources[0]
for span, partition in enumerate(open_source(entry.kind, entry.params).partitions()):
    for record, _ in worker.build(ReadTask(source=entry.name, partitions=(partition,), span=span)):
        assert record.counts.read == 256
    # Only of this program: ru_maxrss begins with the peak of the process that started it.
    (peak_kib,) = re.findall(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
    sys.stdout.write(f"{int(peak_kib) * 1024 / 1e6:.1f}\\n")
"""


def test_memory_is_flat_in_the_number_of_partitions(planned: Config, tmp_path: Path) -> None:
    """Pictures of 60 kB each: the last 1,024 would be 61 MB, were they kept."""
    stream = squares(num_pictures=5 * 256)
    stream["params"] |= {"image_size": 256, "smallest_side": 1, "split_probability": 1.0}
    config = config_of(planned.output.path, [stream], output={"image_size": 256})
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, check=True, text=True
    )
    megabytes = [float(line) for line in run.stdout.split()]
    assert len(megabytes) == 5
    assert megabytes[-1] - megabytes[0] < 30, megabytes


def test_rejects_of_earlier_parts_count_and_are_reported(planned: Config, tmp_path: Path) -> None:
    """The limit is lowered after a first part that was within it, and nothing bad follows."""
    (picture,) = first_samples(squares(num_pictures=1), 1)
    for number in range(700):
        content = b"no picture" if number < 200 else picture.image
        (tmp_path / f"{number:03d}.jpg").write_bytes(content)
    entry = folder_entry("squares", tmp_path, label_state="verified_absent")
    entry["params"]["files_per_partition"] = 700
    (partition,) = open_source(entry["kind"], entry["params"]).partitions()
    task = ReadTask(source="squares", partitions=(partition,))
    tolerant, strict = (
        config_of(planned.output.path, [{**entry, "max_reject_fraction": limit}])
        for limit in (0.5, 0.1)
    )
    assert next(worker_of(tolerant).build(task))[0].counts.rejected == {"unreadable": 200}
    with pytest.raises(TooManyRejects, match=r"200 of 700 .*10%\. Example: in an earlier part"):
        list(worker_of(strict).build(task))
    assert [r.counts.read for r in records_of(tolerant, task)] == [512, 188]
