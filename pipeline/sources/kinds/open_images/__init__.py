"""Open Images V5 to V7: tars or single images, with labels that are verified, suspected or missing.

What the label files say of an image is in `open_images_labels`, which classes are the target in
`open_images_classes`. Labels exist for nine million training images, the tars hold the 1.7 million
with boxes: a label without an image is no error, an image without a label is unknown.
"""

import csv
import logging
import tarfile
from collections.abc import Iterator
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field, field_validator

from pipeline import storage
from pipeline.dataset.schema import Partition, RawSample
from pipeline.errors import ConfigError
from pipeline.sources.kinds.open_images.classes import find_target_classes
from pipeline.sources.kinds.open_images.labels import Depictions, ImageLabels, LabelFiles, Verdict
from pipeline.sources.kinds.open_images.layouts import (
    FoundImage,
    file_partitions,
    is_http,
    is_tar,
    read_images,
    tar_partitions,
)
from pipeline.sources.kinds.open_images.metadata import (
    KINDS,
    ImageFacts,
    Kind,
    Split,
    find_metadata,
    list_image_ids,
)
from pipeline.sources.readers.files import toy_jpegs
from pipeline.sources.readers.tars import estimate_members

_log = logging.getLogger(__name__)

_OneOrMore = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
]


class Params(BaseModel, frozen=True, extra="forbid"):
    """Where images and labels lie, and what the target is."""

    # Tars, e.g. s3://open-images-dataset/tar/train_{0..f}.tar.gz, or one folder or URL that holds
    # <split>/<ImageID>.jpg. An https:// URL lists nothing: `image_ids` then says what there is.
    path: _OneOrMore = Field(min_length=1)
    split: Split = "train"  # of Open Images; the data set makes its own splits
    # A folder with files under their published names, e.g. v7/oidv7-class-descriptions.csv, flat
    # or not, .gz or not; a field below replaces what is found there, [] by nothing.
    metadata: str | None = None
    human_labels: _OneOrMore | None = None  # ...-annotations-human-imagelabels.csv
    machine_labels: _OneOrMore | None = None  # ...-annotations-machine-imagelabels.csv
    boxes: _OneOrMore | None = None  # ...-annotations-bbox.csv
    class_descriptions: _OneOrMore | None = None  # needed where a class is given by its name
    hierarchy: _OneOrMore | None = None  # bbox_labels_600_hierarchy.json
    image_ids: _OneOrMore | None = None  # ...-with-rotation.csv: license, author, rotation
    target: str = "cat"  # as the data set calls it; presets: cat
    # MIDs or display names, e.g. [/m/01yrx, Dog], with all below them; () is the preset's.
    target_classes: tuple[str, ...] = ()
    near_classes: tuple[str, ...] | None = None  # stratum near where verified; null: the preset's
    mid_classes: tuple[str, ...] | None = None  # stratum mid likewise
    # What to do with images of the target; `only` drops all others: for `positives:`.
    target_policy: Literal["exclude", "positive", "only"] = "exclude"
    # Images whose only boxes of the target are drawings or toys (IsDepiction): neither side, like
    # any target, or such boxes say nothing and the other labels decide.
    depictions: Depictions = "exclude"
    files_per_partition: int = Field(256, ge=1)  # single images; a tar is one partition

    @field_validator("path")
    @classmethod
    def _tars_or_one_folder(cls, path: tuple[str, ...]) -> tuple[str, ...]:
        if len(path) > 1 and not all(map(is_tar, path)):
            raise ValueError("wanted tars, or one folder")
        return path

    @field_validator("metadata")
    @classmethod
    def _can_be_searched(cls, metadata: str | None) -> str | None:
        if metadata is not None and is_http(metadata):
            raise ValueError("http and https list nothing; name the files by the fields below")
        return metadata


