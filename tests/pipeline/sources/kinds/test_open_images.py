import csv
import gzip
import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset.schema import RawSample
from pipeline.errors import ConfigError, InfinegError
from pipeline.sources import open_source
from pipeline.sources.kinds.open_images import Params, Source, lookups
from support.corpus import encode, quadrants, write_tar
from support.inputs import check_labels

JPEG = encode(quadrants())
ID, OTHER_ID = "000026e7ee790996", "0f3c1a5b77d0e2c4"
CAT, SIAMESE, KITTEN, TIGER, FOX = "/m/01yrx", "/m/0g_3r", "/m/0hjzp", "/m/07dm6", "/m/0306r"
CARNIVORE, MAMMAL, ANIMAL, PERSON = "/m/01lrl", "/m/04rky", "/m/0jbk", "/m/01g317"
FELIDAE, DOG, PUPPY = "/m/0307l", "/m/0bt9lr", "/m/068hy1"

LABEL_HEADER = ("ImageID", "Source", "LabelName", "Confidence")
BOX_HEADER = (
    *LABEL_HEADER, "XMin", "XMax", "YMin", "YMax",
    "IsOccluded", "IsTruncated", "IsGroupOf", "IsDepiction", "IsInside",
)  # fmt: skip
V6_BOX_HEADER = (*BOX_HEADER, *(f"XClick{n}{axis}" for axis in "XY" for n in range(1, 5)))
IDS_HEADER = (
    "ImageID", "Subset", "OriginalURL", "OriginalLandingURL", "License", "AuthorProfileURL",
    "Author", "Title", "OriginalSize", "OriginalMD5", "Thumbnail300KURL", "Rotation",
)  # fmt: skip
NAMES = [
    (CAT, "Cat"), (TIGER, "Tiger"), (DOG, "Dog"), (PUPPY, "Puppy"),
    ("/m/03hgsf0", "Lemon, lime and bitters"),
    ("/m/0449p", "Jaguar (Animal)"), ("/m/0h5wslk", "Jaguar (Automobile)"),
    ("/m/018xm", "Ball"), ("/m/0156sn", "Ball"),
]  # fmt: skip
HIERARCHY = {
    "LabelName": "/m/0bl9f",
    "Subcategory": [
        {
            "LabelName": ANIMAL,
            "Subcategory": [{"LabelName": DOG, "Subcategory": [{"LabelName": PUPPY}]}],
            "Part": [{"LabelName": "/m/0part"}],
        }
    ],
}

Row = Sequence[object]


def write_csv(path: Path, rows: Iterable[Row], header: Row = LABEL_HEADER) -> str:
    """A CSV with the quoting of the published files, gzip where its name says so."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([header, *rows] if header else rows)
    data = buffer.getvalue().encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def write_images(folder: Path, *ids: str, prefix: str = "train_0/", suffix: str = ".gz") -> str:
    members = [(f"{prefix}{image_id}.jpg", JPEG) for image_id in ids]
    mode = "w:gz" if suffix else "w"
    return str(write_tar(folder / f"train_0.tar{suffix}", members, mode))


def human(mid: str, confidence: int, source: str = "verification") -> Row:
    return ID, source, mid, confidence


def machine(mid: str, confidence: float) -> Row:
    return ID, "machine", mid, confidence


def box(mid: str, is_depiction: int = 0) -> Row:
    return ID, "xclick", mid, 1, 0.1, 0.9, 0.2, 0.8, 0, 0, -1, is_depiction, 0


def read_all(**params: object) -> list[RawSample]:
    source = Source(Params.model_validate(params))
    return [sample for partition in source.partitions() for sample in source.read(partition)]


def read_labelled(
    folder: Path,
    *,
    human_rows: Iterable[Row] = (),
    machine_rows: Iterable[Row] = (),
    box_rows: Iterable[Row] = (),
    **params: object,
) -> list[RawSample]:
    """The samples of a tar with one image, ID."""
    return read_all(
        path=write_images(folder, ID),
        human_labels=write_csv(folder / "human.csv", human_rows),
        machine_labels=write_csv(folder / "machine.csv", machine_rows),
        boxes=write_csv(folder / "boxes.csv", box_rows, BOX_HEADER),
        **{"target_policy": "positive", **params},
    )


def outcome(samples: list[RawSample]) -> str:
    """In a word, what becomes of the only image."""
    if not samples:
        return "left out"
    [sample] = samples
    assert sample.image == JPEG
    assert sample.label in ("", "cat")
    if sample.label:
        assert (sample.label_state, sample.doubt, sample.stratum) == (
            "verified_present",
            None,
            None,
        )
        return "positive"
    return sample.doubt.value if sample.doubt else sample.label_state


@pytest.fixture(params=["in_memory", "in_files"])
def _joined(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Joins as small files are, then as large ones."""
    if request.param == "in_files":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(lookups, "_MAX_BYTES_IN_MEMORY", 0)
        monkeypatch.setattr(lookups, "_FLUSH_BYTES", 1)


