"""Open Images V5 to V7: tars or single images, with labels that are verified, suspected or missing.

`labels` joins the label files of an image, `classes` finds the classes of the target. Labels exist
for nine million training images, the tars hold the 1.7 million with boxes: a label without an image
is no error, and an image without a label is unknown.
"""

import csv
import logging
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from pydantic import BaseModel, Field, field_validator

from pipeline import storage
from pipeline.dataset.schema import Partition, RawSample
from pipeline.dataset.seen_labels import LabelCounter, SeenLabels
from pipeline.errors import ConfigError
from pipeline.sources.kinds.open_images.classes import find_target_classes
from pipeline.sources.kinds.open_images.labels import Depictions, ImageLabels, LabelFiles, Verdict
from pipeline.sources.kinds.open_images.layouts import (
    FoundImage,
    file_partitions,
    first_ids,
    is_http,
    is_tar,
    read_images,
    tar_partitions,
)
from pipeline.sources.kinds.open_images.matching import LabelMatch
from pipeline.sources.kinds.open_images.metadata import (
    KINDS,
    ImageFacts,
    Kind,
    Split,
    find_metadata,
    list_image_ids,
)
from pipeline.sources.readers.files import toy_jpegs
from pipeline.sources.readers.folders import image_files
from pipeline.sources.readers.labels import TargetPolicy
from pipeline.sources.readers.patterns import OneOrMore
from pipeline.sources.readers.tars import estimate_members
from pipeline.storage import FileVersion

_log = logging.getLogger(__name__)


class Params(BaseModel, frozen=True, extra="forbid"):
    """Where images and labels are, and what the target is."""

    path: OneOrMore = Field(
        min_length=1,
        description="Tars, e.g. s3://open-images-dataset/tar/train_{0..f}.tar.gz, or one folder or "
        "URL that holds <split>/<ImageID>.jpg. An https:// URL cannot be listed: `image_ids` then "
        "says which images there are.",
    )
    split: Split = Field(
        "train", description="Split of Open Images to read; the data set makes its own splits."
    )
    metadata: str | None = Field(
        None,
        description="A folder of files under their published names, e.g. "
        "v7/oidv7-class-descriptions.csv, with or without their folders, .gz or not. A field below "
        "replaces what is found there, [] with nothing.",
    )
    human_labels: OneOrMore | None = Field(
        None, description="...-annotations-human-imagelabels.csv"
    )
    machine_labels: OneOrMore | None = Field(
        None, description="...-annotations-machine-imagelabels.csv"
    )
    boxes: OneOrMore | None = Field(None, description="...-annotations-bbox.csv")
    class_descriptions: OneOrMore | None = Field(
        None, description="...-class-descriptions.csv; needed if a class is given by its name."
    )
    hierarchy: OneOrMore | None = Field(None, description="bbox_labels_600_hierarchy.json")
    image_ids: OneOrMore | None = Field(
        None, description="...-with-rotation.csv: license, author, rotation."
    )
    target: str = Field("cat", description="Label of the target's images. Presets: cat.")
    target_classes: tuple[str, ...] = Field(
        (),
        description="Classes that are the target, with all below them: MIDs or display names, e.g. "
        "[/m/01yrx, Dog]. () are the preset's.",
    )
    near_classes: tuple[str, ...] | None = Field(
        None, description="Classes of stratum near if verified. Default: the preset's."
    )
    mid_classes: tuple[str, ...] | None = Field(
        None, description="Classes of stratum mid if verified. Default: the preset's."
    )
    target_policy: TargetPolicy = Field(
        "exclude",
        description="What to do with the target's images: leave them out, yield them among all "
        "others with the target as label, or yield only them (a source of positives).",
    )
    depictions: Depictions = Field(
        "exclude",
        description="Images whose only boxes of the target are drawings or toys (IsDepiction): "
        "leave them out, take them for the target, or ignore such boxes, so that the other labels "
        "decide.",
    )
    files_per_partition: int = Field(
        256, ge=1, description="Single images per partition; a tar is one partition."
    )

    @field_validator("path")
    @classmethod
    def _tars_or_one_folder(cls, path: tuple[str, ...]) -> tuple[str, ...]:
        if len(path) > 1 and not all(map(is_tar, path)):
            raise ValueError("give tars, or one folder")
        return path

    @field_validator("metadata")
    @classmethod
    def _can_be_searched(cls, metadata: str | None) -> str | None:
        if metadata is not None and is_http(metadata):
            raise ValueError("http and https cannot be listed; name the files by the other fields")
        return metadata


