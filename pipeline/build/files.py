"""Whether the files of a source are still those that it was planned with.

Each source that reads files is planned with a table of them: name, size and a hash of what its
storage gives as version, an ETag or a commit or the time of the last change. A later build lists
the files again, which opens none. A file that is new, gone or of another size is a change. One of
the same size with another version may be the same: copying a folder gives every file another time,
and S3 gives the same bytes another ETag if they come in other pieces. Such files alone are read
again and compared with the ledger. A digest of parts of a file would miss one member of a tar, and
one of all of it would read every source twice.
"""

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.build.compare import find_changed_files, lost_partitions
from pipeline.config.schema import Config, SourceEntry
from pipeline.dataset import Dataset
from pipeline.dataset.keys import sha256_hex, short_hash
from pipeline.dataset.metadata import Generation, SourcePlan, SourceRecord
from pipeline.errors import ConfigError, InfinegError
from pipeline.selection.plan import draw_of, plan_fingerprint
from pipeline.sources import Source, StoredSource, open_entry
from pipeline.sources.readers.patterns import address_id

_log = logging.getLogger(__name__)

_SCHEMA = pa.schema([("name", pa.string()), ("size", pa.int64()), ("stamp", pa.uint64())])
_NUM_EXAMPLES = 3


@dataclass(frozen=True)
class FileChanges:
    """Names of files that differ between two listings of a source."""

    added: Sequence[str] = ()
    removed: Sequence[str] = ()
    changed: Sequence[str] = ()
    touched: Sequence[str] = ()  # same size, another version: reading shows whether they changed

    def __str__(self) -> str:
        """`1 added, 2 changed, such as a.jpg, b.jpg`; "" if nothing has changed for certain."""
        kinds = {"added": self.added, "removed": self.removed, "changed": self.changed}
        counts = ", ".join(f"{len(names):,} {kind}" for kind, names in kinds.items() if names)
        names = [name for some in kinds.values() for name in some]
        return counts and f"{counts}, such as {', '.join(names[:_NUM_EXAMPLES])}"


@dataclass(frozen=True)
class _Planned:
    """A source of the config whose plan, or reference bank, is to be used as it is."""

    entry: SourceEntry
    source: StoredSource
    path: str  # of the table of its files; "" if an older version planned it
    plan: SourcePlan | None  # None of positives that are only in the reference bank so far


def write_files(dataset: Dataset, name: str, files: pa.Table) -> str:
    """Keeps the table of a source's files; returns its path.

    The name follows from the content, so that the table of a plan that is still in use stays.
    """
    buffer = io.BytesIO()
    pq.write_table(
        files,
        buffer,
        compression="zstd",
        use_dictionary=False,
        column_encoding={"name": "DELTA_BYTE_ARRAY"},  # names of a folder begin alike
    )
    path = f"plans/{name}-{sha256_hex(buffer.getvalue())[:16]}.parquet"
    storage.write_atomic(dataset.uri(path), buffer.getvalue())
    return path


def remove_other_files(dataset: Dataset, name: str, path: str) -> None:
    """Removes the tables of a source that its plan no longer names."""
    found = storage.list_prefix(dataset.uri(f"plans/{name}-"))
    storage.remove_many(uri for uri in found if uri != dataset.uri(path))


def list_files(source: Source) -> pa.Table | None:
    """The files of a source as they are now, sorted; None if it reads none.

    About 16 bytes a file once it is written.
    """
    if not isinstance(source, StoredSource):
        return None
    files = list(source.files())
    stamps = (int(short_hash(file.stamp), 16) if file.stamp else 0 for file in files)
    columns = [
        pa.array((address_id(file.uri) for file in files), pa.string()),
        pa.array((file.size for file in files), pa.int64()),
        pa.array(stamps, pa.uint64()),
    ]
    table = pa.Table.from_arrays(columns, schema=_SCHEMA)
    # Two settings may name the same file.
    distinct = table.group_by(_SCHEMA.names, use_threads=False).aggregate([])
    return distinct.sort_by([(name, "ascending") for name in _SCHEMA.names])


