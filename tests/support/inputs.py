"""Small stand-ins of public data sets, in their published formats, with drawings in them."""

import csv
import io
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets

from pipeline.dataset.seen_labels import LabelCounter
from pipeline.sources import open_source
from support.builds import first_samples, squares
from support.corpus import write_tar

CAT_WNIDS = ("n02123045", "n02123159", "n02123394", "n02123597", "n02124075")
TIGER_WNID, DOG_WNID, ABACUS_WNID = "n02129604", "n02099601", "n02666196"
CAT_MID, TIGER_MID = "/m/01yrx", "/m/07dm6"

_LABEL_HEADER = ("ImageID", "Source", "LabelName", "Confidence")
_BOX_HEADER = (
    *_LABEL_HEADER, "XMin", "XMax", "YMin", "YMax",
    "IsOccluded", "IsTruncated", "IsGroupOf", "IsDepiction", "IsInside",
)  # fmt: skip
_IDS_HEADER = (
    "ImageID", "Subset", "OriginalURL", "OriginalLandingURL", "License", "AuthorProfileURL",
    "Author", "Title", "OriginalSize", "OriginalMD5", "Thumbnail300KURL", "Rotation",
)  # fmt: skip

# As on the Hub: only the card has the number of rows.
_CARD = """---
dataset_info:
  features:
  - name: image
    dtype: image
  - name: labels
    dtype:
      class_label:
        names:
          '0': cat
          '1': dog
  splits:
  - name: train
    num_bytes: 100000
    num_examples: 80
  download_size: 100000
  dataset_size: 100000
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
---
"""


def drawings(content: str, number: int, *, seed: int = 0) -> list[bytes]:
    """JPEGs of the generator `shapes`; calls with different arguments share none."""
    params = {"content": [content], "image_size": 64, "seed": seed, "num_pictures": number}
    samples = first_samples({"kind": "shapes", "params": params}, number)
    return [sample.image for sample in samples]


def things(number: int, *, seed: int = 0) -> list[bytes]:
    """JPEGs that even an encoder with random weights does not take for cats."""
    entry = squares(num_pictures=number, seed=seed)
    return [sample.image for sample in first_samples(entry, number)]


def write_folder(folder: Path, images: Iterable[bytes]) -> None:
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        (folder / f"IMG_{number:04d}.JPG").write_bytes(image)


def write_photos(root: Path) -> None:
    """The folders of configs/photos.yaml below PHOTOS."""
    write_folder(root / "cats", drawings("cat", 40, seed=1))
    write_folder(root / "near" / "dogs", drawings("dog", 12, seed=1))
    write_folder(root / "random", things(12, seed=1))
    for wnid, images in imagenet_images(seed=2).items():
        write_folder(root / "imagenet_sample" / wnid, images)


def imagenet_images(*, seed: int) -> dict[str, list[bytes]]:
    cats = drawings("cat", 40, seed=seed)
    return {
        **{wnid: cats[n :: len(CAT_WNIDS)] for n, wnid in enumerate(CAT_WNIDS)},
        TIGER_WNID: drawings("tiger", 12, seed=seed),
        DOG_WNID: drawings("dog", 12, seed=seed),
        ABACUS_WNID: things(12, seed=seed),
    }


def write_ilsvrc_train(folder: Path) -> None:
    """ILSVRC2012_img_train.tar: a tar of tars, one per class."""
    inner = []
    for wnid, images in imagenet_images(seed=3).items():
        members = [(f"{wnid}_{number}.JPEG", image) for number, image in enumerate(images)]
        inner.append((f"{wnid}.tar", write_tar(folder / "class.tar", members).read_bytes()))
    (folder / "class.tar").unlink()
    write_tar(folder / "ILSVRC2012_img_train.tar", inner)


