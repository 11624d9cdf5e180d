"""Layouts of ImageNet copies: folders, one tar, a tar of tars, tables."""

import abc
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import IO, Literal

from pipeline import storage
from pipeline.dataset.keys import short_hash
from pipeline.errors import ConfigError, InfinegError
from pipeline.sources.kinds.imagenet.answers import find_answers, read_answers
from pipeline.sources.kinds.imagenet.classes import is_wnid
from pipeline.sources.kinds.imagenet.tables import (
    Address,
    FoundImage,
    Images,
    ParquetImages,
    WdsImages,
)
from pipeline.sources.readers.compression import part_of
from pipeline.sources.readers.files import read_image
from pipeline.sources.readers.folders import image_files, list_images, tell_once
from pipeline.sources.readers.tars import estimate_members, list_members, read_members
from pipeline.sources.readers.text import shown
from pipeline.storage import FileVersion

Layout = Literal["auto", "folder", "kaggle", "train_tar", "val_tar", "parquet", "wds"]
Split = Literal["train", "val"]

_KAGGLE = "ILSVRC/Data/CLS-LOC"
# Names of each split. A copy without splits is all train.
_SPLIT_NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("validation", "val")}
_SPLIT_IN_TAR = re.compile(r"(?:^|[-_])(train|validation|val|test)[-_.]")


class _SingleImages(abc.ABC):
    """A layout whose addresses are single images of known class."""

    images_per_address = 1

    def estimate_images(self, address: Address, mean_bytes: float) -> float | None:
        del address, mean_bytes
        return 1

    def read(
        self, address: Address, *, is_offered: Callable[[str | None], bool], start: int
    ) -> Iterator[FoundImage]:
        del is_offered, start  # the caller has checked the class
        yield self._image(address)

    @abc.abstractmethod
    def _image(self, address: Address) -> FoundImage: ...


class FolderImages(_SingleImages):
    """`<wnid>/<file>` below `root`, or flat files with their classes in `answers_dir`."""

    def __init__(self, root: str, answers_dir: str) -> None:
        self._root = root
        self._answers_dir = answers_dir

    def addresses(self) -> Iterator[Address]:
        names = list_images(self._root)
        answers = {}
        if not any("/" in name for name in names):
            answers = read_answers(self._answers_dir)
        without_label = []
        for name in names:
            folder = name.partition("/")[0]
            wnid = folder if is_wnid(folder) else answers.get(_stem(name))
            if wnid is None:
                without_label.append(name)
            else:
                yield [wnid, name]
        without_image = answers.keys() - map(_stem, names)
        _tell_unmatched(self._root, len(names), without_label, len(answers), without_image)

    def files(self) -> list[FileVersion]:
        images = image_files(self._root)
        is_flat = not any(is_wnid(_folder(file.uri, self._root)) for file in images)
        return images + (find_answers(self._answers_dir) if is_flat else [])

    def _image(self, address: Address) -> FoundImage:
        wnid, name = address
        uri = storage.join(self._root, name)
        return FoundImage(wnid, uri, read_image(uri))


def _tell_unmatched(
    where: str,
    num_images: int,
    without_label: Sequence[str],
    num_answers: int,
    without_image: Collection[str],
) -> None:
    """Warns of images without a class and of answers without an image.

    Raises ConfigError if no image has a class.
    """
    told = []
    if without_label:
        told.append(
            f"of {num_images:,} files, {len(without_label):,} files without a class (in no wnid's "
            f"folder, without an answer) are ignored{_such_as(without_label)}"
        )
    if without_image:
        told.append(
            f"of {num_answers:,} answers, {len(without_image):,} have no file"
            f"{_such_as(without_image)}"
        )
    counts = f"{where}: {'; '.join(told)}"
    if without_label and len(without_label) == num_images:
        raise ConfigError(f"{counts}. Check `params.path` and `params.split`")
    if told:
        tell_once(counts)


def _such_as(names: Collection[str]) -> str:
    some = ", ".join(map(shown, sorted(names)[:3]))
    return f", such as {some}" if some else ""


class ValTarImages(_SingleImages):
    """ILSVRC2012_img_val.tar, with its answers beside it."""

    def __init__(self, tar: str) -> None:
        self._tar = tar

    def addresses(self) -> Iterator[Address]:
        answers = read_answers(self._tar.rpartition("/")[0] or ".")
        without_image = set(answers)
        for name, offset, size in _list_tar(self._tar):
            wnid = answers.get(_stem(name))
            if wnid is None:
                raise ConfigError(f"{self._tar}#{name}: no file beside it gives its class")
            without_image.discard(_stem(name))
            yield [wnid, name, offset, size]
        num_images = len(answers) - len(without_image)
        _tell_unmatched(self._tar, num_images, [], len(answers), without_image)

    def files(self) -> list[FileVersion]:
        folder = self._tar.rpartition("/")[0] or "."
        return storage.versions_of([self._tar]) + find_answers(folder)

    def _image(self, address: Address) -> FoundImage:
        wnid, name, offset, size = address
        image = storage.read_range(self._tar, offset, size)
        return FoundImage(wnid, f"{self._tar}#{name}", image)