def compare_files(then: pa.Table, now: pa.Table) -> FileChanges:
    """Differences of two listings, both sorted by name."""
    if then.equals(now):
        return FileChanges()
    is_kept = pc.is_in(then["name"], value_set=now["name"])
    is_old = pc.is_in(now["name"], value_set=then["name"])
    before, after = then.filter(is_kept), now.filter(is_old)
    sizes = pc.not_equal(before["size"], after["size"])  # null if one is unknown
    is_changed = pc.fill_null(sizes, False)
    is_touched = pc.or_(pc.not_equal(before["stamp"], after["stamp"]), pc.is_null(sizes))
    return FileChanges(
        added=now.filter(pc.invert(is_old))["name"].to_pylist(),
        removed=then.filter(pc.invert(is_kept))["name"].to_pylist(),
        changed=after.filter(is_changed)["name"].to_pylist(),
        touched=after.filter(pc.and_not(is_touched, is_changed))["name"].to_pylist(),
    )


def may_have_changed(config: Config, only: Sequence[str] = ()) -> bool:
    """Whether `settle_files` has anything to look at. Lists files and reads none."""
    dataset = Dataset(config.output.path)
    return any(
        not planned.path
        or not _read_files(dataset, planned.path).equals(list_files(planned.source))
        for planned in _planned_sources(dataset, config, only)
    )


def settle_files(
    config: Config, latest: Generation, only: Sequence[str] = (), *, accept: bool = False
) -> None:
    """Makes sure that plans and the reference bank are of the files that are there now.

    Raises InfinegError if a file has changed since. With `accept` the source is to be drawn anew
    instead and, if it is one of positives, the reference bank made anew and every source drawn
    anew. That is recorded by one write, so that a build that is killed after it goes on with it.
    A source of negatives of which no part is committed is planned anew without being asked.
    Sources of positives are always looked at, because all rows depend on them.
    """
    dataset = Dataset(config.output.path)
    changed: dict[str, str] = {}
    for planned in _planned_sources(dataset, config, only):
        now = list_files(planned.source)
        assert now is not None, "it is a StoredSource"
        record = _record_of(planned, latest)
        if told := str(_find_changes(config, dataset, planned, record, now)):
            if accept or _is_begun(dataset, planned, record):
                changed[planned.entry.name] = told
            else:
                _draw_anew(dataset, config, {planned.entry.name: told}, only)
        else:
            _keep_files(dataset, config, planned, now)
    if changed and accept:
        _draw_anew(dataset, config, changed, only)
    elif changed:
        raise InfinegError(_refusal(config, changed))


def _planned_sources(dataset: Dataset, config: Config, only: Sequence[str]) -> Iterator[_Planned]:
    reference = dataset.read_reference()
    for entry in config.entries:
        is_positive = config.role_of(entry) == "positive"
        if only and entry.name not in only and not is_positive:
            continue
        plan = dataset.read_plan(entry.name)
        draw = draw_of(plan, reference)
        if plan is not None and plan.fingerprint != plan_fingerprint(config, entry, draw):
            plan = None  # it will be made anew
        if is_positive:
            path = reference.files.get(entry.name, "") if reference else ""
            is_used = reference is not None and not reference.is_outdated
        else:
            path, is_used = (plan.files if plan else ""), plan is not None
        source = open_entry(entry, config.role_of(entry)) if is_used else None
        if isinstance(source, StoredSource):
            yield _Planned(entry, source, path, plan)


def _read_files(dataset: Dataset, path: str) -> pa.Table:
    try:
        return dataset.read_table(path)
    except FileNotFoundError:
        raise InfinegError(
            f"{dataset.uri(path)}: no such file, so that nothing tells whether the source has "
            "changed. Restore it, or build a new data set: --set output.path=NEW_PATH"
        ) from None


def _record_of(planned: _Planned, latest: Generation) -> SourceRecord | None:
    """What the latest generation has by this plan."""
    fingerprint = planned.plan.fingerprint if planned.plan else None
    name = planned.entry.name
    records = (each for each in latest.sources if each.name == name)
    return next((each for each in records if each.fingerprint == fingerprint), None)