class Source:
    """Candidates, and the target's images by `target_policy`."""

    is_endless = False

    def __init__(self, params: Params) -> None:
        self._params = params
        self.left_out = LabelCounter()
        files = _find_files(params)
        self._labels = LabelFiles(
            human=files["human_labels"], machine=files["machine_labels"], boxes=files["boxes"]
        )
        self._image_ids = files["image_ids"]
        self._tables = {uri for uris in files.values() for uri in uris}
        self._classes = find_target_classes(
            params.target,
            params.target_classes,
            near=params.near_classes,
            mid=params.mid_classes,
            descriptions=files["class_descriptions"],
            hierarchy=files["hierarchy"],
        )

    def partitions(self) -> Iterator[Partition]:
        """One per tar, or runs of single images."""
        if not self._labels.all:
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

    def files(self) -> list[FileVersion]:
        """The tables, and the tars or images; not images by https, which cannot be listed."""
        tables = storage.versions_of(sorted(self._tables))
        if is_tar(self._params.path[0]):
            tars = (partition.locator for partition in tar_partitions(self._params.path))
            return [*tables, *storage.versions_of(tars)]
        return tables if is_http(self._folder) else [*tables, *image_files(self._folder)]

    def read(self, partition: Partition) -> Iterator[RawSample]:
        """Raises InfinegError, after all readable images, if a tar is broken."""
        return self.read_from(partition, 0)

    def read_from(self, partition: Partition, start: int) -> Iterator[RawSample]:
        """Without the first `start`, of which only labels are looked up."""
        labels = ImageLabels(self._labels, self._classes, depictions=self._params.depictions)
        facts = ImageFacts(self._image_ids, self._params.split)
        verdict, num_offered, num_left_out = Verdict(), 0, 0

        def is_wanted(image_id: str) -> bool:
            nonlocal verdict, num_offered, num_left_out
            verdict = labels.verdict(image_id)
            if not self._is_offered(verdict):
                num_left_out += 1
                name = verdict.class_name or (self._params.target if verdict.is_target else None)
                self.left_out.add(name, is_target=verdict.is_target)
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
        """As if no image were left out: with policies other than `only`, few are."""
        if self._params.target_policy == "only":
            return None
        if isinstance(partition.locator, str):
            return estimate_members(storage.size_of(partition.locator), mean_bytes)
        return len(partition.locator) - 1

    def declares_labels(self) -> bool:
        return bool(self._labels.all)

    def check_labels(self, seen: SeenLabels) -> None:
        match = LabelMatch(
            self._labels,
            self._classes,
            self._params.depictions,
            is_only=self._params.target_policy == "only",
        )
        image_ids = (each for p in self.partitions() for each in first_ids(p.locator, 1000))
        match.check(seen, image_ids)

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
                f"{self._params.path[0]}: https cannot be listed; give `params.image_ids` or "
                "`params.human_labels`, which say what images there are"
            )
        return list_image_ids(self._image_ids, self._labels.human, self._params.split)


def _find_files(params: Params) -> dict[Kind, tuple[str, ...]]:
    """The files of each kind: those of its field, else those found in `metadata`."""
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
    """A tiger, an image without a cat, and one without labels, in `train_0.tar.gz`."""
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
