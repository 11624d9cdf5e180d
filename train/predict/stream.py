"""A source of any kind, predicted by the workers of a build.

Each span of partitions becomes one parquet file, which is written whole. A span whose file is there
is not read again: a command that was killed goes on, and nothing is lost or doubled.
"""

import functools
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from more_itertools import chunked
from pydantic import BaseModel

from pipeline import storage
from pipeline.build.file_tables import list_files
from pipeline.cluster.process import Task
from pipeline.cluster.workers import open_cluster
from pipeline.config.schema import Config, SourceEntry
from pipeline.dataset.images import upright_jpeg
from pipeline.dataset.records import decode_record, encode_record
from pipeline.dataset.schema import ImageSettings, Partition, Positioned
from pipeline.errors import ConfigError
from pipeline.sources import Source, open_entry, read_partitions
from pipeline.telemetry.progress import Progress
from pipeline.worker.careful import open_source_of
from train.predict.detector import Detector, Prediction
from train.predict.output import FilePrediction, Tally, table_schema

_log = logging.getLogger(__name__)

_SPANS, _FEWEST, _MOST = 64, 100, 2000  # wished for, and samples of each: what a crash costs
_SAMPLES_AT_ONCE = 128  # between signs of progress
_ABOUT = "predictions.json"


class PredictTask(Task, frozen=True):
    """Consecutive partitions, and the number of their file."""

    number: int
    partitions: tuple[Partition, ...]

    @property
    def num_samples(self) -> int:
        """0 if the source does not say."""
        return sum(partition.num_samples or 0 for partition in self.partitions)


class _About(BaseModel, frozen=True):
    """What the predictions in a folder are of; written before the first of them."""

    model_sha256: str
    prior: float | None
    threshold: float | None
    source: str
    source_sha256: str  # of its settings, its partitions, and its files with size and version
    num_spans: int


def predict_source(
    model: bytes,
    config: Config,
    name: str,
    out: str,
    *,
    prior: float | None = None,
    threshold: float | None = None,
) -> Tally:
    """Writes `out/000000.parquet` and so on, and returns what all of them hold.

    model: the content of a model.onnx. name: of a source of the config, or of its positives. out: a
    folder, here or on S3. Raises ConfigError for a source without an end, and for a folder that
    holds predictions of another model or source, or of files that have changed since.
    """
    entry = config.find_entry(name)
    source = open_entry(entry, config.role_of(entry))
    tasks = _spans(source, entry)
    about = _About(
        model_sha256=hashlib.sha256(model).hexdigest(),
        prior=prior,
        threshold=threshold,
        source=name,
        source_sha256=_digest(entry, source, tasks),
        num_spans=len(tasks),
    )
    done = _begin(out, about)
    left = [task for task in tasks if file_name(task.number) not in done]
    if len(left) < len(tasks):
        _log.info("resuming: %d of %d files are there", len(tasks) - len(left), len(tasks))
    make_worker = functools.partial(
        StreamPredictor, config, entry, model, out, prior=prior, threshold=threshold
    )
    with open_cluster(config.build) as cluster:
        total = sum(task.num_samples for task in left)
        cluster.expect(total)
        with Progress("predict", total=total, unit="images") as progress:
            for table in cluster.map(StreamPredictor.predict, left, make_worker=make_worker):
                progress.advance(table["num_rows"][0].as_py())
    return _count(out, tasks)


def file_name(number: int) -> str:
    return f"{number:06d}.parquet"


class StreamPredictor:
    """In a worker: the detector, which is costly to open, and the source."""

    def __init__(
        self,
        config: Config,
        entry: SourceEntry,
        model: bytes,
        out: str,
        *,
        prior: float | None,
        threshold: float | None,
    ) -> None:
        storage.configure(config.storage)
        self._config, self._entry, self._out = config, entry, out
        self._detector = Detector.load_bytes(model, prior=prior, threshold=threshold, num_threads=1)

    def predict(self, task: PredictTask) -> Iterator[pa.Table]:
        """Writes the file of a span; tables with the `num_rows` since the last one."""
        source = open_source_of(task, self._entry, self._config)
        samples = read_partitions(source, task.partitions, 0)
        schema = stream_schema(self._detector.targets)
        rows: list[dict[str, object]] = []
        for some in chunked(self._detector.predict_each(samples, read=_image_of), _SAMPLES_AT_ONCE):
            rows += [_row(positioned, found) for positioned, found in some]
            yield pa.table({"num_rows": [len(some)]})
        uri = storage.join(self._out, file_name(task.number))
        with storage.open_atomic(uri) as file:
            pq.write_table(pa.Table.from_pylist(rows, schema), file)


