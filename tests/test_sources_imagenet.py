import io
import logging
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from corpus import encode, quadrants, write_tar

from pipeline.errors import ConfigError
from pipeline.formats import tars
from pipeline.images import Decoded, decode_image
from pipeline.records import ImageSettings, RawSample
from pipeline.sources import open_source
from pipeline.sources.imagenet import Params, Source

TABBY, TIGER, DOG, FLAMINGO, ABACUS = (
    "n02123045",
    "n02129604",
    "n02099601",
    "n02007558",
    "n02666196",
)
CLASSES = (TABBY, TIGER, DOG, FLAMINGO, ABACUS)
JPEG = encode(quadrants())


def read_all(params: Params) -> list[RawSample]:
    source = Source(params)
    return [sample for partition in source.partitions() for sample in source.read(partition)]


def class_names(samples: list[RawSample]) -> list[str]:
    return sorted(str(sample.class_name) for sample in samples)


def write_folders(root: Path, wnids: tuple[str, ...] = CLASSES) -> None:
    for wnid in wnids:
        (root / wnid).mkdir(parents=True)
        (root / wnid / f"{wnid}_1.JPEG").write_bytes(JPEG)


def val_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}"


def devkit_files() -> dict[str, bytes]:
    """Ids 1 to 5 in another order than the wnids', and answers 5, 4, 3, 2, 1."""
    synsets = np.array(
        [
            (number, wnid, "words", "gloss", 0, 0, 0, 100)
            for number, wnid in enumerate((FLAMINGO, ABACUS, TABBY, DOG, TIGER), start=1)
        ],
        dtype=[(name, object) for name in (
            "ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children",
            "wordnet_height", "num_train_images",
        )],
    )  # fmt: skip
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": synsets.reshape(-1, 1)})
    truth = b"5\n4\n3\n2\n1\n"
    return {"meta.mat": meta.getvalue(), "ILSVRC2012_validation_ground_truth.txt": truth}


# Classes of validation images 1 to 5 in every answer file below.
ANSWERS = (TIGER, DOG, TABBY, ABACUS, FLAMINGO)


def write_answers(root: Path, kind: str) -> None:
    names = [val_name(number) for number in range(1, 6)]
    if kind == "kaggle":
        lines = [f"{n},{w} 1 2 3 4 {w} 5 6 7 8 \n" for n, w in zip(names, ANSWERS, strict=True)]
        header = "ImageId,PredictionString\n"
        (root / "LOC_val_solution.csv").write_text(header + "".join(reversed(lines)))
    elif kind == "caffe":
        order = sorted(CLASSES)
        lines = [f"{n}.JPEG {order.index(w)}\n" for n, w in zip(names, ANSWERS, strict=True)]
        (root / "val.txt").write_text("".join(lines))
        (root / "synset_words.txt").write_text("".join(f"{w} some, words\n" for w in order))
    elif kind == "devkit":
        data = root / "ILSVRC2012_devkit_t12" / "data"
        data.mkdir(parents=True)
        for name, content in devkit_files().items():
            (data / name).write_bytes(content)
    else:
        files = devkit_files().items()
        members = [(f"ILSVRC2012_devkit_t12/data/{name}", content) for name, content in files]
        write_tar(root / "ILSVRC2012_devkit_t12.tar.gz", members, "w:gz")


@pytest.mark.parametrize("inner", ["train", ".", "ILSVRC/Data/CLS-LOC/train"])
def test_training_folders_are_found(tmp_path: Path, inner: str) -> None:
    write_folders(tmp_path / inner)
    assert class_names(read_all(Params(path=str(tmp_path)))) == sorted(CLASSES[1:])


def test_tar_of_tars_is_read_a_class_a_partition(tmp_path: Path) -> None:
    inner = {}
    for wnid in CLASSES:
        path = write_tar(tmp_path / "inner", [(f"{wnid}_{n}.JPEG", JPEG) for n in range(3)])
        inner[f"{wnid}.tar"] = path.read_bytes()
    tar = write_tar(tmp_path / "ILSVRC2012_img_train.tar", inner.items())

    source = Source(Params(path=str(tmp_path)))
    partitions = list(source.partitions())
    samples = [sample for partition in partitions for sample in source.read(partition)]

    assert len(partitions) == 4
    assert class_names(samples) == sorted(CLASSES[1:] * 3)
    assert all(sample.image == JPEG for sample in samples)
    uris = {sample.uri for sample in samples}
    assert len(uris) == 12
    assert f"{tar}#{DOG}.tar#{DOG}_2.JPEG" in uris
    assert read_all(Params(path=str(tar))) == samples, "the tar itself may be the path"


def test_listing_a_tar_reads_headers_only() -> None:
    class CountingFile(io.BytesIO):
        num_read = 0

        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            self.num_read += len(data)
            return data

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(10):
            member = tarfile.TarInfo(f"{number}.tar")
            member.size = 100_000
            archive.addfile(member, io.BytesIO(bytes(100_000)))
    file = CountingFile(buffer.getvalue())
    assert [name for name, _, _ in tars.list_members(file, "uri")] == [
        f"{n}.tar" for n in range(10)
    ]
    assert file.num_read < 12 * 600


