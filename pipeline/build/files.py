"""Whether the files of a source are still those that it was planned with.

Each source that reads files is planned with a table of them, and a later build lists them again,
which opens none. A file that is new, gone or of another size is a change. One of the same size with
another version may be the same: copying a folder gives every file another time, and S3 gives the
same bytes another ETag if they come in other pieces. Such files alone are read again and compared
with the ledger. A digest of parts of a file would miss one member of a tar, and one of all of it
would read every source twice.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from pipeline.build.compare import find_changed_files, lost_partitions
from pipeline.build.file_tables import (
    FileChanges,
    compare_files,
    list_files,
    read_files,
    remove_other_files,
    write_files,
)
from pipeline.config.schema import Config, SourceEntry
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import Generation, SourcePlan, SourceRecord
from pipeline.errors import ConfigError, InfinegError
from pipeline.selection.plan import draw_of, plan_fingerprint
from pipeline.sources import StoredSource, open_entry

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Planned:
    """A source of the config whose plan, or reference bank, is to be used as it is."""

    entry: SourceEntry
    source: StoredSource
    path: str  # of the table of its files; "" if an older version planned it
    plan: SourcePlan | None  # None of positives that are only in the reference bank so far


def may_have_changed(config: Config, only: Sequence[str] = ()) -> bool:
    """Whether `settle_files` has anything to look at. Lists files and reads none."""
    dataset = Dataset(config.output.path)
    return any(
        not planned.path or not read_files(dataset, planned.path).equals(list_files(planned.source))
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


def _is_finished(planned: _Planned, record: SourceRecord | None) -> bool:
    """Whether all that was planned of a source is in a generation."""
    if planned.plan is None or record is None:
        return False
    return record.num_partitions >= planned.plan.num_partitions


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
        lost = lost_partitions(dataset, planned.source, record)
        return FileChanges(removed=[f"partition {name}" for name in lost])
    changes = compare_files(read_files(dataset, planned.path), now)
    if not changes.touched or str(changes):
        return changes
    if config.role_of(entry) == "positive" and not _is_finished(planned, record):
        # The reference bank was made of all of them, and not all are in a ledger to compare with.
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
    if planned.path and read_files(dataset, planned.path).equals(now):
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
