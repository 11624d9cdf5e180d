"""Where the images of an ImageNet copy lie: in folders, in one tar, or in a tar of tars."""

import logging
import re
from collections.abc import Iterator
from typing import Any, Literal, Protocol

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.formats.imagenet_answers import read_answers
from pipeline.formats.tars import list_members, read_members
from pipeline.keys import short_hash

_log = logging.getLogger(__name__)

Layout = Literal["auto", "folder", "kaggle", "train_tar", "val_tar"]
Split = Literal["train", "val"]
Address = list[Any]  # JSON

_WNID = re.compile(r"n\d{8}")
_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
_KAGGLE = "ILSVRC/Data/CLS-LOC"


class Images(Protocol):
    """Addresses with their classes, and what lies at an address."""

    @property
    def images_per_address(self) -> int | None:
        """None where only reading would tell."""

    def addresses(self) -> Iterator[tuple[str, Address]]:
        """wnid and address, in an order that never changes; opens no image."""

    def read(self, address: Address) -> Iterator[tuple[str, bytes]]:
        """uri and encoded bytes, one or more."""


class FolderImages:
    """`<wnid>/<file>` below `root`, or flat files whose classes `answers_dir` tells."""

    images_per_address = 1

    def __init__(self, root: str, answers_dir: str) -> None:
        self._root = root
        self._answers_dir = answers_dir

    def addresses(self) -> Iterator[tuple[str, Address]]:
        names = storage.list_files(self._root, _SUFFIXES)
        answers = {}
        if names and not any("/" in name for name in names):
            answers = read_answers(self._answers_dir)
        num_unknown = 0
        for name in names:
            folder = name.partition("/")[0]
            wnid = folder if _WNID.fullmatch(folder) else answers.get(_stem(name))
            if wnid is None:
                num_unknown += 1
            else:
                yield wnid, [name]
        if num_unknown:
            _log.warning("%s: %d files are in no wnid's folder, ignored", self._root, num_unknown)

    def read(self, address: Address) -> Iterator[tuple[str, bytes]]:
        uri = storage.join(self._root, address[0])
        yield uri, storage.read_bytes(uri)


class ValTarImages:
    """ILSVRC2012_img_val.tar, with its answers beside it."""

    images_per_address = 1

    def __init__(self, tar: str) -> None:
        self._tar = tar

    def addresses(self) -> Iterator[tuple[str, Address]]:
        answers = read_answers(self._tar.rpartition("/")[0] or ".")
        with storage.open_read(self._tar) as file:
            for name, offset, size in list_members(file, self._tar):
                wnid = answers.get(_stem(name))
                if wnid is None:
                    raise ConfigError(f"{self._tar}#{name}: no file beside it tells its class")
                yield wnid, [name, offset, size]

    def read(self, address: Address) -> Iterator[tuple[str, bytes]]:
        name, offset, size = address
        yield f"{self._tar}#{name}", storage.read_range(self._tar, offset, size)


class TrainTarImages:
    """ILSVRC2012_img_train.tar: a tar of a thousand `<wnid>.tar`; an address is one of them."""

    images_per_address = None

    def __init__(self, tar: str) -> None:
        self._tar = tar

    def addresses(self) -> Iterator[tuple[str, Address]]:
        with storage.open_read(self._tar) as file:
            members = list(list_members(file, self._tar))
        # In hashed order: by wnid the first hundred classes would all be fish and birds.
        for name, offset, _ in sorted(members, key=lambda member: short_hash(member[0])):
            yield _stem(name), [name, offset]

    def read(self, address: Address) -> Iterator[tuple[str, bytes]]:
        name, offset = address
        uri = f"{self._tar}#{name}"
        with storage.open_read(self._tar) as file:
            file.seek(offset)
            for image, content in read_members(file, uri, lambda _: True):
                yield f"{uri}#{image}", content or b""


def find_images(path: str, *, layout: Layout, split: Split) -> Images:
    """The layout named, or the one that `path` shows; raises ConfigError where there is none."""
    if layout == "auto":
        layout = _detect(path, split)
    if layout == "kaggle":
        return FolderImages(storage.join(path, _KAGGLE, split), path)
    if layout == "folder":
        inner = storage.join(path, split)
        return FolderImages(inner if storage.exists(inner) else path, path)
    if not layout.startswith(split):
        raise ConfigError(f"`params.layout` {layout} has no split {split}; check `params.split`")
    tar = path if path.endswith(".tar") else storage.join(path, f"ILSVRC2012_img_{split}.tar")
    if not storage.exists(tar):
        raise ConfigError(f"{tar}: no such file; check `params.path`")
    return TrainTarImages(tar) if split == "train" else ValTarImages(tar)


def _detect(path: str, split: Split) -> Layout:
    tar = f"ILSVRC2012_img_{split}.tar"
    if path.endswith(".tar") or storage.exists(storage.join(path, tar)):
        return "train_tar" if split == "train" else "val_tar"
    if storage.exists(storage.join(path, _KAGGLE)):
        return "kaggle"
    if storage.exists(path):
        return "folder"
    raise ConfigError(
        f"{path}: no such folder; wanted one with {tar}, {_KAGGLE}/, {split}/<wnid>/ or <wnid>/; "
        "check `params.path`"
    )


def _stem(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0]
