"""Reads what has ended processes: in another process, which may end, too.

A damaged file can end a process by a fault in a library, or by taking all memory. The sample that
does it is rejected as `crashed`, and another process reads on after it.
"""

import contextlib
import functools
import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pipeline import storage
from pipeline.cluster.process import Died, Process, Task, Template
from pipeline.config.schema import Config, SourceEntry
from pipeline.dataset.images import decode_image
from pipeline.dataset.schema import Partition, RawSample, RejectReason
from pipeline.dataset.seen_labels import LabelCounter, SeenLabels
from pipeline.sources import LabelledSource, Source, left_out_labels, open_entry, read_from

_DECODED = b"decoded"


def open_source_of(task: Task, entry: SourceEntry, config: Config) -> Source:
    """The source of an entry, read as carefully as the task says."""
    source = open_entry(entry, config.role_of(entry))
    return CarefulSource(source, entry, config) if task.careful else source


class CarefulSource:
    """The samples of a source, also of one that ends processes."""

    def __init__(self, source: Source, entry: SourceEntry, config: Config) -> None:
        self._source = source
        self._job = pickle.dumps((functools.partial(_Reader, entry, config), _Reader.read))
        self.is_endless = source.is_endless
        self.left_out = LabelCounter()

    def partitions(self) -> Iterator[Partition]:
        return self._source.partitions()

    def declares_labels(self) -> bool:
        return isinstance(self._source, LabelledSource) and self._source.declares_labels()

    def check_labels(self, seen: SeenLabels) -> None:
        assert isinstance(self._source, LabelledSource)
        self._source.check_labels(seen)

    def read(self, partition: Partition) -> Iterator[RawSample]:
        return self.read_from(partition, 0)

    def read_from(self, partition: Partition, start: int) -> Iterator[RawSample]:
        """Like `read`, without the first `start` samples.

        Where one process after the other ends before it has a sample, the rest of the partition is
        out of reach, and counts as crashed.
        """
        with contextlib.closing(Template(threads=1)) as template:
            yield from self._read_in_forks(template, partition, start)

    def _read_in_forks(
        self, template: Template, partition: Partition, start: int
    ) -> Iterator[RawSample]:
        number, has_failed = start, False
        while True:
            sample: RawSample | None = None  # read, not decoded yet
            process = Process(template)
            try:
                process.begin(self._job, _Read(partition=partition, start=number))
                while (result := process.receive()) is not None:
                    if isinstance(result, RawSample):
                        sample = result
                    elif isinstance(result, SeenLabels):
                        self.left_out.update(result)
                    else:
                        assert sample is not None
                        yield sample
                        sample, number, has_failed = None, number + 1, False
                return
            except Died:
                if sample is not None:
                    yield replace(sample, refused=RejectReason.CRASHED)
                elif has_failed:
                    yield from _out_of_reach(partition, number)
                    return
                else:
                    yield _crashed(partition, number)
                    has_failed = True
                number += 1
            finally:
                process.kill()


def _crashed(partition: Partition, number: int) -> RawSample:
    return RawSample(
        uri=f"{partition.id}, sample {number}", image=b"", refused=RejectReason.CRASHED
    )


def _out_of_reach(partition: Partition, start: int) -> Iterator[RawSample]:
    """As many as there are; one if nobody knows."""
    end = partition.num_samples or start + 1
    return (_crashed(partition, number) for number in range(start, end))


class _Read(Task, frozen=True):
    partition: Partition
    start: int


class _Reader:
    """In the process that may end."""

    def __init__(self, entry: SourceEntry, config: Config) -> None:
        storage.configure(config.storage)
        self._entry = entry
        self._config = config

    def read(self, task: _Read) -> Iterator[Any]:
        """Each sample, and again something when it is decoded; at last the labels left out."""
        source = open_entry(self._entry, self._config.role_of(self._entry))
        for sample in read_from(source, task.partition, task.start):
            yield sample
            decode_image(
                sample.image,
                rotation=sample.rotation or 0,
                settings=self._config.output.image_settings,
            )
            yield _DECODED
        left_out = left_out_labels(source)
        if left_out is not None:
            yield left_out
