"""Stops a source before its first commit if a label that its settings declare never occurred."""

import logging
from collections.abc import Iterator, Sequence

from pipeline.build.reading import Round
from pipeline.config.schema import SourceEntry
from pipeline.dataset import Dataset
from pipeline.dataset.seen_labels import SeenLabels, add_seen
from pipeline.errors import ConfigError
from pipeline.sources import LabelledSource, Source

_log = logging.getLogger(__name__)


def check_rounds(dataset: Dataset, rounds: Sequence[Round]) -> None:
    """Judges the first round of each source by the labels in its committed parts.

    Raises ConfigError before anything of that round is in a generation. Resumed or not, a source
    is judged by the same parts.
    """
    for round_ in rounds:
        if round_.number == 1:
            each = list(_seen_in_parts(dataset, round_))
            if None not in each:  # parts of an older version say nothing
                seen = add_seen(seen for seen in each if seen is not None)
                check_labels(round_.planned.entry, round_.planned.source, seen)


def check_labels(entry: SourceEntry, source: Source, seen: SeenLabels) -> None:
    """Raises ConfigError if a declared label is not among those seen.

    Of a source that is verified to show no target it only warns.
    """
    if not isinstance(source, LabelledSource) or not source.declares_labels():
        return
    try:
        source.check_labels(seen)
    except ConfigError as error:
        message = f"source {entry.name!r}: {error}"
        if entry.label_state != "verified_absent":
            raise ConfigError(message) from None
        _log.warning("%s", message)


def _seen_in_parts(dataset: Dataset, round_: Round) -> Iterator[SeenLabels | None]:
    for record in dataset.iterate_parts(round_.source, round_.number):
        yield record.seen
        if record.is_last:
            yield record.left_out
