"""Tars in the WebDataset layout, also of img2dataset, named one by one or by an index.

`pipeline.sources.readers.tar_samples` defines a sample; its address is that of the tar and member.
"""

import functools
import io
import itertools
import sys
import tarfile
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import Field, field_validator

from pipeline import storage
from pipeline.dataset.schema import Partition, RawSample
from pipeline.dataset.seen_labels import LabelCounter, SeenLabels
from pipeline.sources.kinds.webdataset.indexes import read_shard_index
from pipeline.sources.readers.files import toy_jpegs
from pipeline.sources.readers.labels import LabelledParams, LabelRule, declared, label_rule
from pipeline.sources.readers.patterns import OneOrMore, address_id, refuse_repeats
from pipeline.sources.readers.tar_labels import label_of, member_of
from pipeline.sources.readers.tar_samples import (
    Member,
    TarReader,
    TarSample,
    described,
)
from pipeline.sources.readers.tars import estimate_members
from pipeline.storage import FileVersion


class Params(LabelledParams, frozen=True, extra="forbid"):
    """Which tars, and what is in them."""

    urls: OneOrMore = Field(
        min_length=1,
        description="One or more tars, e.g. s3://bucket/bg-{00000..00099}.tar, or the JSON that "
        "timm, wids or Energon write beside tars, e.g. https://host/set/_info.json.",
    )
    image_fields: tuple[str, ...] | None = Field(
        None,
        description="Last suffix of a member that is an image, lower case, e.g. [jpg]. Default: "
        "those of the formats that kind image_folder reads.",
    )
    class_field: str | None = Field(
        None,
        description="Where the class is: a member, e.g. cls or txt, or a value of the json, e.g. "
        "json.label or json.label.name. Some sample has to have it.",
    )

    allow_private: bool = Field(
        False,
        description="Whether tars that such JSON names on another host may be on this machine or "
        "in a private network. Otherwise they are refused.",
    )

    @field_validator("urls")
    @classmethod
    def _opens_files_only(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        if any(url.startswith(("pipe:", "|")) for url in urls):
            raise ValueError("`pipe:` URLs run a shell and are refused")
        return urls


class Source:
    """One partition per tar, read as a stream, compressed or not."""

    is_endless = False

    def __init__(self, params: Params) -> None:
        self._params = params
        self.left_out = LabelCounter()

    def partitions(self) -> Iterator[Partition]:
        """Opens no tar: a missing one is noticed when it is read."""
        _ = self._rule
        for url in refuse_repeats(self._patterns()):
            yield Partition(address_id(url), url)

    def files(self) -> list[FileVersion]:
        """The tars, and the indexes that name some of them."""
        indexes = [url for url in self._params.urls if url.endswith(".json")]
        tars = refuse_repeats(self._patterns())
        return storage.versions_of(itertools.chain(self._params.named_files, indexes, tars))

    def read(self, partition: Partition) -> Iterator[RawSample]:
        """Raises InfinegError, after all readable samples, if the tar is broken."""
        return self.read_from(partition, 0)

    def read_from(self, partition: Partition, start: int) -> Iterator[RawSample]:
        """Of earlier samples only headers are read, if the tar can seek."""
        return self._read(partition, range(start, sys.maxsize))

    def read_at(self, partition: Partition, ordinals: Sequence[int]) -> Iterator[RawSample]:
        """Of other samples only headers are read, if the tar can seek."""
        return itertools.islice(self._read(partition, frozenset(ordinals)), len(ordinals))

    def _read(self, partition: Partition, wanted: Container[int]) -> Iterator[RawSample]:
        class_field, url = self._params.class_field, partition.locator
        rule = replace(self._rule, where=f"{url}: {class_field}")
        reader = TarReader(
            url,
            wanted=wanted,
            image_fields=self._params.image_fields,
            text_fields=["json", *([class_field] if class_field else [])],
            label_field=class_field and member_of(class_field),
            is_offered=self._counting(url, rule) if rule.leaves_some_out else None,
            allow_private=self._is_trusted(url),
        )
        return (self._sample(url, sample, rule) for sample in reader.read())

    def estimate_samples(self, partition: Partition, mean_bytes: float) -> float | None:
        if self._params.target_policy == "only" or not self._is_trusted(partition.locator):
            return None
        return estimate_members(storage.size_of(partition.locator), mean_bytes)

    def _sample(self, url: str, sample: TarSample, rule: LabelRule) -> RawSample:
        facts = rule.facts(self._label(url, sample.members))
        description = described(sample.members)
        author, terms = description.get("author"), description.get("license")
        return RawSample(
            uri=sample.uri,
            image=sample.image,
            label=facts.label,
            label_state=facts.label_state,
            class_name=facts.class_name,
            # Several images of one sample must not get onto both sides of a split.
            group=f"{url}#{sample.key}" if sample.has_siblings else None,
            license=terms if isinstance(terms, str) else None,
            author=author if isinstance(author, str) else None,
        )

    def _is_trusted(self, url: str) -> bool:
        """Whether the config names its host; a list of tars may name any other."""
        named = set(map(_host, self._params.urls))
        return self._params.allow_private or _host(url) in named

    def _patterns(self) -> Iterator[str]:
        for url in self._params.urls:
            if url.endswith(".json"):
                yield from read_shard_index(url)
            else:
                yield url

    def declares_labels(self) -> bool:
        return self._params.class_field is not None

    def check_labels(self, seen: SeenLabels) -> None:
        place = f"`params.class_field` ({self._params.class_field})"
        declared(self._params, self._rule, place).check(seen)

    def _label(self, url: str, members: Sequence[Member]) -> object:
        field = self._params.class_field
        return None if field is None else label_of(url, members, field)

    def _counting(self, url: str, rule: LabelRule) -> Callable[[Sequence[Member]], bool]:
        """`is_offered` for one tar; it is asked more than once about the members of a key."""
        last_key: str | None = None

        def is_offered(members: Sequence[Member]) -> bool:
            nonlocal last_key
            label = self._label(url, members)
            if rule.is_offered(label):
                return True
            if members[0].key != last_key:
                last_key = members[0].key
                rule.count(label, self.left_out)
            return False

        return is_offered

    @functools.cached_property
    def _rule(self) -> LabelRule:
        return label_rule(
            self._params,
            is_labelled=self._params.class_field is not None,
            hint="give `params.class_field`, e.g. cls",
            where="",
        )


def _host(url: str) -> str:
    """`//HOST:PORT` of a URL; "" of a path."""
    return "/".join(url.split("/")[1:3]) if "://" in url else ""


def toy(directory: Path) -> Params:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "toy-00000.tar"
    with tarfile.open(path, "w") as archive:
        for number, jpeg in enumerate(toy_jpegs()):
            member = tarfile.TarInfo(f"{number:09d}.jpg")
            member.size = len(jpeg)
            archive.addfile(member, io.BytesIO(jpeg))
    return Params(urls=(str(directory / "toy-{00000..00000}.tar"),))