CONFLICT, SUSPECT = "conflicting_labels", "suspected_positive"


@pytest.mark.parametrize(
    ("human_rows", "machine_rows", "box_rows", "expected"),
    [
        ([], [], [], "unknown"),
        ([human(CAT, 1)], [], [], "positive"),
        ([human(SIAMESE, 1, "crowdsource-verification")], [], [], "positive"),
        ([human("/g/1q5yy2zkf", 1)], [], [], "positive"),  # hairless cat
        ([human(CAT, 0)], [], [], "verified_absent"),
        ([human(CARNIVORE, 0)], [], [], "verified_absent"),
        ([human(MAMMAL, 0)], [], [], "verified_absent"),
        ([human(ANIMAL, 0, "crowdsource-verification")], [], [], "verified_absent"),
        ([human(SIAMESE, 0), human(KITTEN, 0)], [], [], "unknown"),
        ([human(CARNIVORE, 1)], [], [], "unknown"),
        ([human(PERSON, 0), human(TIGER, 1)], [], [], "unknown"),
        ([human(CAT, 1), human(CAT, 0)], [], [], CONFLICT),
        ([human(CAT, 0), human(KITTEN, 1)], [], [], CONFLICT),
        ([human(CAT, 1), human(ANIMAL, 0)], [], [], CONFLICT),
        ([human(CAT, 1), human(SIAMESE, 0)], [], [], "positive"),
        ([human(SIAMESE, 1), human(SIAMESE, 0)], [], [], CONFLICT),
        ([], [machine(CAT, 0.5)], [], SUSPECT),
        ([], [machine(SIAMESE, 0.9)], [], SUSPECT),
        ([], [machine(CAT, 0.4)], [], "unknown"),
        ([], [machine(ANIMAL, 0.9), machine(TIGER, 0.9)], [], "unknown"),
        ([human(CAT, 0)], [machine(CAT, 0.9)], [], "verified_absent"),
        ([human(CAT, 1)], [machine(CAT, 0.9)], [], "positive"),
        ([human(SIAMESE, 0)], [machine(CAT, 0.9)], [], SUSPECT),
        ([], [], [box(CAT)], "positive"),
        ([], [], [box(KITTEN, -1)], "positive"),
        ([], [], [box(TIGER)], "unknown"),
        ([], [machine(CAT, 0.7)], [box(CAT)], SUSPECT),
        ([human(CAT, 0)], [], [box(CAT)], "verified_absent"),
        ([human(FELIDAE, 1)], [], [], SUSPECT),
        ([human(FELIDAE, 1), human(TIGER, 1)], [], [], "unknown"),
        ([human(FELIDAE, 1), human(CAT, 0)], [], [], "verified_absent"),
    ],
)
def test_labels_decide_in_a_fixed_order(
    tmp_path: Path,
    human_rows: list[Row],
    machine_rows: list[Row],
    box_rows: list[Row],
    expected: str,
) -> None:
    rows = {"human_rows": human_rows, "machine_rows": machine_rows, "box_rows": box_rows}
    assert outcome(read_labelled(tmp_path, **rows)) == expected
    excluded = "left out" if expected == "positive" else expected
    assert outcome(read_labelled(tmp_path, **rows, target_policy="exclude")) == excluded
    only = "positive" if expected == "positive" else "left out"
    assert outcome(read_labelled(tmp_path, **rows, target_policy="only")) == only


