"""ImageNet 1k, 12k, 21k or a part of it: its tars, Kaggle's CLS-LOC, folders by wnid, and the
files of Hugging Face and timm.

`classes` has the target and the classes near it, `layouts` finds the images.
"""

import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, Field, field_validator

from pipeline import storage
from pipeline.dataset.schema import Partition, RawSample
from pipeline.dataset.seen_labels import LabelCounter, SeenLabels
from pipeline.errors import ConfigError
from pipeline.sources.kinds.imagenet.classes import (
    IMAGENET_22K,
    PRESETS,
    ClassRules,
    is_wnid,
    read_synsets,
)
from pipeline.sources.kinds.imagenet.layouts import Layout, Split, detect_layout, find_images
from pipeline.sources.kinds.imagenet.tables import Images
from pipeline.sources.readers.declared import Declared, described
from pipeline.sources.readers.files import spread_partitions, toy_jpegs
from pipeline.sources.readers.labels import TargetPolicy
from pipeline.storage import FileVersion


class Params(BaseModel, frozen=True, extra="forbid"):
    """Which copy, and what the target is."""

    path: str = Field(description="The folder of the copy, or a tar of it, e.g. /data/imagenet.")
    layout: Layout = Field("auto", description="auto: detected from the files at `path`.")
    split: Split = Field(
        "train", description="Split of ImageNet to read; the data set makes its own splits."
    )
    target: str = Field("cat", description="Label of the target's images. Presets: cat.")
    target_wnids: tuple[str, ...] = Field(
        (), description="Classes that are the target, e.g. [n02084071]; () are the preset's."
    )
    ambiguous_wnids: tuple[str, ...] = Field(
        (), description="Never read, e.g. parents of the target; () are the preset's."
    )
    near_wnids: tuple[str, ...] = Field(
        (), description="Verified absent, of stratum near; () are the preset's."
    )
    target_policy: TargetPolicy = Field(
        "exclude",
        description="What to do with the target's images: leave them out, yield them among all "
        "others with the target as label, or yield only them.",
    )
    synsets: str | None = Field(
        None,
        description="Wnids in order of class number, for tables with class numbers: a file with "
        "one per line, or imagenet-1k, imagenet-12k, imagenet-22k. Default: those that the copy "
        "names, else imagenet-1k.",
    )
    files_per_partition: int = Field(
        256, ge=1, description="Images per partition; of a tar, a partition is one class or all."
    )

    @field_validator("target_wnids", "ambiguous_wnids", "near_wnids")
    @classmethod
    def _are_wnids(cls, wnids: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [wnid for wnid in wnids if not is_wnid(wnid)]:
            raise ValueError(f"{wrong[0]!r} is no wnid, such as n02084071")
        return wnids


class Source:
    """Images of every class except ambiguous ones and, by policy, the target's."""

    is_endless = False

    def __init__(self, params: Params) -> None:
        self._params = params
        self.left_out = LabelCounter()
        self._listed: Counter[str] = Counter()  # images, or tars of them, by class
        self._rules = _rules(params)

    def partitions(self) -> Iterator[Partition]:
        """Reads only names, headers and footers; raises ConfigError if nothing is offered."""
        params = self._params
        layout = self._layout
        images = self._images(layout)
        every = list(images.addresses())
        self._listed = Counter(address[0] for address in every if address[0] is not None)
        addresses = [each for each in every if each[0] is None or self._is_offered(each[0])]
        if not addresses:
            raise ConfigError(
                f"{params.path}: no image of an offered class; check `params.path`, "
                "`params.split` and `params.target_policy`; classes there: "
                f"{described(SeenLabels(others=self._listed)) or 'none'}"
            )
        per_address = images.images_per_address
        for partition in spread_partitions(
            addresses,
            size=params.files_per_partition if per_address == 1 else 1,
            images_per_address=per_address,
        ):
            # With the layout, so that workers need not detect it again.
            yield replace(partition, locator=[layout, *partition.locator])

    def files(self) -> list[FileVersion]:
        """Of the images, and of what gives their classes."""
        lists = storage.versions_of(filter(None, [self._params.synsets]))
        return [*self._images(self._layout).files(), *lists]

    def read(self, partition: Partition) -> Iterator[RawSample]:
        return self.read_from(partition, 0)

    def read_from(self, partition: Partition, start: int) -> Iterator[RawSample]:
        """Skips earlier images, in tars and tables as far as possible."""
        layout, *addresses = partition.locator
        images = self._images(layout)
        if images.images_per_address == 1:
            addresses, start = addresses[start:], 0
        for address in addresses:
            for found in images.read(address, is_offered=self._counts_offered, start=start):
                is_target = found.wnid in self._rules.targets
                state = self._rules.label_state(found.wnid)
                yield RawSample(
                    uri=found.uri,
                    image=found.image,
                    label=self._params.target if is_target else "",
                    label_state="verified_present" if is_target else state,
                    class_name=found.wnid,
                    stratum=None if is_target else self._rules.stratum(found.wnid),
                )

    def estimate_samples(self, partition: Partition, mean_bytes: float) -> float | None:
        """As if all classes were offered: those that are not are few."""
        if self._params.target_policy == "only":
            return None
        layout, *addresses = partition.locator
        images = self._images(layout)
        known = [images.estimate_images(address, mean_bytes) for address in addresses]
        return sum(each or 0.0 for each in known) or None

    @functools.cached_property
    def _layout(self) -> Layout:
        params = self._params
        return (
            detect_layout(params.path, params.split) if params.layout == "auto" else params.layout
        )

    def _images(self, layout: Layout) -> Images:
        params = self._params
        return find_images(
            params.path,
            layout=layout,
            split=params.split,
            synsets=params.synsets,
            rows_per_address=params.files_per_partition,
        )

    def declares_labels(self) -> bool:
        return True  # the target has a preset, if no classes are named

    def check_labels(self, seen: SeenLabels) -> None:
        """A copy of ImageNet has some classes of a preset, and of a named list of known ones."""
        if self._listed:
            seen = self._seen_in_listing()
        named = self._params.target_wnids
        targets = named or sorted(self._rules.targets)
        is_any = any(wnid in seen.targets for wnid in targets)
        if is_any and not named:
            return
        known = targets if not named else read_synsets(IMAGENET_22K) if is_any else ()
        Declared(
            targets=targets,
            known=frozenset(known),
            targets_setting="params.target_wnids",
            place="`params.path`",
            is_only=self._params.target_policy == "only",
        ).check(seen)

    def _seen_in_listing(self) -> SeenLabels:
        """Also of the images that are not offered, and so not read."""
        counter = LabelCounter()
        for wnid, number in self._listed.items():
            counter.add(wnid, is_target=wnid in self._rules.targets, number=number)
        return counter.seen()

    def _counts_offered(self, wnid: str | None) -> bool:
        """`_is_offered`, which counts those that are not."""
        if wnid is not None and self._is_offered(wnid):
            return True
        self.left_out.add(wnid, is_target=wnid in self._rules.targets)
        return False

    def _is_offered(self, wnid: str) -> bool:
        if wnid in self._rules.targets:
            return self._params.target_policy != "exclude"
        return self._params.target_policy != "only" and wnid not in self._rules.ambiguous


def _rules(params: Params) -> ClassRules:
    """The target's preset, with the sets that the params replace."""
    preset = PRESETS.get(params.target, ClassRules())
    targets = frozenset(params.target_wnids) or preset.targets
    if not targets:
        raise ConfigError(
            f"`params.target` {params.target!r} is none of {', '.join(PRESETS)}; "
            "give `params.target_wnids`"
        )
    return replace(
        preset,
        targets=targets,
        ambiguous=frozenset(params.ambiguous_wnids) or preset.ambiguous,
        near=frozenset(params.near_wnids) or preset.near,
    )


def toy(directory: Path) -> Params:
    """A tiger, a dog and an abacus."""
    for wnid, jpeg in zip(("n02129604", "n02099601", "n02666196"), toy_jpegs(), strict=True):
        folder = directory / "train" / wnid
        folder.mkdir(parents=True)
        (folder / f"{wnid}_1.JPEG").write_bytes(jpeg)
    return Params(path=str(directory))
