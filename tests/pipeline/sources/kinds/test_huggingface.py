"""Data sets written by `datasets` itself, read back; the Hub is only ever out of reach here."""

import io
import json
import socket
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from fsspec import filesystem

from pipeline.dataset.schema import RawSample
from pipeline.errors import ConfigError, InfinegError
from pipeline.sources import open_source
from pipeline.sources.kinds.huggingface import Params, Source
from support.corpus import encode, quadrants, write_tar

JPEG, PNG = encode(quadrants()), encode(quadrants(), "PNG")
CLASSES = ["airplane", "cat", "dog"]
FEATURES = Features({"img": Image(), "label": ClassLabel(names=CLASSES)})


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a local data set must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with HF_HUB_OFFLINE=1, which is read at import."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def ten_rows() -> Dataset:
    """Every third is a cat, from row 1; row 4 is no image."""
    images: list[Any] = [{"bytes": JPEG, "path": f"{n}.jpg"} for n in range(10)]
    images[4] = {"bytes": b"404 Not Found", "path": "4.jpg"}
    labels = [n % 3 for n in range(10)]
    return Dataset.from_dict({"img": images, "label": labels}, features=FEATURES)


def read_all(**params: Any) -> list[RawSample]:
    source = Source(Params(**params))
    return [sample for partition in source.partitions() for sample in source.read(partition)]


def class_names(samples: list[RawSample]) -> list[str | None]:
    return [sample.class_name for sample in samples]


def write_parquet(root: Path, data: Dataset, num_files: int = 2) -> Path:
    root.mkdir()
    for number in range(num_files):
        name = f"train-{number:05d}-of-{num_files:05d}.parquet"
        data.shard(num_files, number, contiguous=True).to_parquet(root / name, batch_size=2)
    return root


def write_saved(root: Path, data: Dataset) -> Path:
    data.save_to_disk(str(root), num_shards=2)
    return root


def write_arrow(root: Path, data: Dataset) -> Path:
    write_saved(root, data)
    (root / "state.json").unlink()
    (root / "dataset_info.json").unlink()
    return root


@pytest.mark.parametrize("write", [write_parquet, write_saved, write_arrow])
def test_what_datasets_writes_is_read_with_class_names(tmp_path: Path, write: Any) -> None:
    samples = read_all(path=str(write(tmp_path / "set", ten_rows())))
    assert class_names(samples) == [CLASSES[n % 3] for n in range(10)]
    assert samples[4].image == b"404 Not Found", "whether it is an image, decode says"
    assert {sample.image for sample in samples if sample != samples[4]} == {JPEG}
    assert {(s.label, s.label_state) for s in samples} == {("", "unknown")}
    assert len({sample.uri for sample in samples}) == 10
    assert samples[0].uri.startswith(f"{tmp_path}/set/train#")


def test_each_file_of_a_stream_is_a_partition(tmp_path: Path) -> None:
    source = Source(Params(path=str(write_parquet(tmp_path / "set", ten_rows(), num_files=3))))
    first, *others = source.partitions()
    assert [first.id, *(p.id for p in others)] == [f"{n:05d}-of-00003" for n in range(3)]
    assert class_names(list(source.read(first))) == ["airplane", "cat", "dog", "airplane"]


def test_saved_folder_is_cut_into_ranges_of_rows(tmp_path: Path) -> None:
    source = Source(
        Params(path=str(write_saved(tmp_path / "set", ten_rows())), rows_per_partition=4)
    )
    partitions = list(source.partitions())
    assert [p.num_samples for p in partitions] == [4, 4, 2]
    assert class_names(list(source.read(partitions[2]))) == ["dog", "airplane"]


@pytest.mark.parametrize("write", [write_parquet, write_saved])
@pytest.mark.parametrize("labels", [["cat"], [1], "1"])
def test_target_is_left_out_marked_or_alone(tmp_path: Path, write: Any, labels: Any) -> None:
    params = {"path": str(write(tmp_path / "set", ten_rows())), "target_labels": labels}
    facts = {(s.class_name, s.label, s.label_state) for s in read_all(**params)}
    assert facts == {("airplane", "", "unknown"), ("dog", "", "unknown")}

    marked = read_all(**params, target="cat", target_policy="positive", labels_are_exhaustive=True)
    assert len(marked) == 10
    assert {(s.class_name, s.label, s.label_state) for s in marked} == {
        ("airplane", "", "verified_absent"),
        ("cat", "cat", "verified_present"),
        ("dog", "", "verified_absent"),
    }
    assert class_names(read_all(**params, target_policy="only")) == ["cat"] * 3


