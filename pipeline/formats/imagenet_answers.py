"""Which class each ILSVRC-2012 validation image is, from any of the files that say so."""

import csv
import io
import tarfile

import scipy.io

from pipeline import storage
from pipeline.errors import ConfigError

_SOLUTION = "LOC_val_solution.csv"  # Kaggle CLS-LOC
_DEVKIT = "ILSVRC2012_devkit_t12"
_META, _TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
_CAFFE = "val.txt"
# One class a line in order of wnid, the wnid before the first space.
_CLASS_LISTS = ("LOC_synset_mapping.txt", "synset_words.txt", "synsets.txt")


def read_answers(directory: str) -> dict[str, str]:
    """File name without suffix -> wnid; raises ConfigError where no known file lies there."""
    at = storage.join
    if storage.exists(at(directory, _SOLUTION)):
        return _parse_solution(storage.read_bytes(at(directory, _SOLUTION)).decode())
    if storage.exists(at(directory, f"{_DEVKIT}.tar.gz")):
        return _parse_devkit(
            *_unpack_devkit(storage.read_bytes(at(directory, f"{_DEVKIT}.tar.gz")))
        )
    if storage.exists(at(directory, _DEVKIT, _META)):
        meta, truth = (storage.read_bytes(at(directory, _DEVKIT, n)) for n in (_META, _TRUTH))
        return _parse_devkit(meta, truth)
    if storage.exists(at(directory, _CAFFE)):
        return _parse_caffe(
            storage.read_bytes(at(directory, _CAFFE)).decode(), _read_class_list(directory)
        )
    raise ConfigError(
        f"{directory}: validation images lie flat and nothing says their classes; "
        f"wanted one of {_SOLUTION}, {_DEVKIT}.tar.gz, {_DEVKIT}/, {_CAFFE}"
    )


def _parse_solution(text: str) -> dict[str, str]:
    """Columns ImageId and PredictionString, "wnid x1 y1 x2 y2" once or more."""
    rows = csv.DictReader(io.StringIO(text))
    return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}


def _unpack_devkit(archive: bytes) -> tuple[bytes, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as devkit:
        files = [devkit.extractfile(f"{_DEVKIT}/{name}") for name in (_META, _TRUTH)]
        meta, truth = (file.read() for file in files if file is not None)
    return meta, truth


def _parse_devkit(meta: bytes, truth: bytes) -> dict[str, str]:
    """Line i of the truth is the ILSVRC2012_ID of image i: 1 to 1000, not in order of wnid."""
    synsets = scipy.io.loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    wnid_of = dict(zip(map(int, synsets["ILSVRC2012_ID"]), map(str, synsets["WNID"]), strict=True))
    return {
        f"ILSVRC2012_val_{number:08d}": wnid_of[int(line)]
        for number, line in enumerate(truth.split(), start=1)
    }


def _parse_caffe(text: str, wnids: list[str]) -> dict[str, str]:
    """Lines of file name and index, 0 to 999, among the sorted wnids."""
    lines = (line.split() for line in text.splitlines() if line.strip())
    return {name.rpartition(".")[0]: wnids[int(index)] for name, index in lines}


def _read_class_list(directory: str) -> list[str]:
    for name in _CLASS_LISTS:
        if storage.exists(storage.join(directory, name)):
            text = storage.read_bytes(storage.join(directory, name)).decode()
            return sorted(line.split()[0] for line in text.splitlines() if line.strip())
    raise ConfigError(
        f"{directory}: {_CAFFE} numbers the classes and nothing says which is which; "
        f"wanted one of {', '.join(_CLASS_LISTS)}"
    )
