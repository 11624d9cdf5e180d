"""One partition at a time: what a worker commits, repeats, and keeps in memory."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from builds import config_of, first_samples, folder_entry, squares
from conftest import Built

from pipeline import manifest, storage
from pipeline.config import Config
from pipeline.dataset import begin_dataset
from pipeline.errors import TooManyRejects
from pipeline.parts import SAMPLES_PER_PART, PartitionTask, PartitionWorker
from pipeline.records import Counts, Partition
from pipeline.runtimes import prepare_encoder
from pipeline.sources import open_source


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
    plan = manifest.read_plan(str(built.root), "squares")
    assert plan is not None
    manifest.write_plan(root, plan)
    return config


def worker_of(config: Config) -> PartitionWorker:
    return PartitionWorker(config, prepare_encoder(config.encoder, gpus_per_worker=0))


WHOLE = PartitionTask(source="squares", partition=Partition("p", [0, 1300], 1300))


def test_partition_left_in_the_middle_goes_on_with_the_next_part(planned: Config) -> None:
    root = planned.output.path
    worker = worker_of(planned)
    first = next(worker.build(WHOLE))
    # What a crash before the commit of the second part leaves: its data, but no record.
    second_data = Path(root) / f"{manifest.part_stem('squares', 'p', 1)}.parquet"
    second_data.write_bytes(b"half a file")
    stamp = (Path(root) / first.path).stat().st_mtime_ns
    records = list(worker_of(planned).build(WHOLE))
    assert [record.counts.read for record in records] == [512, 512, 276]
    assert [record.is_last for record in records] == [False, False, True]
    assert (Path(root) / first.path).stat().st_mtime_ns == stamp, "a committed part was redone"
    ordinals = itertools.chain.from_iterable(
        manifest.read_table(root, record.path)["ordinal"].to_pylist() for record in records
    )
    assert list(ordinals) == list(range(1300))
    again = list(worker_of(planned).build(WHOLE))
    assert again == records, "a task run again yields what it yielded"


def test_partition_that_ends_with_a_part_has_no_empty_one(planned: Config) -> None:
    partition = Partition("even", [0, 2 * SAMPLES_PER_PART])
    task = PartitionTask(source="squares", partition=partition)
    records = list(worker_of(planned).build(task))
    assert [(r.counts.read, r.is_last) for r in records] == [(512, False), (512, True)]


def test_empty_partition_is_one_empty_part(planned: Config) -> None:
    task = PartitionTask(source="squares", partition=Partition("none", [0, 0], 0))
    (record,) = worker_of(planned).build(task)
    assert (record.counts, record.is_last) == (Counts(), True)


# In a process of its own, whose peak is nobody else's.
MEASURE = """
import re, sys
from pathlib import Path
from pipeline.config import load_config
from pipeline.parts import PartitionTask, PartitionWorker
from pipeline.runtimes import prepare_encoder
from pipeline.sources import open_source

config = load_config(sys.argv[1])
worker = PartitionWorker(config, prepare_encoder(config.encoder, gpus_per_worker=0))
entry = config.sources[0]
for partition in open_source(entry.kind, entry.params).partitions():
    for record in worker.build(PartitionTask(source=entry.name, partition=partition)):
        assert record.counts.read == 256
    # Of this program alone: ru_maxrss begins with the peak of the process that started it.
    (peak_kib,) = re.findall(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
    sys.stdout.write(f"{int(peak_kib) * 1024 / 1e6:.1f}\\n")
"""


def test_memory_is_flat_in_the_number_of_partitions(planned: Config, tmp_path: Path) -> None:
    """Pictures of 60 kB each: the last 1,792 would be 106 MB, were they kept."""
    stream = squares(num_pictures=8 * 256)
    stream["params"] |= {"image_size": 256, "smallest_side": 1, "split_probability": 1.0}
    config = config_of(planned.output.path, [stream], output={"image_size": 256})
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, check=True, text=True
    )
    megabytes = [float(line) for line in run.stdout.split()]
    assert len(megabytes) == 8
    assert megabytes[-1] - megabytes[0] < 30, megabytes


def test_rejects_of_earlier_parts_count_and_are_told_of(planned: Config, tmp_path: Path) -> None:
    """The limit is lowered after a first part that was within it, and nothing bad follows."""
    (picture,) = first_samples(squares(num_pictures=1), 1)
    for number in range(700):
        content = b"no picture" if number < 200 else picture.image
        (tmp_path / f"{number:03d}.jpg").write_bytes(content)
    entry = folder_entry("squares", tmp_path, label_state="verified_absent")
    entry["params"]["files_per_partition"] = 700
    (partition,) = open_source(entry["kind"], entry["params"]).partitions()
    task = PartitionTask(source="squares", partition=partition)
    tolerant, strict = (
        config_of(planned.output.path, [{**entry, "max_reject_fraction": limit}])
        for limit in (0.5, 0.1)
    )
    assert next(worker_of(tolerant).build(task)).counts.rejected == {"unreadable": 200}
    with pytest.raises(TooManyRejects, match=r"200 of 700 .*10%\. Example: in an earlier part"):
        list(worker_of(strict).build(task))
    assert [r.counts.read for r in worker_of(tolerant).build(task)] == [512, 188]
