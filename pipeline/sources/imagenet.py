"""ImageNet, as its tars, as Kaggle's CLS-LOC or as folders by wnid: 1k, 12k, 21k or a part.

Which classes are the target, easily taken for it or surely not it is in `_wnids`; where images
and the answers of the validation set lie is in `_imagenet_layouts` and `_imagenet_answers`.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from pipeline.errors import ConfigError
from pipeline.formats.imagenet_layouts import Layout, Split, find_images
from pipeline.formats.spread import spread_partitions
from pipeline.formats.toy import toy_jpegs
from pipeline.formats.wnids import PRESETS, ClassRules
from pipeline.records import Partition, RawSample


class Params(BaseModel, frozen=True, extra="forbid"):
    """Which copy, and what the target is."""

    path: str  # the copy's folder or a tar of it, e.g. /data/imagenet
    layout: Layout = "auto"  # auto: from what lies at `path`
    split: Split = "train"  # of ImageNet; the data set makes its own splits
    target: str = "cat"  # presets: cat
    target_wnids: tuple[str, ...] = ()  # e.g. [n02084071]; () is the preset's
    ambiguous_wnids: tuple[str, ...] = ()  # never read, e.g. parents of the target; () likewise
    near_wnids: tuple[str, ...] = ()  # verified absent, stratum near; () likewise
    target_policy: Literal["exclude", "positive"] = "exclude"  # what to do with the target's own
    files_per_partition: int = Field(256, ge=1)  # images; a train tar's partition is one class


class Source:
    """Candidates of every class but the ambiguous and, by policy, the target's."""

    is_endless = False

    def __init__(self, params: Params) -> None:
        self._params = params
        self._rules = _rules(params)
        self._images = find_images(params.path, layout=params.layout, split=params.split)

    def partitions(self) -> Iterator[Partition]:
        """Reads names and tar headers only; raises ConfigError where nothing is on offer."""
        addresses = [
            [wnid, *address] for wnid, address in self._images.addresses() if self._is_offered(wnid)
        ]
        if not addresses:
            raise ConfigError(
                f"{self._params.path}: no image of a class on offer; check `params.path`, "
                "`params.split` and `params.target_policy`"
            )
        per_address = self._images.images_per_address
        yield from spread_partitions(
            addresses,
            size=self._params.files_per_partition if per_address == 1 else 1,
            images_per_address=per_address,
        )

    def read(self, partition: Partition) -> Iterator[RawSample]:
        for wnid, *address in partition.locator:
            is_target = wnid in self._rules.targets
            for uri, image in self._images.read(address):
                yield RawSample(
                    uri=uri,
                    image=image,
                    label=self._params.target if is_target else "",
                    label_state="verified_present" if is_target else self._rules.label_state(wnid),
                    class_name=wnid,
                    stratum=None if is_target else self._rules.stratum(wnid),
                )

    def _is_offered(self, wnid: str) -> bool:
        if wnid in self._rules.targets:
            return self._params.target_policy == "positive"
        return wnid not in self._rules.ambiguous


def _rules(params: Params) -> ClassRules:
    """The target's preset, with what the params replace of it."""
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