@pytest.mark.parametrize("write", [write_parquet, write_saved])
def test_reading_goes_on_where_it_was_left_also_among_rows_left_out(
    tmp_path: Path, write: Any
) -> None:
    source = Source(Params(path=str(write(tmp_path / "set", ten_rows())), target_labels=("cat",)))
    for partition in source.partitions():
        samples = list(source.read(partition))
        assert partition.num_samples is None
        for start in range(5):
            assert list(source.read_from(partition, start)) == samples[start:]


def test_misspelt_target_is_refused_with_the_classes(tmp_path: Path) -> None:
    path = str(write_saved(tmp_path / "set", ten_rows()))
    with pytest.raises(ConfigError, match=r"'kat' is none of the 3 classes: airplane, cat, dog"):
        read_all(path=path, target_labels=["kat"])


def test_split_of_a_saved_dictionary_is_chosen_by_name(tmp_path: Path) -> None:
    rows = ten_rows()
    splits = {"train": rows.select(range(6)), "test": rows.select(range(6, 10))}
    DatasetDict(splits).save_to_disk(str(tmp_path / "set"))
    assert len(read_all(path=str(tmp_path / "set"))) == 6
    assert len(read_all(path=str(tmp_path / "set"), split="test")) == 4
    with pytest.raises(ConfigError, match=r"no split 'val'.*there are train, test"):
        read_all(path=str(tmp_path / "set"), split="val")


