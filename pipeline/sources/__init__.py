"""Where samples come from: a file or folder per format in `kinds/`, per generator in `generated/`.

Each has three names:

    Params   pydantic model of `params:` in the config, frozen, extra fields forbidden
    Source   made from Params; satisfies the protocol below
    toy      writes three tiny images in this format and returns Params that point at them

`kind` in a config entry is the name of the file or folder; nothing is registered.
"""

import importlib
import importlib.util
import itertools
import pkgutil
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel

from pipeline.config.loading import InvalidSettings, validate
from pipeline.config.schema import SourceEntry
from pipeline.dataset.schema import Partition, Positioned, RawSample, Role
from pipeline.dataset.seen_labels import LabelCounter, SeenLabels
from pipeline.errors import ConfigError
from pipeline.storage import FileVersion

_KIND = re.compile(r"[a-z][a-z_]*")
_PACKAGES = ("pipeline.sources.kinds", "pipeline.sources.generated")


@runtime_checkable
class Source(Protocol):
    """Partitions of samples, in a fixed order."""

    @property
    def is_endless(self) -> bool:
        """Whether `partitions()` never ends; then the budget of the build limits it."""

    def partitions(self) -> Iterator[Partition]:
        """Cheap and deterministic: lists, but opens no image."""

    def read(self, partition: Partition) -> Iterator[RawSample]:
        """Lazy, in a fixed order; may be called any number of times."""


@runtime_checkable
class ResumableSource(Source, Protocol):
    """A source that can skip samples without reading them."""

    def read_from(self, partition: Partition, start: int) -> Iterator[RawSample]:
        """Like `read`, without the first `start` samples."""


@runtime_checkable
class IndexedSource(Source, Protocol):
    """A source that reads a sample at no more than its own cost, wherever it is."""

    def read_at(self, partition: Partition, ordinals: Sequence[int]) -> Iterator[RawSample]:
        """The samples at these positions of `read`, which rise. Reads no other image."""


@runtime_checkable
class EstimatingSource(Source, Protocol):
    """A source that can estimate the number of its samples without reading them."""

    def estimate_samples(self, partition: Partition, mean_bytes: float) -> float | None:
        """From names, sizes and footers; None if unknown.

        `mean_bytes` is the mean size of an encoded image of this source.
        """


@runtime_checkable
class LabelledSource(Source, Protocol):
    """A source whose settings may declare labels, which have to occur in what it reads."""

    left_out: LabelCounter
    """Classes of the samples that reading has passed over and not yielded, since it was opened.

    Complete when a partition was read to its end, also if it was read on from a later sample.
    """

    def declares_labels(self) -> bool:
        """Whether there is anything that has to occur."""

    def check_labels(self, seen: SeenLabels) -> None:
        """Raises ConfigError, with what was seen instead, if a declared label did not occur."""


@runtime_checkable
class StoredSource(Source, Protocol):
    """A source that reads files, which may change after they were read."""

    def files(self) -> Iterable[FileVersion]:
        """Every file that decides which samples there are, or what they hold.

        Lists, and opens no file but those that name others. Missing files are left out. A file
        that appears later is a change: a feed that grows has no such list.
        """


class SourceModule(Protocol):
    """The names of a kind."""

    Params: type[BaseModel]

    def Source(self, params: Any) -> Source: ...

    def toy(self, directory: Path) -> BaseModel: ...


def read_from(source: Source, partition: Partition, start: int) -> Iterator[RawSample]:
    """The samples of a partition from number `start` on."""
    if start and isinstance(source, ResumableSource):
        return source.read_from(partition, start)
    return itertools.islice(source.read(partition), start, None)


def read_at(source: Source, partition: Partition, ordinals: Sequence[int]) -> Iterator[RawSample]:
    """The samples at positions of a partition that rise; ends early if it has fewer.

    Reads no further than the last, and no others of an `IndexedSource`.
    """
    if isinstance(source, IndexedSource):
        yield from source.read_at(partition, ordinals)
        return
    samples, position = read_from(source, partition, ordinals[0]), ordinals[0]
    for ordinal in ordinals:
        yield from itertools.islice(samples, ordinal - position, ordinal - position + 1)
        position = ordinal + 1


def read_partitions(
    source: Source, partitions: Sequence[Partition], start: int
) -> Iterator[Positioned]:
    """The samples of several partitions, without the first `start`."""
    for partition in partitions:
        if partition.num_samples is not None and start >= partition.num_samples:
            start -= partition.num_samples
            continue
        if partition.num_samples is not None or len(partitions) == 1:
            samples, first, start = read_from(source, partition, start), start, 0
        else:  # only reading shows in which partition sample `start` is
            samples, first = source.read(partition), 0
        for ordinal, sample in enumerate(samples, start=first):
            if start:
                start -= 1
            else:
                yield Positioned(partition.id, ordinal, sample)


def estimate_samples(source: Source, partition: Partition, mean_bytes: float) -> float | None:
    """Estimated number of samples in a partition without a count; None if unknown."""
    if not isinstance(source, EstimatingSource):
        return None
    return source.estimate_samples(partition, mean_bytes)


def left_out_labels(source: Source) -> SeenLabels | None:
    """Labels that reading has passed over; None of a source that declares none."""
    if isinstance(source, LabelledSource) and source.declares_labels():
        return source.left_out.seen()
    return None


def source_kinds() -> list[str]:
    """Every name that `kind` may have."""
    return sorted(
        module.name
        for package in _PACKAGES
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__)
    )


def load_source_module(kind: str) -> ModuleType:
    """The module of a kind; raises ConfigError, which lists the kinds."""
    if _KIND.fullmatch(kind):
        for package in _PACKAGES:
            name = f"{package}.{kind}"
            if importlib.util.find_spec(name) is not None:
                return _import_kind(name, kind)
    raise ConfigError(f"kind: {kind!r} is none of {', '.join(source_kinds())}")


def _import_kind(name: str, kind: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise
        raise ConfigError(
            f"kind {kind}: numba, which draws its pictures, is not installed: "
            "pip install 'infineg[generators]'"
        ) from None


def open_source(kind: str, params: Mapping[str, Any]) -> Source:
    """A source by its kind and params; raises ConfigError, which names the wrong field."""
    module = load_source_module(kind)
    try:
        checked = validate(module.Params, params, section="params")
    except InvalidSettings as error:
        raise ConfigError(f"kind {kind}: {error}") from None
    source: Source = module.Source(checked)
    return source


def open_entry(entry: SourceEntry, role: Role) -> Source:
    """The source of a config entry; raises ConfigError, which names the entry.

    Under `positives` every sample is taken for the target, so that a source with other classes
    must leave them out.
    """
    try:
        source = open_source(entry.kind, entry.params)
    except ConfigError as error:
        raise ConfigError(f"{entry.name}: {error}") from None
    params = load_source_module(entry.kind).Params.model_validate(entry.params)
    policy = getattr(params, "target_policy", "only")
    # Without target_labels, a labelled source does not distinguish classes.
    has_classes = getattr(params, "target_labels", True)
    if role == "positive" and policy != "only" and has_classes:
        raise ConfigError(
            f"positives {entry.name}: with `params.target_policy` {policy} it yields other "
            "classes, and under `positives` every sample is taken for the target; set it to only"
        )
    return source
