"""The class of each ILSVRC-2012 validation image, from any of the files that list them."""

import csv
import gzip
import io
import tarfile
import zlib
from collections.abc import Sequence

import scipy.io

from pipeline import storage
from pipeline.errors import ConfigError, InfinegError
from pipeline.sources.kinds.imagenet.classes import IMAGENET_1K, read_synsets
from pipeline.sources.readers.text import decode_text
from pipeline.storage import FileVersion

_SOLUTION = "LOC_val_solution.csv"  # Kaggle CLS-LOC
_DEVKIT = "ILSVRC2012_devkit_t12"
_META, _TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
_CAFFE = "val.txt"
# One class per line in order of wnid, which stands before the first space.
_CLASS_LISTS = ("LOC_synset_mapping.txt", "synset_words.txt", "synsets.txt")

_NOT_AS_WANTED = (
    ValueError, KeyError, IndexError, TypeError, AttributeError,
    tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, FileNotFoundError,
    scipy.io.matlab.MatReadError,
)  # fmt: skip


def read_answers(directory: str) -> dict[str, str]:
    """File name without suffix -> wnid; raises ConfigError if there is no known file."""
    for name, read in (
        (_SOLUTION, _read_solution),
        (f"{_DEVKIT}.tar.gz", _read_packed_devkit),
        (f"{_DEVKIT}/{_META}", _read_devkit),
        (_CAFFE, _read_caffe),
    ):
        if storage.exists(storage.join(directory, name)):
            try:
                return read(directory)
            except _NOT_AS_WANTED as error:
                raise InfinegError(
                    f"{storage.join(directory, name)}: not in ImageNet's or Kaggle's format: "
                    f"{type(error).__name__}: {error}"
                ) from None
    raise ConfigError(
        f"{directory}: validation images without class folders, and no file of their classes; "
        f"expected one of {_SOLUTION}, {_DEVKIT}.tar.gz, {_DEVKIT}/, {_CAFFE}"
    )


def find_answers(directory: str) -> list[FileVersion]:
    """Versions of the files from which `read_answers` may take the classes."""
    devkit = (f"{_DEVKIT}.tar.gz", f"{_DEVKIT}/{_META}", f"{_DEVKIT}/{_TRUTH}")
    names = (_SOLUTION, *devkit, _CAFFE, *_CLASS_LISTS)
    return storage.versions_of(storage.join(directory, name) for name in names)


def _read_solution(directory: str) -> dict[str, str]:
    """Columns ImageId and PredictionString, "wnid x1 y1 x2 y2" one or more times."""
    rows = csv.DictReader(io.StringIO(_read_text(directory, _SOLUTION)))
    return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}


def _read_packed_devkit(directory: str) -> dict[str, str]:
    archive = _read(directory, f"{_DEVKIT}.tar.gz")
    with tarfile.open(fileobj=io.BytesIO(archive)) as devkit:
        files = [devkit.extractfile(f"{_DEVKIT}/{name}") for name in (_META, _TRUTH)]
        meta, truth = (file.read() for file in files if file is not None)
    return _parse_devkit(meta, truth)


def _read_devkit(directory: str) -> dict[str, str]:
    meta, truth = (_read(directory, f"{_DEVKIT}/{name}") for name in (_META, _TRUTH))
    return _parse_devkit(meta, truth)


def _parse_devkit(meta: bytes, truth: bytes) -> dict[str, str]:
    """Line i of the truth is the ILSVRC2012_ID of image i: 1 to 1000, not in order of wnid.

    After 1000 the ids continue with synsets that have children and no images.
    """
    synsets = scipy.io.loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    wnid_of = dict(zip(map(int, synsets["ILSVRC2012_ID"]), map(str, synsets["WNID"]), strict=True))
    return {
        f"ILSVRC2012_val_{number:08d}": wnid_of[int(line)]
        for number, line in enumerate(truth.split(), start=1)
    }


def _read_caffe(directory: str) -> dict[str, str]:
    """Lines of file name and index, 0 to 999, among the sorted wnids."""
    wnids = dict(enumerate(_read_class_list(directory)))  # -1, as in test.txt, is none of them
    lines = (line.split() for line in _read_text(directory, _CAFFE).splitlines())
    return {line[0].rpartition(".")[0]: wnids[int(line[1])] for line in lines if line}


def _read_class_list(directory: str) -> Sequence[str]:
    for name in _CLASS_LISTS:
        if storage.exists(storage.join(directory, name)):
            text = _read_text(directory, name)
            return sorted(line.split()[0] for line in text.splitlines() if line.strip())
    return read_synsets(IMAGENET_1K)


def _read_text(directory: str, name: str) -> str:
    return decode_text(_read(directory, name), storage.join(directory, name))


def _read(directory: str, name: str) -> bytes:
    return storage.read_bytes(storage.join(directory, name))
