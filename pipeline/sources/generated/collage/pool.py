"""Pools: a bounded number of images of other sources, all known to show no target."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import simplejpeg
from pydantic import BaseModel, Field, JsonValue

from pipeline.dataset.images import Decoded, decode_image
from pipeline.dataset.schema import ImageSettings, Partition
from pipeline.errors import ConfigError
from pipeline.sources import StoredSource, open_source
from pipeline.sources.drawing import Dice
from pipeline.sources.generated import Pixels, picture_rng
from pipeline.storage import FileVersion

# Limits per source and pool: partitions, and samples of each per image wanted.
_MAX_PARTITIONS_READ = 4
_MAX_READ_PER_IMAGE = 4


class Origin(BaseModel, frozen=True, extra="forbid"):
    """A source to cut from."""

    kind: str = Field(description="As in a config's `sources:`, e.g. image_folder.")
    params: dict[str, JsonValue] = Field(default_factory=dict, description="Settings of that kind.")
    allow_unknown: bool = Field(
        False, description="Also cut samples of unknown label; only for a source without targets."
    )


@dataclass(frozen=True)
class Cut:
    """An image to cut from, with its license and author."""

    pixels: Pixels
    license: str | None
    author: str | None


class PoolReader:
    """Reads pools; a number gives the same pool as long as the sources do not change."""

    def __init__(self, origins: Sequence[Origin], *, max_partitions: int, image_size: int) -> None:
        self._origins = origins
        self._sources = [open_source(origin.kind, origin.params) for origin in origins]
        self._max_partitions = max_partitions
        self._settings = ImageSettings(image_size=image_size)
        self._listed: dict[int, list[Partition]] = {}

    def files(self) -> Iterator[FileVersion]:
        """Of all sources that read files."""
        for source in self._sources:
            if isinstance(source, StoredSource):
                yield from source.files()

    def read(self, number: int, *, seed: int, pool_size: int) -> list[Cut]:
        """At least one image; raises ConfigError if no source has one that may be cut."""
        share = -(-pool_size // len(self._sources))
        pool = [
            cut
            for position in range(len(self._sources))
            for cut in itertools.islice(self._usable(position, number, seed, share), share)
        ]
        if not pool:
            raise ConfigError(
                f"collage: params.sources: {', '.join(o.kind for o in self._origins)}: none of the "
                'samples read may be cut (label "" and label_state verified_absent); '
                "set allow_unknown: true for a source that surely shows no target"
            )
        return pool[:pool_size]

    def _usable(self, position: int, number: int, seed: int, share: int) -> Iterator[Cut]:
        """The first samples of a few partitions, chosen by hash, that decode and may be cut."""
        dice = Dice(picture_rng(f"collage.pool.{position}", seed, number))
        source, origin = self._sources[position], self._origins[position]
        if position not in self._listed:
            listed = itertools.islice(source.partitions(), self._max_partitions)
            self._listed[position] = list(listed)
        partitions = self._listed[position]
        first = dice.below(max(len(partitions), 1))
        in_order = partitions[first:] + partitions[:first]
        states = ("verified_absent", "unknown") if origin.allow_unknown else ("verified_absent",)
        for partition in in_order[:_MAX_PARTITIONS_READ]:
            for sample in itertools.islice(source.read(partition), share * _MAX_READ_PER_IMAGE):
                if sample.label or sample.label_state not in states:
                    continue
                rotation = sample.rotation or 0
                decoded = decode_image(sample.image, rotation=rotation, settings=self._settings)
                if isinstance(decoded, Decoded):
                    pixels = simplejpeg.decode_jpeg(decoded.image, colorspace="RGB")
                    yield Cut(pixels, sample.license, sample.author)