@pytest.mark.parametrize(
    ("depictions", "drawn", "drawn_and_verified"),
    [
        ("exclude", "left out", "left out"),
        ("positive", "positive", "positive"),
        ("ignore", "unknown", "positive"),
    ],
)
def test_drawings_are_excluded_positive_or_ignored(
    tmp_path: Path, depictions: str, drawn: str, drawn_and_verified: str
) -> None:
    def read(**rows: list[Row]) -> str:
        return outcome(read_labelled(tmp_path, **rows, depictions=depictions))

    assert read(box_rows=[box(CAT, 1), box(TIGER, 0)]) == drawn
    assert read(box_rows=[box(CAT, 1)], human_rows=[human(CAT, 1)]) == drawn_and_verified
    assert read(box_rows=[box(CAT, 1), box(KITTEN, 0)]) == "positive", "one of them is real"
    assert read(box_rows=[box(CAT, 1)], human_rows=[human(CAT, 0)]) == "verified_absent"


@pytest.mark.parametrize(
    ("present", "class_name", "stratum"),
    [
        ((ANIMAL, TIGER, FOX), TIGER, "near"),
        ((FOX, CARNIVORE), FOX, "mid"),
        ((ANIMAL, MAMMAL, CARNIVORE), CARNIVORE, None),
        ((PERSON,), None, None),
        ((CAT, SIAMESE, TIGER), SIAMESE, None),
    ],
)
def test_class_name_is_the_most_specific_verified_class(
    tmp_path: Path, present: tuple[str, ...], class_name: str | None, stratum: str | None
) -> None:
    rows = [human(mid, 1) for mid in present]
    for order in (rows, rows[::-1]):
        [sample] = read_labelled(tmp_path, human_rows=order)
        assert (sample.class_name, sample.stratum) == (class_name, stratum)


def test_excluded_images_are_logged_once_with_their_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert read_labelled(tmp_path, human_rows=[human(CAT, 1)], target_policy="exclude") == []
    [message] = [record.getMessage() for record in caplog.records]
    assert "1 images left out" in message
    assert "0 offered" in message


def test_box_file_of_v6_with_21_columns_and_one_of_v2_without_flags_are_read(
    tmp_path: Path,
) -> None:
    tar = write_images(tmp_path, ID, OTHER_ID)
    clicks = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    v6 = write_csv(tmp_path / "v6.csv", [(*box(CAT, 1), *clicks)], V6_BOX_HEADER)
    v2 = write_csv(tmp_path / "v2.csv", [(OTHER_ID, *box(CAT)[1:8])], BOX_HEADER[:8])
    assert len(V6_BOX_HEADER) == 21
    samples = read_all(path=tar, boxes=[v6, v2], target_policy="positive")
    assert [(s.uri[-20:-4], s.label) for s in samples] == [(OTHER_ID, "cat")]


@pytest.mark.usefixtures("_joined")
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_label_rows_in_any_order_and_of_images_that_are_not_there(
    tmp_path: Path, suffix: str
) -> None:
    ids = [f"{number:016x}" for number in range(50)]
    rows = [(i, "verification", CAT, n % 2) for n, i in enumerate(ids)]
    rows += [(f"{number:016x}", "verification", CAT, 1) for number in range(1000, 2000)]
    np.random.default_rng(0).shuffle(rows)
    samples = read_all(
        path=write_images(tmp_path, *ids[::2], "ffffffffffffffff"),
        human_labels=write_csv(tmp_path / f"human.csv{suffix}", rows),
    )
    states = {sample.uri[-20:-4]: sample.label_state for sample in samples}
    assert states == {**dict.fromkeys(ids[::2], "verified_absent"), "ffffffffffffffff": "unknown"}


