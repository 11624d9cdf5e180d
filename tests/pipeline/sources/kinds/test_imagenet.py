import io
import json
import logging
import re
import shutil
import tarfile
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import webdataset
from fsspec import filesystem

from pipeline.dataset.images import Decoded, decode_image
from pipeline.dataset.schema import ImageSettings, RawSample
from pipeline.errors import ConfigError, InfinegError
from pipeline.sources import open_source
from pipeline.sources.kinds.imagenet import Params, Source
from pipeline.sources.readers import tars
from support.corpus import CountingFile, encode, quadrants, write_tar
from support.inputs import check_labels
from support.servers import run_flaky_server

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
    """Ids 1 to 5 in another order than the wnids', a parent after them; answers 5, 4, 3, 2, 1."""
    leaves = enumerate((FLAMINGO, ABACUS, TABBY, DOG, TIGER), start=1)
    synsets = np.array(
        [
            *((number, wnid, "words", "gloss", 0, np.array([]), 0, 100) for number, wnid in leaves),
            (6, "n00001740", "entity", "gloss", 2, np.array([1, 2]), 19, 0),
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
    assert file.num_read < 12 * 600 + tarfile.RECORDSIZE


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
        (
            {"path": "missing"},
            "missing: no such folder; expected one with ILSVRC2012_img_train.tar",
        ),
        ({"path": "missing.tar"}, "missing.tar: no such file; check `params.path`"),
        ({"path": ".", "layout": "train_tar", "split": "val"}, "train_tar has no split val"),
        ({"path": "empty"}, "empty: no file in it that is not hidden; check `params.path`"),
    ],
)
def test_wrong_place_is_an_error_that_says_what_was_wanted(
    tmp_path: Path, params: dict[str, str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_all(Params(**{**params, "path": str(tmp_path / params["path"])}))  # type: ignore[arg-type]


def hub_parquet(path: Path, labels: list[object], *, names: list[str] | None = None) -> None:
    """As ILSVRC/imagenet-1k: struct of bytes and path, and a number in the order of the wnids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": JPEG, "path": f"{n}.JPEG"} for n in range(len(labels))]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(images, struct), "label": labels})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(metadata)
    pq.write_table(table, path, row_group_size=2)


# Tabby, cougar, lion, tiger and "tench" in the order of the sorted wnids.
NUMBERS: list[object] = [281, 286, 291, 292, 0]
NUMBERED = ["n01440764", "n02125311", "n02129165", "n02129604"]


@pytest.mark.parametrize("folder", ["data", "."])
@pytest.mark.parametrize("names", [None, [f"class {n}, of words" for n in range(1000)]])
def test_parquet_of_the_hub_numbers_the_sorted_wnids(
    tmp_path: Path, folder: str, names: list[str] | None
) -> None:
    root = tmp_path / folder
    hub_parquet(root / "train-00000-of-00002.parquet", NUMBERS, names=names)
    hub_parquet(root / "train-00001-of-00002.parquet", [-1, None, 291], names=names)
    hub_parquet(root / "validation-00000-of-00001.parquet", [292], names=names)
    samples = read_all(Params(path=str(tmp_path)))
    assert class_names(samples) == sorted([*NUMBERED, "n02129165"]), "-1 and null are no class"
    assert {s.image for s in samples} == {JPEG}
    lion = next(s for s in samples if s.class_name == "n02129165")
    assert (lion.label_state, lion.stratum) == ("verified_absent", "near")
    assert class_names(read_all(Params(path=str(tmp_path), split="val"))) == ["n02129604"]
    [cat] = read_all(Params(path=str(tmp_path), target_policy="only"))
    assert (cat.class_name, cat.label, cat.label_state) == (TABBY, "cat", "verified_present")


@pytest.mark.parametrize("labels", ["wnid names", "wnids", "synsets"])
def test_parquet_of_other_classes_says_them_itself_or_by_synsets(
    tmp_path: Path, labels: str
) -> None:
    order = [TIGER, ABACUS, DOG]
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    params = Params(path=str(tmp_path))
    if labels == "wnid names":
        hub_parquet(path, [2, 0, 1], names=order)
    elif labels == "wnids":
        hub_parquet(path, [DOG, TIGER, ABACUS])
    else:
        hub_parquet(path, [2, 0, 1])
        (tmp_path / "synsets.txt").write_text("".join(f"{wnid} some words\n" for wnid in order))
        params = Params(path=str(tmp_path), synsets=str(tmp_path / "synsets.txt"))
    assert [s.class_name for s in read_all(params)] == [DOG, TIGER, ABACUS]


@pytest.mark.parametrize(
    ("labels", "names", "synsets", "message"),
    [
        (
            [3, 1500],
            None,
            None,
            r"class 1500, but the list of classes has 1000; .*synsets",
        ),
        (
            [3],
            ["tench", "tiger"],
            None,
            r"2 classes with names that are not wnids.*synsets",
        ),
        ([3], None, "missing.txt", r"missing\.txt: expected imagenet-1k.*check `params\.synsets`"),
    ],
)
def test_numbers_that_nothing_explains_are_refused(
    tmp_path: Path, labels: list[object], names: list[str] | None, synsets: str, message: str
) -> None:
    hub_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", labels, names=names)
    with pytest.raises(ConfigError, match=message):
        read_all(Params(path=str(tmp_path), synsets=synsets))


def wds_tar(path: Path, samples: list[dict[str, object]]) -> Path:
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)
    return path


@pytest.mark.parametrize(
    ("split", "name"),
    [("train", "imagenet1k-train-0007.tar"), ("val", "imagenet1k-validation-07.tar"),
     ("train", "imagenet12k-train-0007.tar"), ("train", "imagenet22k-train-0007.tar")],
)  # fmt: skip
def test_tars_of_timm_number_the_sorted_wnids_of_their_set(
    tmp_path: Path, split: Literal["train", "val"], name: str
) -> None:
    from timm.data import ImageNetInfo

    wnids = ImageNetInfo(name.partition("-")[0].replace("imagenet", "imagenet-")).label_names()
    samples = [
        {"__key__": f"{n:08d}", "jpg": JPEG, "cls": wnids.index(wnid),
         "json": {"label": wnids.index(wnid), "width": 96, "height": 64}}
        for n, wnid in enumerate((TIGER, TABBY, ABACUS))
    ]  # fmt: skip
    path = wds_tar(tmp_path / name, samples)
    found = read_all(Params(path=str(tmp_path), split=split))
    assert [(s.class_name, s.uri) for s in found] == [
        (TIGER, f"{path}#00000000.jpg"),
        (ABACUS, f"{path}#00000002.jpg"),
    ]
    assert all(s.image == JPEG for s in found)


@pytest.mark.parametrize(
    "more",
    [
        {"json": {"wnid": DOG, "label": 3}},
        {"json": {"filename": f"{DOG}_17.JPEG", "label": 3}},
        {"__key__": f"{DOG}_17"},
        {"__key__": f"train/{DOG}_17", "json": {"label": 3}},
    ],
)
def test_sample_may_tell_its_wnid_whatever_its_number(
    tmp_path: Path, more: dict[str, object]
) -> None:
    wds_tar(
        tmp_path / "imagenet_w21-train-0000.tar",
        [{"__key__": "1", "jpg": JPEG, "cls": 3} | more],
    )
    assert class_names(read_all(Params(path=str(tmp_path)))) == [DOG]


def test_number_of_an_unknown_set_is_refused(tmp_path: Path) -> None:
    sample = {"__key__": "1", "jpg": JPEG, "cls": 3}
    wds_tar(
        tmp_path / "imagenet_w21-train-0000.tar", [sample, sample | {"__key__": "2", "cls": -1}]
    )
    with pytest.raises(ConfigError, match=r"w21-train-0000\.tar#1\..*which list.*params\.synsets"):
        read_all(Params(path=str(tmp_path)))
    (tmp_path / "w21.txt").write_text("\n".join([ABACUS, TABBY, DOG, TIGER]))
    found = read_all(Params(path=str(tmp_path), synsets=str(tmp_path / "w21.txt")))
    assert class_names(found) == [TIGER]


def write_any(root: Path, layout: str) -> None:
    if layout == "folder":
        write_folders(root / "train")
    elif layout == "parquet":
        hub_parquet(root / "data" / "train-00000-of-00001.parquet", NUMBERS * 3)
    elif layout == "wds":
        samples = [
            {"__key__": f"{n}", "jpg": JPEG, "cls": label} for n, label in enumerate(NUMBERS)
        ]
        wds_tar(root / "imagenet1k-train-0000.tar", samples)
    else:
        inner = write_tar(
            root / "inner", [(f"{DOG}_{n}.JPEG", JPEG + bytes([n])) for n in range(6)]
        )
        write_tar(root / "ILSVRC2012_img_train.tar", [(f"{DOG}.tar", inner.read_bytes())])


@pytest.mark.parametrize("layout", ["folder", "parquet", "wds", "train_tar"])
def test_reading_goes_on_where_it_was_left(tmp_path: Path, layout: str) -> None:
    write_any(tmp_path, layout)
    source = Source(Params(path=str(tmp_path)))
    for partition in source.partitions():
        samples = list(source.read(partition))
        assert samples
        for start in range(len(samples) + 2):
            assert list(source.read_from(partition, start)) == samples[start:]


@pytest.mark.parametrize("layout", ["folder", "parquet", "wds", "train_tar"])
def test_object_store_is_read_like_a_disk(tmp_path: Path, layout: str) -> None:
    write_any(tmp_path, layout)
    memory = filesystem("memory")
    memory.put(str(tmp_path), f"/imagenet-{layout}", recursive=True)
    try:
        found = read_all(Params(path=f"memory://imagenet-{layout}"))
    finally:
        memory.rm(f"/imagenet-{layout}", recursive=True)
    local = read_all(Params(path=str(tmp_path)))
    assert [(s.class_name, s.image) for s in found] == [(s.class_name, s.image) for s in local]


def test_layout_that_is_not_there_is_refused_with_an_example(tmp_path: Path) -> None:
    for layout, example in (("parquet", "train-00000-of-"), ("wds", "imagenet1k-train-0000.tar")):
        with pytest.raises(ConfigError, match=f"no file such as {example}"):
            read_all(Params(path=str(tmp_path), layout=layout))  # type: ignore[arg-type]


def test_caffe_numbers_follow_the_sorted_wnids_where_no_list_lies_beside(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / f"{val_name(1)}.JPEG").write_bytes(JPEG)
    (tmp_path / "val.txt").write_text(f"{val_name(1)}.JPEG 65\n")
    [sample] = read_all(Params(path=str(tmp_path), split="val"))
    assert sample.class_name == "n01751748"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("LOC_val_solution.csv", b"id,prediction\nILSVRC2012_val_00000001,n01751748 1 2 3 4\n"),
        ("LOC_val_solution.csv", b"ImageId,PredictionString\nILSVRC2012_val_00000001,\n"),
        ("ILSVRC2012_devkit_t12.tar.gz", b"<html>404</html>"),
        ("val.txt", b"ILSVRC2012_val_00000001.JPEG tiger\n"),
        ("val.txt", b"ILSVRC2012_val_00000001.JPEG 1000\n"),
        ("val.txt", b"ILSVRC2012_val_00000001.JPEG -1\n"),
    ],
)
def test_answers_that_cannot_be_read_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / f"{val_name(1)}.JPEG").write_bytes(JPEG)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InfinegError, match=rf"{re.escape(name)}: not in"):
        read_all(Params(path=str(tmp_path), split="val"))


def test_kaggle_answers_with_a_byte_order_mark_and_quotes_are_read(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / f"{val_name(1)}.JPEG").write_bytes(JPEG)
    (tmp_path / "LOC_val_solution.csv").write_bytes(
        b'\xef\xbb\xbf"ImageId","PredictionString"\r\n'
        + f'"{val_name(1)}","{TIGER} 1 2 3 4 {TIGER} 5 6 7 8 "\r\n'.encode()
    )
    [sample] = read_all(Params(path=str(tmp_path), split="val"))
    assert sample.class_name == TIGER


def big_train_tar(path: Path, num_classes: int) -> bytes:
    """2 MB a class."""
    inner = {}
    for number in range(num_classes):
        wnid = f"n{2085620 + number:08d}"
        images = [(f"{wnid}_{n}.JPEG", JPEG.ljust(1 << 20, b"\0")) for n in range(2)]
        inner[f"{wnid}.tar"] = write_tar(path / "inner", images).read_bytes()
    return write_tar(path / "ILSVRC2012_img_train.tar", inner.items()).read_bytes()


def test_class_of_a_remote_tar_of_tars_is_read_from_where_it_lies(tmp_path: Path) -> None:
    name = "ILSVRC2012_img_train.tar"
    with run_flaky_server(files={f"/{name}": big_train_tar(tmp_path, 8)}) as server:
        source = Source(Params(path=f"{server.url}/{name}"))
        partitions = list(source.partitions())
        assert len(partitions) == 8
        partition = max(partitions, key=lambda each: each.locator[1][2])  # the last in the tar
        _, class_tar, offset, _ = partition.locator[1]
        server.requests.clear()
        samples = list(source.read(partition))
        ranges = [headers.get("Range") for method, _, headers in server.requests if method == "GET"]
    assert [s.uri for s in samples] == [
        f"{server.url}/{name}#{class_tar}#{class_tar[:9]}_{n}.JPEG" for n in range(2)
    ]
    assert all(sample.image.startswith(JPEG) for sample in samples)
    assert f"bytes={offset}-" in ranges


def test_server_without_ranges_is_named_as_the_reason(tmp_path: Path) -> None:
    name = "ILSVRC2012_img_train.tar"
    files = {f"/{name}": big_train_tar(tmp_path, 2)}
    with run_flaky_server(files=files, has_ranges=False) as server:
        source = Source(Params(path=f"{server.url}/{name}"))
        with pytest.raises(InfinegError, match=rf"{re.escape(name)}: .*only whole files"):
            list(source.partitions())


def write_copy(root: Path, layout: str, wnids: tuple[str, ...]) -> str:
    if layout == "folder":
        write_folders(root / "set", wnids)
        return str(root / "set")
    (root / "set" / "data").mkdir(parents=True)
    if layout == "parquet":
        table = pa.table({"image": [JPEG] * len(wnids), "label": list(wnids)})
        pq.write_table(table, root / "set" / "data" / "train-00000-of-00001.parquet")
    else:
        members = [
            member
            for n, wnid in enumerate(wnids)
            for member in ((f"{n}.jpg", JPEG), (f"{n}.json", json.dumps({"wnid": wnid}).encode()))
        ]
        write_tar(root / "set" / "imagenet1k-train-0000.tar", members)
    return str(root / "set")


@pytest.mark.parametrize("policy", ["exclude", "positive"])
@pytest.mark.parametrize("layout", ["folder", "parquet", "wds"])
def test_named_class_that_never_occurs_is_an_error(
    tmp_path: Path, layout: str, policy: str
) -> None:
    path = write_copy(tmp_path, layout, (DOG, ABACUS, FLAMINGO))
    with pytest.raises(
        ConfigError, match=rf'no sample of class "{TIGER}" among 3; seen: "{FLAMINGO}" 1, .*wnids'
    ):
        check_labels("imagenet", path=path, target_wnids=[TIGER], target_policy=policy)
    check_labels("imagenet", path=path, target_wnids=[ABACUS], target_policy=policy)


@pytest.mark.parametrize("policy", ["exclude", "positive"])
@pytest.mark.parametrize("layout", ["folder", "parquet", "wds"])
def test_preset_of_which_no_class_occurs_is_a_warning(
    tmp_path: Path, layout: str, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    check_labels("imagenet", path=write_copy(tmp_path, layout, (DOG, TABBY)), target_policy=policy)
    assert not caplog.records, "one of its 21 classes is enough"
    check_labels(
        "imagenet",
        path=write_copy(tmp_path / "no_cat", layout, (DOG, ABACUS)),
        target_policy=policy,
    )
    assert f'among 2, though the list of classes has it; seen: "{DOG}" 1' in caplog.text


def test_listed_class_beside_others_is_a_warning_and_a_misspelt_one_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_copy(tmp_path, "folder", (DOG, ABACUS))
    check_labels("imagenet", path=path, target_wnids=[ABACUS, TIGER], target_policy="positive")
    assert f'no sample of class "{TIGER}" among 2' in caplog.text
    with pytest.raises(ConfigError, match='no sample of class "n99999999" among 2'):
        check_labels(
            "imagenet", path=path, target_wnids=[ABACUS, "n99999999"], target_policy="positive"
        )
    with pytest.raises(ConfigError, match=r"params\.target_wnids.*'n2084071' is no wnid"):
        open_source("imagenet", {"path": path, "target_wnids": ["n2084071"]})


def test_answers_without_an_image_and_images_without_an_answer_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (val_name(1), val_name(2), "other"):
        (tmp_path / f"{name}.JPEG").write_bytes(JPEG)
    write_answers(tmp_path, "kaggle")
    assert len(read_all(Params(path=str(tmp_path), split="val"))) == 2
    assert "of 3 files, 1 files without a class" in caplog.text
    assert f'of 5 answers, 3 have no file, such as "{val_name(3)}"' in caplog.text


def test_answers_that_fit_no_image_are_an_error_with_both_sides(tmp_path: Path) -> None:
    (tmp_path / "val_1.JPEG").write_bytes(JPEG)
    write_answers(tmp_path, "kaggle")
    with pytest.raises(ConfigError, match=r'1 files.*"val_1.JPEG"; of 5 answers, 5 have no file'):
        read_all(Params(path=str(tmp_path), split="val"))


def test_answers_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    for number in range(1, 6):
        (tmp_path / f"{val_name(number)}.JPEG").write_bytes(JPEG)
    write_answers(tmp_path, "caffe")
    for name in ("val.txt", "synset_words.txt"):
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    samples = read_all(Params(path=str(tmp_path), split="val", target_policy="positive"))
    assert class_names(samples) == sorted(ANSWERS)


@pytest.mark.parametrize("label", [1.0, "1", 1])
def test_class_number_means_the_same_in_a_table_of_any_type(tmp_path: Path, label: object) -> None:
    (tmp_path / "data").mkdir()
    table = pa.table({"image": [JPEG], "label": [label]})
    pq.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet")
    (tmp_path / "synsets.txt").write_text("\ufeff" + "\n".join([DOG, ABACUS]))
    params = Params(path=str(tmp_path), synsets=str(tmp_path / "synsets.txt"))
    assert class_names(read_all(params)) == [ABACUS]