class Source:
    """Candidates, and the target's own images as `target_policy` says."""

    is_endless = False

    def __init__(self, params: Params) -> None:
        self._params = params
        files = _find_files(params)
        self._labels = LabelFiles(
            human=files["human_labels"], machine=files["machine_labels"], boxes=files["boxes"]
        )
        self._image_ids = files["image_ids"]
        self._classes = find_target_classes(
            params.target,
            params.target_classes,
            near=params.near_classes,
            mid=params.mid_classes,
            descriptions=files["class_descriptions"],
            hierarchy=files["hierarchy"],
        )

    def partitions(self) -> Iterator[Partition]:
        """One a tar, or runs of single images."""
        if not any(asdict(self._labels).values()):
            _log.warning("%s: no label files, every image is unknown", self._params.path[0])
        if is_tar(self._params.path[0]):
            return tar_partitions(self._params.path)
        return file_partitions(
            self._folder,
            self._listed_ids,
            size=self._params.files_per_partition,
            are_all_offered=self._is_offered(Verdict("verified_present", is_depiction=True))
            and self._is_offered(Verdict()),
        )

    def read(self, partition: Partition) -> Iterator[RawSample]:
        """Raises InfinegError, after all that could be read, where a tar is broken."""
        return self.read_from(partition, 0)

    def read_from(self, partition: Partition, start: int) -> Iterator[RawSample]:
        """The same without the first `start`: of these, labels are looked up and nothing else."""
        labels = ImageLabels(self._labels, self._classes, depictions=self._params.depictions)
        facts = ImageFacts(self._image_ids, self._params.split)
        verdict, num_offered, num_left_out = Verdict(), 0, 0

        def is_wanted(image_id: str) -> bool:
            nonlocal verdict, num_offered, num_left_out
            verdict = labels.verdict(image_id)
            if not self._is_offered(verdict):
                num_left_out += 1
                return False
            num_offered += 1
            return num_offered > start

        for image in read_images(partition.locator, is_wanted):
            yield self._sample(image, verdict, facts)
        if num_left_out:
            _log.info(
                "%s: %d images left out by `target_policy` or `depictions`, %d offered",
                partition.id, num_left_out, num_offered,
            )  # fmt: skip

    def estimate_samples(self, partition: Partition, mean_bytes: float) -> float | None:
        """As if none were left out: most are offered, unless by `only`."""
        if self._params.target_policy == "only":
            return None
        if isinstance(partition.locator, str):
            return estimate_members(storage.size_of(partition.locator), mean_bytes)
        return len(partition.locator) - 1

    def _sample(self, image: FoundImage, verdict: Verdict, facts: ImageFacts) -> RawSample:
        known = facts.facts(image.image_id)
        return RawSample(
            uri=image.uri,
            image=image.content,
            label=self._params.target if verdict.is_target else "",
            label_state=verdict.label_state,
            class_name=verdict.class_name,
            stratum=verdict.stratum,
            license=known.license,
            author=known.author,
            rotation=known.rotation,
            doubt=verdict.doubt,
        )

    def _is_offered(self, verdict: Verdict) -> bool:
        if not verdict.is_target:
            return self._params.target_policy != "only"
        return self._params.target_policy != "exclude" and not verdict.is_depiction

    @property
    def _folder(self) -> str:
        root, split = self._params.path[0].rstrip("/"), self._params.split
        return root if root.rpartition("/")[2] == split else storage.join(root, split)

    def _listed_ids(self) -> Iterator[str]:
        if not self._image_ids and not self._labels.human:
            raise ConfigError(
                f"{self._params.path[0]}: https lists nothing; give `params.image_ids`, or "
                "`params.human_labels`, to say which images there are"
            )
        return list_image_ids(self._image_ids, self._labels.human, self._params.split)


def _find_files(params: Params) -> dict[Kind, tuple[str, ...]]:
    """The files of each kind: those named, else what `metadata` holds."""
    found: dict[Kind, tuple[str, ...]] = {}
    if params.metadata is not None:
        for kind in KINDS:
            if file := find_metadata(params.metadata, kind, params.split):
                found[kind] = (file,)
        if not found:
            raise ConfigError(
                f"{params.metadata}: no file of Open Images under its published name, such as "
                "v7/oidv7-class-descriptions.csv; check `params.metadata`"
            )
    named = {kind: getattr(params, kind) for kind in KINDS}
    return {kind: found.get(kind, ()) if named[kind] is None else named[kind] for kind in KINDS}


def toy(directory: Path) -> Params:
    """A tiger, an image without cat, and one without labels, as `train_0.tar.gz`."""
    directory.mkdir(parents=True)
    ids = [f"0{number:015x}" for number in range(3)]
    with tarfile.open(directory / "train_0.tar.gz", "w:gz") as archive:
        for image_id, jpeg in zip(ids, toy_jpegs(), strict=True):
            member = tarfile.TarInfo(f"train_0/{image_id}.jpg")
            member.size = len(jpeg)
            archive.addfile(member, BytesIO(jpeg))
    names, labels = "oidv7-class-descriptions.csv", "oidv7-train-annotations-human-imagelabels.csv"
    tables: dict[str, list[tuple[object, ...]]] = {
        names: [("LabelName", "DisplayName"), ("/m/01yrx", "Cat"), ("/m/07dm6", "Tiger")],
        labels: [
            ("ImageID", "Source", "LabelName", "Confidence"),
            (ids[0], "verification", "/m/07dm6", 1),
            (ids[1], "crowdsource-verification", "/m/01yrx", 0),
        ],
    }
    for name, rows in tables.items():
        with (directory / name).open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
    return Params(path=(str(directory / "train_{0..0}.tar.gz"),), metadata=str(directory))