@pytest.mark.parametrize("prefix", ["train_0/", "validation/", "", "./a/b/"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_images_are_found_under_any_folder_of_a_tar(
    tmp_path: Path, prefix: str, suffix: str
) -> None:
    tar = write_images(tmp_path, ID, OTHER_ID, prefix=prefix, suffix=suffix)
    human_labels = write_csv(tmp_path / "human.csv", [human(CAT, 0)])
    first, second = read_all(path=tar, human_labels=human_labels)
    assert (first.uri, first.label_state) == (f"{tar}#{prefix}{ID}.jpg", "verified_absent")
    assert (second.uri, second.label_state) == (f"{tar}#{prefix}{OTHER_ID}.jpg", "unknown")


def test_braces_count_in_hexadecimal() -> None:
    source = Source(Params(path=("s3://bucket/tar/train_{0..f}.tar.gz", "test.tar")))
    ids = [partition.id for partition in source.partitions()]
    assert ids == [f"s3://bucket/tar/train_{d}.tar.gz" for d in "0123456789abcdef"] + ["test.tar"]


def test_single_images_are_read_in_runs_and_found_again(tmp_path: Path) -> None:
    ids = [f"{number:016x}" for number in range(7)]
    folder = tmp_path / "validation"
    folder.mkdir()
    for image_id in ids:
        (folder / f"{image_id}.jpg").write_bytes(JPEG)
    human_labels = write_csv(tmp_path / "human.csv", [(ids[2], "verification", CAT, 1)])
    for path in (tmp_path, folder):
        source = Source(
            Params(
                path=(str(path),),
                split="validation",
                human_labels=(human_labels,),
                files_per_partition=3,
            )
        )
        partitions = list(source.partitions())
        assert [len(partition.locator) - 1 for partition in partitions] == [3, 3, 1]
        samples = [sample for partition in partitions for sample in source.read(partition)]
        assert [sample.uri for sample in samples] == [
            f"{folder}/{image_id}.jpg" for n, image_id in enumerate(ids) if n != 2
        ]
    (folder / f"{ids[4]}.jpg").unlink()
    assert [sample.image for sample in source.read(partitions[1])] == [JPEG, b"", JPEG]


@pytest.mark.usefixtures("_joined")
def test_https_images_are_those_of_the_ids_file_or_of_the_labels(tmp_path: Path) -> None:
    rows = [(i, s, *[""] * 10) for i, s in ((OTHER_ID, "test"), (ID, "test"), ("f" * 16, "train"))]
    image_ids = write_csv(tmp_path / "ids.csv", rows, IDS_HEADER)
    human_labels = write_csv(tmp_path / "human.csv", [human(PERSON, 1), human(CAT, 1)])
    base = {"path": "https://example.org/open-images-dataset", "split": "test"}
    folder = "https://example.org/open-images-dataset/test"

    def locators(**params: str) -> list[object]:
        return [p.locator for p in open_source("open_images", {**base, **params}).partitions()]

    assert locators(image_ids=image_ids) == [[folder, f"{ID}.jpg", f"{OTHER_ID}.jpg"]]
    assert locators(human_labels=human_labels) == [[folder, f"{ID}.jpg"]]
    with pytest.raises(ConfigError, match=r"https cannot be listed; give `params\.image_ids`"):
        locators()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_reading_goes_on_where_it_was_left(tmp_path: Path, suffix: str) -> None:
    ids = [f"{number:016x}" for number in range(6)]
    tar = write_images(tmp_path, *ids, suffix=suffix)
    human_labels = write_csv(tmp_path / "human.csv", [(ids[1], "verification", CAT, 1)])
    source = Source(Params(path=(tar,), human_labels=(human_labels,)))
    [partition] = source.partitions()
    samples = list(source.read(partition))
    assert len(samples) == 5
    for start in range(7):
        assert list(source.read_from(partition, start)) == samples[start:]


@pytest.mark.usefixtures("_joined")
@pytest.mark.parametrize(
    ("rotation", "expected"),
    [("90.0", 90), ("0.0", 0), ("270", 270), ("nan", None), ("NaN", None), ("", None),
     ("45.0", None), ("360.0", 0)],
)  # fmt: skip
def test_license_author_and_rotation_come_with_the_image(
    tmp_path: Path, rotation: str, expected: int | None
) -> None:
    license_url = "https://creativecommons.org/licenses/by/2.0/"
    title = 'A "cat",\nasleep'
    row = (ID, "train", "u", "l", license_url, "p", "Ada, L.", title, 12, "m==", "", rotation)
    image_ids = write_csv(tmp_path / "ids.csv", [row], IDS_HEADER)
    known, unknown = read_all(path=write_images(tmp_path, ID, OTHER_ID), image_ids=image_ids)
    assert (known.license, known.author) == (license_url, "Ada, L.")
    assert known.rotation == expected
    assert (unknown.license, unknown.author, unknown.rotation) == (None, None, None)


@pytest.mark.parametrize("header", [("LabelName", "DisplayName"), ()])
def test_classes_are_named_by_mid_or_display_name(tmp_path: Path, header: Row) -> None:
    descriptions = write_csv(tmp_path / "names.csv", NAMES, header)
    for name, mid in (("cat", CAT), (TIGER, TIGER), ("lemon, LIME and bitters", "/m/03hgsf0")):
        [sample] = read_labelled(
            tmp_path, human_rows=[human(mid, 1)], class_descriptions=descriptions,
            target_classes=[name],
        )  # fmt: skip
        assert (sample.label, sample.class_name) == ("cat", mid)


def test_hierarchy_tells_kinds_and_ancestors_but_a_part_is_no_kind(tmp_path: Path) -> None:
    hierarchy = tmp_path / "hierarchy.json"
    hierarchy.write_text(json.dumps(HIERARCHY))

    def read(*rows: Row) -> tuple[str, str]:
        [sample] = read_labelled(
            tmp_path, human_rows=rows, hierarchy=str(hierarchy), target="dog",
            target_classes=[DOG],
        )  # fmt: skip
        return sample.label, sample.label_state

    assert read(human(PUPPY, 1)) == ("dog", "verified_present")
    assert read(human(ANIMAL, 0)) == ("", "verified_absent")
    assert read(human(PUPPY, 0)) == ("", "unknown")
    assert read(human("/m/0part", 1)) == ("", "unknown")
    assert read(human(CAT, 1)) == ("", "unknown")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"target_classes": ["jaguar"]},
         "`params.target_classes` 'jaguar' may be /m/0449p (Jaguar (Animal)), "
         "/m/0h5wslk (Jaguar (Automobile)); name the MID"),
        ({"near_classes": ["ball"]}, "'ball' may be /m/018xm (Ball), /m/0156sn (Ball)"),
        ({"target_classes": ["Tigre"]}, "is none of 9 class names; close are Tiger (/m/07dm6)"),
        ({"target": "dog"}, "`params.target` 'dog' is none of cat; give `params.target_classes`"),
        ({"target_classes": ["Dog"], "class_descriptions": []}, "give `params.class_descriptions`"),
        ({"class_descriptions": "no.csv", "target_classes": ["Cat"]},
         "no.csv: no such file; check `params.class_descriptions`"),
        ({"hierarchy": "names.csv"}, "names.csv: expected nested"),
        ({"metadata": "empty"}, "empty: no file of Open Images under its published name"),
        ({"metadata": "https://example.org"}, "params.metadata: http and https cannot be listed"),
        ({"path": ["a.tar", "b"]}, "params.path: give tars, or one folder"),
    ],
)  # fmt: skip
def test_wrong_setting_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: dict[str, object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "names.csv", NAMES, ("LabelName", "DisplayName"))
    with pytest.raises(ConfigError, match=re.escape(message)):
        open_source("open_images", {"path": "a.tar", "class_descriptions": "names.csv", **params})


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"path": "no.tar.gz"}, "no.tar.gz: no such tar; check `params.path`"),
        ({"path": "no"}, "no/train: no such folder; check `params.path`"),
        ({"human_labels": "no.csv"}, "no.csv: no such file; check `params.human_labels`"),
        ({"machine_labels": "names.csv"}, "names.csv: no column Confidence, ImageID, Source, its "
         "first line is 'LabelName,DisplayName'; check `params.machine_labels`"),
        ({"boxes": "empty.csv"}, "empty.csv: no column ImageID, LabelName, its first line is ''"),
    ],
)  # fmt: skip
def test_wrong_file_is_an_error_that_names_file_and_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: dict[str, str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "names.csv", NAMES, ("LabelName", "DisplayName"))
    (tmp_path / "empty.csv").touch()
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_all(**{"path": write_images(tmp_path, ID), **params})