class TrainTarImages:
    """ILSVRC2012_img_train.tar: a tar of a thousand `<wnid>.tar`; an address is one of them."""

    images_per_address = None

    def __init__(self, tar: str) -> None:
        self._tar = tar

    def addresses(self) -> Iterator[Address]:
        members = [member for member in _list_tar(self._tar) if is_wnid(_stem(member[0]))]
        # In hashed order: by wnid, the first hundred classes are all fish and birds.
        for name, offset, size in sorted(members, key=lambda member: short_hash(member[0])):
            yield [_stem(name), name, offset, size]

    def files(self) -> list[FileVersion]:
        return storage.versions_of([self._tar])

    def estimate_images(self, address: Address, mean_bytes: float) -> float | None:
        return estimate_members(address[3], mean_bytes)

    def read(
        self, address: Address, *, is_offered: Callable[[str | None], bool], start: int
    ) -> Iterator[FoundImage]:
        del is_offered  # one class, checked by the caller
        wnid, name, offset, size = address
        uri = f"{self._tar}#{name}"
        number = itertools.count()
        with storage.open_read(self._tar) as file:
            _seek(file, offset, self._tar)
            inner = part_of(file, offset, size)
            for member in read_members(inner, uri, lambda _: next(number) >= start):
                if member.content is not None:
                    yield FoundImage(wnid, f"{uri}#{member.name}", member.content)


def find_images(
    path: str, *, layout: Layout, split: Split, synsets: str | None, rows_per_address: int
) -> Images:
    """Images in a layout other than "auto"; raises ConfigError if there are none."""
    if layout == "kaggle":
        return FolderImages(storage.join(path, _KAGGLE, split), path)
    if layout == "folder":
        inner = (storage.join(path, name) for name in _SPLIT_NAMES[split])
        return FolderImages(next(filter(storage.exists, inner), path), path)
    if layout == "parquet":
        files = _wanted(_parquet_files(path, split), path, f"{split}-00000-of-00001.parquet")
        return ParquetImages(files, synsets=synsets, rows_per_address=rows_per_address)
    if layout == "wds":
        tars = _wanted(_wds_tars(path, "", split), path, f"imagenet1k-{split}-0000.tar")
        return WdsImages(tars, synsets=synsets)
    if not layout.startswith(split):
        raise ConfigError(f"`params.layout` {layout} has no split {split}; check `params.split`")
    tar = path if path.endswith(".tar") else storage.join(path, f"ILSVRC2012_img_{split}.tar")
    if not storage.exists(tar):
        raise ConfigError(f"{tar}: no such file; check `params.path`")
    return TrainTarImages(tar) if split == "train" else ValTarImages(tar)


def detect_layout(path: str, split: Split) -> Layout:
    """The layout at `path`, from a few names; does not list the images."""
    tar = f"ILSVRC2012_img_{split}.tar"
    if path.endswith(".tar") or storage.exists(storage.join(path, tar)):
        return "train_tar" if split == "train" else "val_tar"
    if storage.exists(storage.join(path, _KAGGLE)):
        return "kaggle"
    if _parquet_files(path, split):
        return "parquet"
    if _wds_tars(path, "imagenet", split):
        return "wds"
    if storage.exists(path):
        return "folder"
    raise ConfigError(
        f"{path}: no such folder; expected one with {tar}, {_KAGGLE}/, {split}/<wnid>/, <wnid>/, "
        f"data/{split}-*.parquet or imagenet*-{split}-*.tar; check `params.path`"
    )


def _parquet_files(path: str, split: Split) -> list[str]:
    for folder in (storage.join(path, "data"), path):
        for name in _SPLIT_NAMES[split]:
            found = storage.list_prefix(storage.join(folder, f"{name}-"))
            if files := [uri for uri in found if uri.endswith(".parquet")]:
                return files
    return []


def _wds_tars(path: str, prefix: str, split: Split) -> list[str]:
    found = storage.list_prefix(storage.join(path, prefix))
    names = {uri: uri.rpartition("/")[2] for uri in found}
    tars = [uri for uri in found if uri.endswith(".tar") and not storage.is_hidden(names[uri])]
    of_split = {}
    for uri in tars:
        named = _SPLIT_IN_TAR.search(names[uri])
        of_split[uri] = named[1] if named else "train"
    return [uri for uri in tars if of_split[uri] in _SPLIT_NAMES[split]]


def _wanted(files: Sequence[str], path: str, example: str) -> Sequence[str]:
    if not files:
        raise ConfigError(
            f"{path}: no file such as {example}; check `params.path`, `params.layout` and "
            "`params.split`"
        )
    return files


def _list_tar(tar: str) -> list[tuple[str, int, int]]:
    with storage.open_read(tar) as file:
        _seek(file, 0, tar)
        return list(list_members(file, tar))


def _seek(file: IO[bytes], offset: int, uri: str) -> None:
    try:
        file.seek(offset)
    except (OSError, ValueError):
        raise InfinegError(
            f"{uri}: the server sends only whole files, but this one is read in pieces; copy it to "
            "a disk or an object store"
        ) from None


def _folder(uri: str, root: str) -> str:
    """The first folder below `root`, or the name of a file that lies in none."""
    return uri.removeprefix(f"{root.rstrip('/')}/").partition("/")[0]


def _stem(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0]