@pytest.mark.parametrize("as_format", [False, True])
def test_folder_of_images_is_read_without_decoding(tmp_path: Path, as_format: bool) -> None:
    for name, content in (("cat/1.jpg", JPEG), ("cat/2.jpg", b"broken"), ("dog/3.png", PNG)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    params = {"path": "imagefolder", "data_dir": str(tmp_path)}
    samples = read_all(**(params if as_format else {"path": str(tmp_path)}))
    assert [(s.class_name, s.image) for s in samples] == [
        ("cat", JPEG),
        ("cat", b"broken"),
        ("dog", PNG),
    ]


def test_tars_are_read_through_datasets_too(tmp_path: Path) -> None:
    members = [
        (f"{key}.{field}", content)
        for key in ("a", "b")
        for field, content in (("cls", b"1"), ("jpg", JPEG if key == "a" else b"broken"))
    ]
    write_tar(tmp_path / "train-0.tar", members)
    samples = read_all(
        path=str(tmp_path), label_column="cls", label_names=CLASSES, target_labels=["dog"]
    )
    assert [(s.class_name, s.image) for s in samples] == [("cat", JPEG), ("cat", b"broken")]


def write_table(folder: Path, columns: dict[str, Any], features: Features | None = None) -> Path:
    """A parquet file as `datasets` writes it, but with no image put in from its path."""
    folder.mkdir(exist_ok=True)
    schema = None if features is None else features.arrow_schema
    pq.write_table(pa.table(columns, schema), folder / "train.parquet")
    return folder


@pytest.mark.parametrize("where", ["relative", "absolute", "url", "missing", "outside"])
def test_image_without_bytes_is_read_from_its_path(tmp_path: Path, where: str) -> None:
    root = tmp_path / "set"
    paths = {
        "relative": "photos/1.jpg",
        "absolute": str(root / "photos" / "1.jpg"),
        "url": "memory://hub-photos/1.jpg",
        "missing": "2.jpg",
        "outside": "../secret.jpg",
    }
    images = [{"bytes": None, "path": paths[where]}]
    write_table(root, {"image": images}, Features({"image": Image()}))
    filesystem("memory").pipe("/hub-photos/1.jpg", JPEG)
    for file in (root / "photos" / "1.jpg", tmp_path / "secret.jpg"):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(JPEG)
    [sample] = read_all(path=str(root), data_files="train.parquet")
    assert sample.image == (b"" if where in ("missing", "outside") else JPEG)


@pytest.mark.parametrize(
    "column", [pa.array([JPEG]), pa.array([{"path": "1.jpg"}]), pa.array(["1.jpg"])]
)
def test_image_may_be_bytes_or_an_address_alone(tmp_path: Path, column: pa.Array) -> None:
    write_table(tmp_path, {"image": column})
    (tmp_path / "1.jpg").write_bytes(JPEG)
    [sample] = read_all(path=str(tmp_path), data_files="*.parquet")
    assert sample.image == JPEG


def test_column_that_is_not_asked_for_is_not_decoded(tmp_path: Path) -> None:
    features = Features({"photo": Image(), "mask": Image(), "who": Value("string")})
    rows = {"photo": [{"bytes": JPEG, "path": None}], "mask": [{"bytes": b"?", "path": None}]}
    write_table(tmp_path, {**rows, "who": ["Ada"]}, features)
    with pytest.raises(ConfigError, match=r"no column 'face'.*params\.image_column.*photo, mask"):
        read_all(path=str(tmp_path), image_column="face")
    [sample] = read_all(
        path=str(tmp_path), image_column="photo", author_column="who", group_column="who"
    )
    assert (sample.image, sample.author, sample.group) == (JPEG, "Ada", "Ada")


def test_several_columns_of_images_without_a_usual_name_are_asked_about(tmp_path: Path) -> None:
    features = Features({"left": Image(), "right": Image()})
    image = [{"bytes": JPEG, "path": None}]
    write_table(tmp_path, {"left": image, "right": image}, features)
    with pytest.raises(ConfigError, match=r"set `params\.image_column`.*left.*right"):
        read_all(path=str(tmp_path))


def test_one_of_several_labels_makes_a_target(tmp_path: Path) -> None:
    features = Features({"image": Image(), "labels": List(ClassLabel(names=CLASSES))})
    images = [{"bytes": JPEG, "path": None}] * 3
    write_table(tmp_path, {"image": images, "labels": [[0, 1], [2, 0], []]}, features)
    samples = read_all(
        path=str(tmp_path),
        target_labels="cat",
        target_policy="positive",
        labels_are_exhaustive=True,
    )
    assert [(s.class_name, s.label_state) for s in samples] == [
        ("airplane, cat", "verified_present"),
        ("dog, airplane", "verified_absent"),
        (None, "unknown"),
    ]


@pytest.mark.parametrize("label", [-1, None])
def test_row_without_label_is_read_and_says_nothing(tmp_path: Path, label: int | None) -> None:
    write_table(tmp_path, {"img": [{"bytes": JPEG, "path": None}], "label": [label]}, FEATURES)
    [sample] = read_all(path=str(tmp_path), target_labels=["cat"], labels_are_exhaustive=True)
    assert (sample.class_name, sample.label_state) == (None, "unknown")


def test_broken_file_gives_an_error_that_names_the_set_and_the_row(tmp_path: Path) -> None:
    root = write_parquet(tmp_path / "set", ten_rows(), num_files=1)
    [file] = root.iterdir()
    data = bytearray(file.read_bytes())
    end = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(3).column(0).data_page_offset
    data[end : end + 200] = b"\xff" * 200
    file.write_bytes(data)
    source = Source(Params(path=str(root)))
    [partition] = source.partitions()
    samples = []
    with pytest.raises(InfinegError) as caught:  # noqa: PT012
        for sample in source.read(partition):
            samples.append(sample)
    # `datasets` reads ahead, so that it may lose row groups before the broken one, the fourth.
    assert len(samples) <= 6
    assert f"{root}/train#00000-of-00001, row {len(samples)}: broken" in str(caught.value)
    assert class_names(samples) == [*CLASSES, *CLASSES][: len(samples)]


@pytest.mark.usefixtures("offline")
def test_hub_out_of_reach_says_what_was_tried_and_what_to_do() -> None:
    with pytest.raises(InfinegError) as caught:
        read_all(path="uoft-cs/cifar10", split="test", revision="abc")
    for part in ("uoft-cs/cifar10", "huggingface.co", "split test", "revision abc",
                 "HF_HUB_OFFLINE is set", "local copy", "HF_ENDPOINT", "HF_TOKEN"):  # fmt: skip
        assert part in str(caught.value)


def test_nothing_calls_home() -> None:
    assert datasets.config.HF_UPDATE_DOWNLOAD_COUNTS is False
    assert huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY is True


def test_loading_script_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    script = tmp_path / "set" / "set.py"
    script.write_text("raise SystemExit('was run')")
    with pytest.raises(ConfigError, match=r"loading script.*refs/convert/parquet"):
        read_all(path=str(tmp_path / "set"))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"path": "missing"}, r"missing: .*check `params\.path`"),
        ({"path": "empty"}, r"empty: .*check `params\.path`"),
        ({"path": "set", "split": "val"}, r"Bad split: val.*check `params\.name`, `params\.split`"),
        ({"path": "set", "name": "plain"}, r"'plain' not found.*check `params\.name`"),
        ({"path": "set", "label_column": "class"}, r"no column 'class'.*params\.label_column"),
        ({"path": "set", "target_policy": "only"}, r"needs `params\.target_labels`"),
    ],
)
def test_wrong_setting_is_named(tmp_path: Path, params: dict[str, str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    write_parquet(tmp_path / "set", ten_rows())
    with pytest.raises(ConfigError, match=message):
        read_all(**{**params, "path": str(tmp_path / params["path"])})


def test_url_of_a_folder_is_refused_with_the_way_to_say_it() -> None:
    with pytest.raises(ConfigError, match=r"params\.path.*data_files"):
        open_source("huggingface", {"path": "s3://bucket/set"})


def test_address_of_the_hub_may_be_written_out() -> None:
    assert Params(path="hf://datasets/uoft-cs/cifar10").path == "uoft-cs/cifar10"


def write_images(folder: Path, metadata: dict[str, str]) -> Path:
    """Three images, and files of metadata by their names."""
    for number in range(3):
        (folder / "in").mkdir(parents=True, exist_ok=True)
        (folder / "in" / f"{number}.jpg").write_bytes(JPEG)
    for name, text in metadata.items():
        (folder / name).write_text(text)
    return folder


def rows_of(*names: str) -> str:
    return "".join(json.dumps({"file_name": name, "label": "cat"}) + "\n" for name in names)


def test_images_and_rows_of_metadata_without_each_other_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = rows_of("in/0.jpg", "in/x.jpg", "./in/1.jpg")
    samples = read_all(path=str(write_images(tmp_path / "set", {"metadata.jsonl": rows})))
    assert [len(sample.image) > 0 for sample in samples] == [True, False, True]
    assert (
        '3 rows of metadata.jsonl: 1 name no image, such as "in/x.jpg"; '
        '3 images: 1 have no row, such as "in/2.jpg"' in caplog.text
    )


def test_metadata_that_fit_their_images_tell_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_images(
        tmp_path / "set", {"in/metadata.jsonl": rows_of(*map("{}.jpg".format, range(3)))}
    )
    assert class_names(read_all(path=str(folder))) == ["cat"] * 3
    assert not caplog.records


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_metadata_that_fit_no_image_are_an_error(tmp_path: Path, name: str) -> None:
    rows = rows_of("0.jpg", "1.jpg") if name.endswith("jsonl") else "file_name,label\n0.jpg,cat\n"
    folder = write_images(tmp_path / "set", {name: rows})
    with pytest.raises(
        ConfigError,
        match=r'name no image, such as "0.jpg".*3 have no row, such as "in/0.jpg".*file_name',
    ):
        read_all(path=str(folder))


def test_metadata_in_another_encoding_are_refused_by_name(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set", {})
    (folder / "metadata.csv").write_bytes("file_name,label\nin/0.jpg,cat\n".encode("utf-16"))
    with pytest.raises(ConfigError, match=r"metadata\.csv: UTF-16; labels are read as UTF-8"):
        read_all(path=str(folder))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.jsonl", '[{"file_name": "in/0.jpg"}]', "row 1 is .* no JSON object"),
        ("metadata.csv", f"file_name,label\nin/0.jpg,{'x' * 200_000}\n", "no CSV: field larger"),
    ],
)
def test_metadata_of_another_form_are_refused(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"{name}: {message}"):
        read_all(path=str(write_images(tmp_path / "set", {name: text})))


def test_images_that_no_split_has_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`datasets` takes a class of trains for the split of that name, and nothing else."""
    for name in ("cat/0.jpg", "dog/0.jpg", "train/0.jpg"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(JPEG)
    assert len(read_all(path=str(tmp_path / "set"))) == 1
    assert "2 of 3 files are in no split of `datasets`" in caplog.text
    assert '.jpg 2, such as "cat/0.jpg", "dog/0.jpg"' in caplog.text


def test_commit_is_the_version_of_a_data_set_of_the_hub() -> None:
    """The Hub, which is out of reach here, need not be asked: a commit never changes."""
    versions = [Source(Params(path="user/cats", revision=c * 40)).files() for c in "ab"]
    assert [(v.uri, v.size, v.stamp) for v in versions[0]] == [("user/cats/train", None, "a" * 40)]
    assert versions[0] != versions[1]


def test_files_of_the_split_that_is_read_are_listed(tmp_path: Path) -> None:
    saved, folder = tmp_path / "saved", tmp_path / "folder"
    DatasetDict({"train": ten_rows(), "test": ten_rows()}).save_to_disk(str(saved))
    names = {Path(v.uri).relative_to(saved) for v in Source(Params(path=str(saved))).files()}
    beside = ("data-00000-of-00001.arrow", "dataset_info.json", "state.json")
    assert names == {Path("train") / name for name in beside}
    folder.mkdir()
    (folder / "a.jpg").write_bytes(JPEG)
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a.jpg"}))
    found = {Path(v.uri).name for v in Source(Params(path=str(folder))).files()}
    assert found == {"a.jpg", "metadata.jsonl"}