@pytest.mark.parametrize("damage", ["wrong_row", "cut_off"])
def test_broken_label_file_is_named(tmp_path: Path, damage: str) -> None:
    rows: list[Row] = [human(CAT, 1)] * 1000
    path = Path(write_csv(tmp_path / "human.csv.gz", [*rows, (ID, "a", "b", "c", "d")]))
    if damage == "cut_off":
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InfinegError, match=r"human\.csv\.gz: broken CSV"):
        read_all(path=write_images(tmp_path, ID), human_labels=str(path))


@pytest.mark.parametrize(
    ("split", "files"),
    [
        ("train", ["v7/oidv7-train-annotations-human-imagelabels.csv",
                   "v6/oidv6-train-annotations-bbox.csv"]),
        ("validation", ["oidv7-val-annotations-human-imagelabels.csv.gz",
                        "validation-annotations-bbox.csv"]),
        ("test", ["v5/test-annotations-human-imagelabels.csv", "v5/test-annotations-bbox.csv.gz"]),
    ],
)  # fmt: skip
def test_files_under_their_published_names_are_found(
    tmp_path: Path, split: str, files: list[str]
) -> None:
    write_csv(tmp_path / files[0], [human(CAT, 0)])
    write_csv(tmp_path / files[1], [(OTHER_ID, *box(CAT)[1:])], BOX_HEADER)
    params = {
        "path": write_images(tmp_path, ID, OTHER_ID), "split": split, "metadata": str(tmp_path),
        "target_policy": "positive",
    }  # fmt: skip
    assert [s.label_state for s in read_all(**params)] == ["verified_absent", "verified_present"]
    states = [s.label_state for s in read_all(**params, human_labels=[])]
    assert states == ["unknown", "verified_present"], "a field replaces what is found"