def write_open_images(tars: Path, labels: Path) -> None:
    """train_0.tar.gz to train_f.tar.gz, and the CSVs of V7 under their published names.

    Of the six images of a tar one is a verified cat, one a cat that a machine suspects, one a
    tiger, two are verified to show no cat, and one is unlabelled.
    """
    tars.mkdir()
    labels.mkdir()
    human: list[Sequence[object]] = [("ffffffffffffffff", "verification", CAT_MID, 1)]  # no image
    machine, ids = [], []
    cats, tigers = iter(drawings("cat", 32, seed=4)), iter(drawings("tiger", 16, seed=4))
    others = iter(things(48, seed=4))
    for digit in "0123456789abcdef":
        names = [f"{digit}{number:015x}" for number in range(6)]
        verified, suspected, tiger, absent, also_absent, _ = names
        human += [
            (verified, "verification", CAT_MID, 1),
            (tiger, "verification", TIGER_MID, 1),
            (tiger, "crowdsource-verification", CAT_MID, 0),
            (absent, "verification", CAT_MID, 0),
            (also_absent, "crowdsource-verification", "/m/0jbk", 0),
        ]
        machine.append((suspected, "machine", CAT_MID, 0.8))
        ids += [(name, "train", *["u"] * 4, 'Ada "A", L.', "t", 1, "m", "", "") for name in names]
        images = [next(cats), next(cats), next(tigers), *itertools.islice(others, 3)]
        members = [(f"train_{digit}/{n}.jpg", i) for n, i in zip(names, images, strict=True)]
        write_tar(tars / f"train_{digit}.tar.gz", members, "w:gz")
    names_of = [("LabelName", "DisplayName"), (CAT_MID, "Cat"), (TIGER_MID, "Tiger")]
    _write_csv(labels / "oidv7-class-descriptions.csv", *names_of)
    _write_csv(labels / "oidv7-train-annotations-human-imagelabels.csv", _LABEL_HEADER, *human)
    _write_csv(labels / "oidv7-train-annotations-machine-imagelabels.csv", _LABEL_HEADER, *machine)
    _write_csv(labels / "oidv6-train-annotations-bbox.csv", _BOX_HEADER)
    _write_csv(labels / "train-images-boxable-with-rotation.csv", _IDS_HEADER, *ids)


def write_cats_and_dogs(folder: Path) -> None:
    """A data set as it is on the Hub: parquet, the classes in its metadata."""
    cats, dogs = drawings("cat", 40, seed=5), drawings("dog", 40, seed=5)
    for number in range(2):
        mixed = [each for pair in zip(cats, dogs, strict=True) for each in pair][number::2]
        labels = [number] * len(mixed)
        write_hub_file(folder, mixed, labels, names=["cat", "dog"], column="labels", part=number)
    (folder / "README.md").write_text(_CARD)


def write_hub_file(
    folder: Path,
    images: Sequence[bytes],
    labels: Sequence[int],
    *,
    names: list[str],
    column: str = "label",
    part: int = 0,
) -> None:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    features = datasets.Features(
        {"image": datasets.Image(), column: datasets.ClassLabel(names=names)}
    )
    rows = {"image": [{"bytes": image, "path": None} for image in images], column: list(labels)}
    table = datasets.Dataset.from_dict(rows, features=features)
    table.to_parquet(str(folder / "data" / f"train-{part:05d}-of-00002.parquet"))


def write_crawl(folder: Path) -> None:
    """Tars as img2dataset and the Hub's cc3m-wds have them: jpg, json and txt."""
    folder.mkdir()
    for shard in range(2):
        members: list[tuple[str, bytes]] = []
        images = drawings("cat", 10, seed=6 + shard) + things(30, seed=6 + shard)
        for number, image in enumerate(images):
            key = f"{shard:04d}{number:05d}"
            described = {"key": key, "url": "https://example.org/a.jpg", "status": "success"}
            members += [
                (f"{key}.jpg", image),
                (f"{key}.json", json.dumps(described).encode()),
                (f"{key}.txt", b"a caption"),
            ]
        write_tar(folder / f"cc3m-train-{shard:04d}.tar", members)


def _write_csv(path: Path, *rows: Sequence[object]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    path.write_text(buffer.getvalue())


def check_labels(kind: str, **params: object) -> None:
    """Reads a source whole, and judges its labels as a build does."""
    source: Any = open_source(kind, params)
    counter = LabelCounter()
    for partition in source.partitions():
        for sample in source.read(partition):
            counter.add(sample.class_name, is_target=bool(sample.label))
    counter.update(source.left_out.seen())
    source.check_labels(counter.seen())