@pytest.mark.parametrize("answers", ["kaggle", "devkit", "devkit_tar", "caffe"])
@pytest.mark.parametrize("is_tar", [False, True])
def test_validation_classes_come_from_any_answer_file(
    tmp_path: Path, answers: str, is_tar: bool
) -> None:
    write_answers(tmp_path, answers)
    images = [(f"{val_name(n)}.JPEG", encode(quadrants(), quality=60 + n)) for n in range(1, 6)]
    if is_tar:
        write_tar(tmp_path / "ILSVRC2012_img_val.tar", images)
    else:
        folder = tmp_path / ("ILSVRC/Data/CLS-LOC/val" if answers == "kaggle" else "val")
        folder.mkdir(parents=True)
        for name, image in images:
            (folder / name).write_bytes(image)
    samples = read_all(Params(path=str(tmp_path), split="val"))
    found = {sample.uri[-13:-5]: (sample.class_name, sample.image) for sample in samples}
    expected = {
        f"{number:08d}": (wnid, image)
        for number, (wnid, (_, image)) in enumerate(zip(ANSWERS, images, strict=True), start=1)
        if wnid != TABBY
    }
    assert found == expected


def test_flat_images_without_answers_are_an_error_that_names_the_files(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / f"{val_name(1)}.JPEG").write_bytes(JPEG)
    source = Source(Params(path=str(tmp_path), split="val"))
    with pytest.raises(ConfigError, match=r"LOC_val_solution\.csv, ILSVRC2012_devkit_t12\.tar\.gz"):
        list(source.partitions())


@pytest.mark.parametrize(
    ("wnid", "label_state", "stratum"),
    [
        (TIGER, "verified_absent", "near"),
        ("n01323068", "verified_absent", "near"),  # tiger cub
        (DOG, "verified_absent", "mid"),
        ("n02135220", "verified_absent", "mid"),  # civet
        ("n02508021", "verified_absent", "mid"),  # raccoon
        (FLAMINGO, "verified_absent", "far"),
        (ABACUS, "unknown", "far"),
        ("n04399382", "unknown", "far"),  # teddy
        ("n02075296", "unknown", None),  # carnivore
        ("n01318894", "unknown", None),  # pet
    ],
)
def test_class_says_whether_a_cat_is_absent_and_how_near_it_is(
    tmp_path: Path, wnid: str, label_state: str, stratum: str | None
) -> None:
    write_folders(tmp_path, (wnid,))
    [sample] = read_all(Params(path=str(tmp_path)))
    assert (sample.label, sample.label_state, sample.stratum) == ("", label_state, stratum)


def test_cats_are_positives_only_when_asked_for_and_mere_felines_never(tmp_path: Path) -> None:
    write_folders(tmp_path, (TABBY, "n02123478", "n02120997", "n02121620", DOG))
    assert class_names(read_all(Params(path=str(tmp_path)))) == [DOG]
    samples = read_all(Params(path=str(tmp_path), target_policy="positive"))
    facts = {(s.class_name, s.label, s.label_state, s.stratum) for s in samples}
    assert facts == {
        (TABBY, "cat", "verified_present", None),
        ("n02123478", "cat", "verified_present", None),
        (DOG, "", "verified_absent", "mid"),
    }


def test_another_target_needs_its_wnids_and_claims_no_absence(tmp_path: Path) -> None:
    write_folders(tmp_path)
    with pytest.raises(ConfigError, match=r"'dog' is none of cat; give `params\.target_wnids`"):
        open_source("imagenet", {"path": str(tmp_path), "target": "dog"})
    params = Params(path=str(tmp_path), target="dog", target_wnids=(DOG,), near_wnids=(TIGER,))
    found = {s.class_name: (s.label_state, s.stratum) for s in read_all(params)}
    assert found.pop(TIGER) == ("verified_absent", "near")
    assert found == dict.fromkeys((TABBY, FLAMINGO, ABACUS), ("unknown", None))


def test_folders_of_no_wnid_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_folders(tmp_path)
    shutil.copytree(tmp_path / DOG, tmp_path / "thumbnails")
    with caplog.at_level(logging.WARNING):
        assert len(read_all(Params(path=str(tmp_path)))) == 4
    assert "1 files" in caplog.text


def test_png_named_jpeg_and_cmyk_decode(tmp_path: Path) -> None:
    write_folders(tmp_path, (DOG,))
    (tmp_path / DOG / "1.JPEG").write_bytes(encode(quadrants(), "PNG"))
    (tmp_path / DOG / "2.JPEG").write_bytes(encode(quadrants().convert("CMYK")))
    samples = read_all(Params(path=str(tmp_path)))
    assert len(samples) == 3
    for sample in samples:
        found = decode_image(sample.image, rotation=0, settings=ImageSettings(image_size=256))
        assert isinstance(found, Decoded)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"path": "missing"}, "missing: no such folder; wanted one with ILSVRC2012_img_train.tar"),
        ({"path": "missing.tar"}, "missing.tar: no such file; check `params.path`"),
        ({"path": ".", "layout": "train_tar", "split": "val"}, "train_tar has no split val"),
        ({"path": "empty"}, "empty: no image of a class on offer"),
    ],
)
def test_wrong_place_is_an_error_that_says_what_was_wanted(
    tmp_path: Path, params: dict[str, str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_all(Params(**{**params, "path": str(tmp_path / params["path"])}))  # type: ignore[arg-type]