def test_tar_that_breaks_in_the_middle_gives_what_comes_before_and_is_named(tmp_path: Path) -> None:
    ids = [f"{number:016x}" for number in range(40)]
    rng = np.random.default_rng(0)
    members = [(f"train_0/{image_id}.jpg", rng.bytes(5000)) for image_id in ids]
    path = write_tar(tmp_path / "train_0.tar.gz", members, "w:gz")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 100] = b"\xff" * 100
    path.write_bytes(data)
    source = Source(Params(path=(str(path),)))
    [partition] = source.partitions()
    samples = source.read(partition)
    for _, content in members[:19]:
        assert next(samples).image == content
    with pytest.raises(InfinegError, match=r"train_0\.tar\.gz: broken tar (at|after) 'train_0/00"):
        list(samples)


def test_broken_jpeg_in_a_sound_tar_is_only_a_sample(tmp_path: Path) -> None:
    members = [(f"train_0/{ID}.jpg", b"404 Not Found"), (f"train_0/{OTHER_ID}.jpg", JPEG)]
    path = write_tar(tmp_path / "train_0.tar.gz", members, "w:gz")
    assert [sample.image for sample in read_all(path=str(path))] == [b"404 Not Found", JPEG]


def write_long_labels(path: Path, num_images: int) -> str:
    """40 rows an image, one of them of a class that matters, of 41 bytes each."""
    numbers = np.random.default_rng(0).permutation(num_images)
    with path.open("w") as file:
        file.write(",".join(LABEL_HEADER) + "\n")
        for number in numbers:
            image_id = f"{number:05x}".ljust(16, "0")
            file.write(f"{image_id},verification,{CAT},{number % 2}\n")
            file.writelines(f"{image_id},verification,/m/0{n:02d}xyz,1\n" for n in range(39))
    return str(path)