def stream_schema(targets: Sequence[str]) -> pa.Schema:
    """The place of a sample in its source, and the columns of `infineg predict --out FILE`."""
    return pa.schema([("partition", pa.string()), ("ordinal", pa.int64()), *table_schema(targets)])


def _row(positioned: Positioned, found: Prediction | str) -> dict[str, object]:
    error, prediction = (found, None) if isinstance(found, str) else (None, found)
    if positioned.sample.refused is not None:
        error, prediction = positioned.sample.refused.value, None
    written = FilePrediction(path=positioned.sample.uri, prediction=prediction, error=error)
    return {
        "partition": positioned.partition,
        "ordinal": positioned.ordinal,
        **written.as_dict(),
    }


def _image_of(positioned: Positioned) -> bytes:
    sample = positioned.sample
    if not sample.rotation:
        return sample.image
    settings = ImageSettings(image_size=2**14)  # turned, not made smaller
    return upright_jpeg(sample.image, rotation=sample.rotation, settings=settings)[0]


def _spans(source: Source, entry: SourceEntry) -> list[PredictTask]:
    if source.is_endless and entry.max_candidates is None:
        raise ConfigError(
            f"{entry.name}: has no end; set max_candidates, the number of samples to predict"
        )
    partitions = list(_first(source, entry.max_candidates))
    total = sum(partition.num_samples or 0 for partition in partitions)
    wanted = min(max(total // _SPANS, _FEWEST), _MOST)
    spans: list[list[Partition]] = [[]]
    num_samples = 0
    for partition in partitions:
        if num_samples >= wanted:
            spans.append([])
            num_samples = 0
        spans[-1].append(partition)
        # Without a count, a partition may have any number of samples.
        num_samples += wanted if partition.num_samples is None else partition.num_samples
    return [
        PredictTask(number=number, partitions=tuple(span))
        for number, span in enumerate(filter(None, spans))
    ]


def _first(source: Source, max_samples: int | None) -> Iterator[Partition]:
    """The partitions until there are so many samples."""
    num_samples = 0
    for partition in source.partitions():
        if max_samples is not None and num_samples >= max_samples:
            return
        yield partition
        num_samples += partition.num_samples or 0


def _digest(entry: SourceEntry, source: Source, tasks: Sequence[PredictTask]) -> str:
    digest = hashlib.sha256(entry.model_dump_json(include={"kind", "params"}).encode())
    for task in tasks:
        digest.update(json.dumps([partition.id for partition in task.partitions]).encode())
    if (files := list_files(source)) is not None:
        digest.update(json.dumps(files.to_pydict()).encode())
    return digest.hexdigest()


def _begin(out: str, about: _About) -> set[str]:
    """The files that are there already."""
    uri = storage.join(out, _ABOUT)
    if storage.exists(uri):
        found = decode_record(uri, storage.read_bytes(uri), _About)
        was, now = found.model_dump(), about.model_dump()
        if changed := [name for name in was if was[name] != now[name]]:
            raise ConfigError(
                f"--out {storage.redact(out)}: holds other predictions ({changed[0]} is "
                f"{was[changed[0]]}, now {now[changed[0]]}); choose another folder"
            )
    elif storage.list_files(out, (".parquet",)):
        raise ConfigError(f"--out {storage.redact(out)}: holds other files; choose another folder")
    else:
        storage.write_atomic(uri, encode_record(about))
    return set(storage.list_files(out, (".parquet",)))


def _count(out: str, tasks: Sequence[PredictTask]) -> Tally:
    tally = Tally()
    for task in tasks:
        uri = storage.join(out, file_name(task.number))
        with storage.open_read(uri) as file:
            rows = pq.read_table(file, columns=["path", "label", "error"])
        for value in pc.value_counts(rows["label"].drop_null()).to_pylist():
            tally.num_found[value["values"]] += value["counts"]
        failed = rows.filter(pc.is_valid(rows["error"])).slice(0, 1).to_pylist()
        tally.num_unreadable += rows.num_rows - len(rows["label"].drop_null())
        if failed and not tally.first_error:
            tally.first_error = f"{failed[0]['path']}\terror: {failed[0]['error']}"
    return tally