def _is_begun(dataset: Dataset, planned: _Planned, record: SourceRecord | None) -> bool:
    """Whether anything depends on what was read of a source."""
    plan = planned.plan
    if plan is None or plan.role == "positive" or record is not None:
        return True
    return next(dataset.iterate_parts(plan.source, 1), None) is not None


def _find_changes(
    config: Config,
    dataset: Dataset,
    planned: _Planned,
    record: SourceRecord | None,
    now: pa.Table,
) -> FileChanges:
    """All changes, after reading the files of which the listing leaves it open."""
    entry = planned.entry
    if not planned.path:
        return FileChanges(removed=lost_partitions(dataset, planned.source, record))
    changes = compare_files(_read_files(dataset, planned.path), now)
    if planned.source.is_endless:
        changes = replace(changes, added=())  # it grows
    if not changes.touched or str(changes):
        return changes
    if planned.plan is None:  # of positives there is nothing yet to compare with
        return replace(changes, changed=changes.touched)
    _log.info(
        "source %r: %s files have the sizes that they had, but another ETag or time, such as %s; "
        "reading them again",
        entry.name, f"{len(changes.touched):,}", changes.touched[0],
    )  # fmt: skip
    found = find_changed_files(
        config, dataset, entry, planned.source, record, frozenset(changes.touched)
    )
    return replace(changes, changed=found)


def _keep_files(dataset: Dataset, config: Config, planned: _Planned, now: pa.Table) -> None:
    """Records the files as they are now, if they are recorded otherwise."""
    name = planned.entry.name
    if planned.path and _read_files(dataset, planned.path).equals(now):
        return
    if not planned.path:
        _log.info(
            "source %r was planned by an older version, without a list of its files: they are "
            "taken to be unchanged and are listed from now on", name,
        )  # fmt: skip
    path = write_files(dataset, name, now)
    if config.role_of(planned.entry) == "positive":
        reference = dataset.read_reference()
        assert reference is not None
        files = reference.files | {name: path}
        dataset.write_reference(reference.model_copy(update={"files": files}))
    else:
        assert planned.plan is not None
        dataset.write_plan(planned.plan.model_copy(update={"files": path}))
    remove_other_files(dataset, name, path)


def _draw_anew(
    dataset: Dataset, config: Config, changed: Mapping[str, str], only: Sequence[str]
) -> None:
    """Marks sources, or with one of positives the reference bank and so all, to be drawn anew."""
    for name, told in changed.items():
        _log.info("source %r has changed and is drawn anew: %s", name, told)
    reference = dataset.read_reference()
    plans = [dataset.read_plan(entry.name) for entry in config.entries]
    if positives := _positives_among(config, changed):
        if only:
            raise ConfigError(
                f"positives {', '.join(positives)} have changed, and every source has to be drawn "
                "anew: give --accept-changes without --source"
            )
        assert reference is not None
        draw = 1 + max(draw_of(plan, reference) for plan in plans)
        update = {"draw": draw, "is_outdated": True}
        dataset.write_reference(reference.model_copy(update=update))
        return
    for plan in plans:
        if plan is not None and plan.source in changed:
            draw = draw_of(plan, reference) + 1
            dataset.write_plan(plan.model_copy(update={"draw": draw}))


def _positives_among(config: Config, names: Mapping[str, str]) -> list[str]:
    return [entry.name for entry in config.positives if entry.name in names]


def _refusal(config: Config, changed: Mapping[str, str]) -> str:
    lines = [f"source {name!r} has changed: {told}" for name, told in changed.items()]
    if positives := _positives_among(config, changed):
        return "\n".join(
            [
                *lines,
                f"The reference bank was made of {', '.join(positives)}, and every similarity and "
                "inclusion probability depends on it. Either restore the files and build a new "
                "data set of the new ones: --set output.path=NEW_PATH. Or give --accept-changes: "
                "the bank is made anew and every source is drawn anew as a generation",
            ]
        )
    return "\n".join(
        [
            *lines,
            "Either restore the files and give new ones an entry of their own under `sources`. Or "
            "give --accept-changes: what has changed is drawn anew as a generation",
        ]
    )