def test_large_label_file_is_joined_in_bounded_memory(tmp_path: Path) -> None:
    path = write_long_labels(tmp_path / "human.csv", num_images=0x5000)
    size = Path(path).stat().st_size
    assert size > 25 << 20
    # In a process of its own: the highest mark of Arrow's memory is one of the whole process.
    script = f"""
import pyarrow as pa
from pipeline.sources.kinds.open_images import lookups
from pipeline.sources.kinds.open_images.classes import find_target_classes
from pipeline.sources.kinds.open_images.labels import ImageLabels, LabelFiles
lookups._MAX_BYTES_IN_MEMORY = lookups._FLUSH_BYTES = 1 << 20
classes = find_target_classes("cat", (), near=None, mid=None, descriptions=(), hierarchy=())
labels = ImageLabels(LabelFiles(human=({path!r},)), classes)
for number in (0x0, 0x1, 0x4FFF, 0x5000):
    print(labels.verdict(f"{{number:05x}}".ljust(16, "0")).label_state)
print(pa.default_memory_pool().max_memory())
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    *states, peak = run.stdout.split()
    assert states == ["verified_absent", "verified_present", "verified_present", "unknown"]
    assert 1 << 20 < int(peak) < size / 4


def test_large_label_file_is_joined_once_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(lookups, "_MAX_BYTES_IN_MEMORY", 0)
    rows = [(i, "verification", CAT, 0) for i in (ID, OTHER_ID, "f" * 16, "image", "")]
    path = Path(write_csv(tmp_path / "human.csv", rows))
    tar = write_images(tmp_path, ID, OTHER_ID, "f" * 16, "image", "e" * 16)

    def read() -> list[str]:
        monkeypatch.setattr(lookups, "_open_lookups", {})  # as another process
        return [sample.label_state for sample in read_all(path=tar, human_labels=str(path))]

    assert read() == ["verified_absent"] * 4 + ["unknown"]
    buckets = sorted(path.name for path in (tmp_path / "cache").rglob("*.parquet"))
    assert buckets == ["048.parquet", "102.parquet", "105.parquet"], "one a first character"
    with monkeypatch.context() as patch:
        patch.setattr(lookups, "_write_buckets", None)
        assert read() == ["verified_absent"] * 4 + ["unknown"]
    write_csv(path, rows[:1])
    assert read() == ["verified_absent"] + ["unknown"] * 4, "a changed file is joined anew"


def test_cache_folder_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(lookups, "_MAX_BYTES_IN_MEMORY", 0)
    human_labels = write_csv(tmp_path / "human.csv", [human(CAT, 0)])
    with pytest.raises(ConfigError, match=r"file/infineg.*set XDG_CACHE_HOME"):
        read_all(path=write_images(tmp_path, ID), human_labels=human_labels)


@pytest.mark.usefixtures("_joined")
@pytest.mark.parametrize("policy", ["exclude", "positive", "only"])
@pytest.mark.parametrize("labelled", ["ffff26e7ee790996", f"{ID}.jpg"])
def test_labels_that_fit_no_image_are_an_error_with_both_sides(
    tmp_path: Path, labelled: str, policy: str
) -> None:
    labels = write_csv(tmp_path / "a.csv", [(labelled, "verification", CAT, 1)])
    message = (
        rf"2 images read and no label fits one: .*a\.csv have labels of 1 images such as "
        rf'"{labelled}"; the images are such as "{ID}", "{OTHER_ID}"'
    )
    with pytest.raises(ConfigError, match=message):
        check_labels(
            "open_images",
            path=write_images(tmp_path, ID, OTHER_ID),
            human_labels=labels,
            target_policy=policy,
        )


@pytest.mark.usefixtures("_joined")
@pytest.mark.parametrize("policy", ["exclude", "positive", "only"])
def test_labels_of_some_images_are_enough_and_told(
    tmp_path: Path, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    labels = write_csv(tmp_path / "a.csv", [human(CAT, 1), ("f" * 16, "verification", CAT, 1)])
    check_labels(
        "open_images",
        path=write_images(tmp_path, ID, OTHER_ID),
        human_labels=labels,
        target_policy=policy,
    )
    told = "2 images looked at, 1 without a class of those that matter; the label files have such"
    assert f"{told} labels of 2 images" in caplog.text


@pytest.mark.parametrize("name", ["Cat", "/m/01yrX"])
def test_classes_of_other_names_are_shown(tmp_path: Path, name: str) -> None:
    labels = write_csv(tmp_path / "a.csv", [human(name, 1)] * 7)
    with pytest.raises(ConfigError, match=rf'no image of class /m/01yrx among 1.*have "{name}" 7'):
        check_labels("open_images", path=write_images(tmp_path, ID), human_labels=labels)


def test_class_of_no_list_has_to_occur(tmp_path: Path) -> None:
    params = {
        "path": write_images(tmp_path, ID),
        "human_labels": write_csv(tmp_path / "a.csv", [human(DOG, 1)]),
        "near_classes": [DOG],
    }
    with pytest.raises(
        ConfigError, match=r'no image of class /m/0nope among 1.*have "/m/0bt9lr" 1'
    ):
        check_labels("open_images", **params, target_classes=["/m/0nope"])
    names = write_csv(tmp_path / "names.csv", [*NAMES, ("/m/0nope", "Nope")], header=())
    check_labels("open_images", **params, target_classes=["/m/0nope"], class_descriptions=names)


def test_image_without_the_target_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = write_csv(tmp_path / "a.csv", [human(TIGER, 1)])
    check_labels("open_images", path=write_images(tmp_path, ID, OTHER_ID), human_labels=labels)
    assert "no image of the target (/m/01yrx) among 2" in caplog.text
    assert f'seen: without a class 1, "{TIGER}" 1' in caplog.text


@pytest.mark.parametrize(
    "text",
    ["{header}\n{id},verification,/m/01yrx ,1\n", "{header}\r{id},verification,/m/01yrx,1\r",
     "\ufeff{header}\r\n {id}\t,verification,/m/01yrx,1\r\n"],
)  # fmt: skip
def test_spaces_marks_and_line_ends_cost_no_label(tmp_path: Path, text: str) -> None:
    labels = tmp_path / "a.csv"
    labels.write_bytes(text.format(header=",".join(LABEL_HEADER), id=ID).encode())
    [sample] = read_all(
        path=write_images(tmp_path, ID), human_labels=str(labels), target_policy="positive"
    )
    assert sample.label == "cat"


def test_label_file_in_another_encoding_is_refused_by_name(tmp_path: Path) -> None:
    labels = tmp_path / "a.csv"
    labels.write_bytes(f"{','.join(LABEL_HEADER)}\n".encode("utf-16"))
    with pytest.raises(ConfigError, match=r"a\.csv: UTF-16; labels are read as UTF-8"):
        read_all(path=write_images(tmp_path, ID), human_labels=str(labels))
