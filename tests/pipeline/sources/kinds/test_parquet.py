"""Parquet as `datasets`, pandas and others write it."""

import contextlib
import itertools
import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec import filesystem

from pipeline.dataset.schema import RawSample
from pipeline.errors import ConfigError, InfinegError
from pipeline.sources import open_source
from pipeline.sources.kinds.parquet import Params, Source
from pipeline.sources.readers import tars
from support.corpus import encode, quadrants

JPEG = encode(quadrants())
CLASSES = ["airplane", "cat", "dog"]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def read_all(*urls: object, **params: Any) -> list[RawSample]:
    source = Source(Params(urls=tuple(map(str, urls)), **params))
    return [sample for partition in source.partitions() for sample in source.read(partition)]


def write(path: Path, columns: dict[str, Any], *, rows_per_group: int = 2, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group, **options)
    return path


def hub_table(num_rows: int, first: int = 0) -> pa.Table:
    """As `datasets` writes it: struct images, and the names of the classes in the schema."""
    numbers = range(first, first + num_rows)
    images = [{"bytes": JPEG + bytes([n]), "path": f"{n}.jpg"} for n in numbers]
    table = pa.table(
        {"img": pa.array(images, STRUCT), "label": pa.array([n % 3 for n in numbers], pa.int64())}
    )
    features = {"img": {"_type": "Image"}, "label": {"names": CLASSES, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return table.replace_schema_metadata(metadata)


def write_hub(path: Path, num_rows: int = 10, first: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(hub_table(num_rows, first), path, row_group_size=2)
    return path


def test_classes_have_the_names_that_the_schema_tells(tmp_path: Path) -> None:
    path = write_hub(tmp_path / "train-00000-of-00001.parquet")
    samples = read_all(path)
    assert [s.class_name for s in samples] == [CLASSES[n % 3] for n in range(10)]
    assert [s.image for s in samples] == [JPEG + bytes([n]) for n in range(10)]
    assert [s.uri for s in samples] == [f"{path}#{n}" for n in range(10)]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([JPEG, None, b"?"], pa.binary()),
        pa.array([JPEG, None, b"?"], pa.large_binary()),
        pa.array([JPEG, b"", b"?"], pa.binary()).dictionary_encode(),
        pa.array([{"bytes": JPEG}, {"bytes": None}, {"bytes": b"?"}]),
        pa.array(
            [{"path": "gone.jpg", "bytes": JPEG}, None, {"path": None, "bytes": b"?"}], STRUCT
        ),
        pa.array([{"path": "1.jpg"}, {"path": "gone.jpg"}, {"path": "2.jpg"}]),
        pa.array(["1.jpg", "gone.jpg", "2.jpg"], pa.string()),
        pa.array(["1.jpg", None, "2.jpg"], pa.large_string()),
    ],
)
def test_image_may_be_bytes_or_an_address_or_both(tmp_path: Path, column: pa.Array) -> None:
    (tmp_path / "1.jpg").write_bytes(JPEG)
    (tmp_path / "2.jpg").write_bytes(b"?")
    path = write(tmp_path / "a.parquet", {"image": column})
    assert [s.image for s in read_all(path)] == [JPEG, b"", b"?"]


def test_null_bytes_are_read_from_the_path_on_any_storage(tmp_path: Path) -> None:
    filesystem("memory").pipe("/table-photos/1.jpg", JPEG)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "2.jpg").write_bytes(JPEG)
    paths = ["memory://table-photos/1.jpg", "photos/2.jpg", str(tmp_path / "photos" / "2.jpg")]
    images = pa.array([{"bytes": None, "path": path} for path in paths], STRUCT)
    samples = read_all(write(tmp_path / "a.parquet", {"image": images}))
    assert [s.image for s in samples] == [JPEG] * 3
    assert len({s.uri for s in samples}) == 3


@pytest.mark.parametrize(
    "path",
    ["../secret.jpg", "a/../../secret.jpg", "pipe:cat secret.jpg", "ssh://host/a.jpg",
     "simplecache::file:///etc/hostname", "a\0b.jpg", "https://"],
)  # fmt: skip
def test_table_leads_to_no_file_outside_of_its_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.jpg").write_bytes(JPEG)
    images = pa.array([path, "1.jpg"])
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "1.jpg").write_bytes(JPEG)
    samples = read_all(write(tmp_path / "set" / "a.parquet", {"image": images}))
    assert [s.image for s in samples] == [b"", JPEG]


@pytest.mark.parametrize("path", ["{}/1.jpg", "file://{}/1.jpg"])
def test_table_elsewhere_names_no_file_of_this_machine(tmp_path: Path, path: str) -> None:
    (tmp_path / "1.jpg").write_bytes(JPEG)
    write(tmp_path / "a.parquet", {"image": pa.array([path.format(tmp_path)])})
    memory = filesystem("memory")
    memory.pipe("/set/a.parquet", (tmp_path / "a.parquet").read_bytes())
    [sample] = read_all("memory://set/a.parquet")
    assert sample.image == b""
    [local] = read_all(tmp_path / "a.parquet")
    assert local.image == JPEG


def test_address_that_cannot_be_reached_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.retry._FIRST_WAIT_S", 0.0)
    images = pa.array(["http://127.0.0.1:9/1.jpg", "1.jpg"])
    (tmp_path / "1.jpg").write_bytes(JPEG)
    samples = read_all(write(tmp_path / "a.parquet", {"image": images}))
    assert [s.image for s in samples] == [b"", JPEG]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["image", "thumb"], "image"),
        (["thumb", "img"], "img"),
        (["JPG"], "JPG"),
        (["content"], "content"),
    ],
)
def test_image_column_is_found_by_name_or_as_the_only_one(
    tmp_path: Path, columns: list[str], expected: str
) -> None:
    data = {"caption": ["a cat"]} | {name: [name.encode()] for name in columns}
    [sample] = read_all(write(tmp_path / "a.parquet", data))
    assert sample.image == expected.encode()


def test_text_of_another_name_is_never_fetched_unasked(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(JPEG)
    path = write(tmp_path / "a.parquet", {"url": ["1.jpg"], "width": [96]})
    with pytest.raises(ConfigError, match=r"set `params\.image_column`; there are url \(texts\)"):
        read_all(path)
    [sample] = read_all(path, image_column="url")
    assert sample.image == JPEG
    with pytest.raises(ConfigError, match=r"'width' holds neither bytes nor addresses"):
        read_all(path, image_column="width")


def test_columns_of_facts_are_carried(tmp_path: Path) -> None:
    data = {"image": [JPEG] * 2, "license": ["CC0", ""], "author": ["Ada", None],
            "patient": [7, None], "kind": ["cat", "dog"]}  # fmt: skip
    path = write(tmp_path / "a.parquet", data)
    first, second = read_all(path, label_column="kind", group_column="patient")
    assert (first.class_name, first.license, first.author, first.group) == (
        "cat", "CC0", "Ada", "7",
    )  # fmt: skip
    assert (second.class_name, second.license, second.author, second.group) == (
        "dog", None, None, None,
    )  # fmt: skip


@pytest.mark.parametrize("names", ["list", "lines", "json_list", "id2label"])
def test_names_of_numbers_may_be_given(tmp_path: Path, names: str) -> None:
    texts = {
        "lines": "airplane\ncat\ndog\n",
        "json_list": json.dumps(CLASSES),
        "id2label": json.dumps(dict(enumerate(CLASSES))),
    }
    label_names: Any = CLASSES
    if names != "list":
        label_names = str(tmp_path / ("names.txt" if names == "lines" else "names.json"))
        Path(label_names).write_text(texts[names])
    path = write(tmp_path / "a.parquet", {"image": [JPEG] * 3, "label": [2, 1, 0]})
    samples = read_all(path, label_names=label_names, target_labels=["cat"])
    assert [s.class_name for s in samples] == ["dog", "airplane"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"label_names": ["a", "b"]}, r"class '2' is none of the 2 known.*params\.label_names"),
        (
            {"label_names": "missing.txt"},
            r"missing\.txt: no such text file; check `params\.label_names`",
        ),
        ({"target_labels": ["cat"], "label_column": "no"}, r"no column 'no'"),
        ({"labels_are_exhaustive": True}, r"needs `params\.target_labels`.*`label_state:"),
        ({"target_policy": "positive"}, r"positive needs `params\.target_labels`"),
        ({"license_column": "terms"}, r"no column 'terms'; check `params\.license_column`"),
    ],
)
def test_wrong_setting_is_named(tmp_path: Path, params: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "a.parquet", {"image": [JPEG] * 3, "label": [2, 1, 0]})
    with pytest.raises(ConfigError, match=message):
        read_all(path, **params)


def test_target_without_a_column_of_classes_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": [JPEG], "kind": ["cat"]})
    with pytest.raises(ConfigError, match=r"give `params\.label_column`.*has image, kind"):
        read_all(path, target_labels=["cat"])


def test_target_is_left_out_marked_or_alone(tmp_path: Path) -> None:
    params = {"target_labels": ["cat"], "labels_are_exhaustive": True}
    path = write_hub(tmp_path / "a.parquet", 6)
    facts = [(s.class_name, s.label, s.label_state) for s in read_all(path, **params)]
    absent = [("airplane", "", "verified_absent"), ("dog", "", "verified_absent")]
    assert facts == absent * 2
    marked = read_all(path, **params, target_policy="positive")
    assert ("cat", "cat", "verified_present") in {
        (s.class_name, s.label, s.label_state) for s in marked
    }
    assert len(marked) == 6
    assert [s.uri for s in read_all(path, **params, target_policy="only")] == [
        f"{path}#1", f"{path}#4",
    ]  # fmt: skip


@pytest.mark.parametrize("policy", ["exclude", "positive", "only"])
def test_reading_goes_on_where_it_was_left(tmp_path: Path, policy: str) -> None:
    path = write_hub(tmp_path / "a.parquet", 20)
    source = Source(Params(urls=(str(path),), target_labels=("cat",), target_policy=policy))
    [partition] = source.partitions()
    samples = list(source.read(partition))
    for start in range(len(samples) + 2):
        assert list(source.read_from(partition, start)) == samples[start:]


def test_row_groups_that_are_passed_over_are_not_read(tmp_path: Path) -> None:
    path = write_hub(tmp_path / "a.parquet", 10)
    group = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[group.data_page_offset : group.data_page_offset + 64] = b"\xff" * 64
    path.write_bytes(data)
    source = Source(Params(urls=(str(path),)))
    [partition] = source.partitions()
    assert len(list(source.read_from(partition, 4))) == 6, "rows 2 and 3 are in the broken group"


def test_row_groups_are_joined_into_partitions_of_their_own_rows(tmp_path: Path) -> None:
    path = write_hub(tmp_path / "a.parquet", 10)
    source = Source(Params(urls=(str(path),), rows_per_partition=4))
    partitions = list(source.partitions())
    assert [p.num_samples for p in partitions] == [4, 4, 2]
    assert [p.id for p in partitions] == [f"{path}#0-2-4", f"{path}#2-4-4", f"{path}#4-5-2"]
    assert [s.uri for s in source.read(partitions[1])] == [f"{path}#{n}" for n in range(4, 8)]
    write_hub(path, 11)
    assert list(source.partitions())[2].id == f"{path}#4-6-3", "a file written anew is another"


@pytest.mark.parametrize(
    "urls",
    [
        "{root}", "{root}/", "{root}/*/*.parquet", "{root}/**/*-of-*.parquet",
        "{root}/data/train-{{00000..00001}}-of-00002.parquet", "{root}/data/train-?0*.parquet",
        "file://{root}/data",
    ],
)  # fmt: skip
def test_files_are_named_by_folder_glob_or_braces(tmp_path: Path, urls: str) -> None:
    for number in range(2):
        write_hub(tmp_path / "data" / f"train-{number:05d}-of-00002.parquet", 3, first=3 * number)
    for hidden in ("_temporary/0.parquet", ".cache/a.parquet"):
        if "*" not in urls:
            write_hub(tmp_path / "data" / hidden, 1)
    (tmp_path / "data" / "README.md").write_text("a set")
    samples = read_all(urls.format(root=tmp_path))
    assert [s.image[-1] for s in samples] == list(range(6))


def test_object_store_is_read_like_a_disk(tmp_path: Path) -> None:
    path = write_hub(tmp_path / "a.parquet", 3)
    filesystem("memory").pipe("/table-set/a.parquet", path.read_bytes())
    for urls in ("memory://table-set", "memory://table-set/*.parquet"):
        assert [s.uri for s in read_all(urls)] == [
            f"memory://table-set/a.parquet#{n}" for n in range(3)
        ]


def test_of_very_many_files_none_is_opened_before_it_is_read() -> None:
    source = Source(Params(urls=("s3://bucket/{00000..99999}.parquet",)))
    with pytest.raises(ConfigError, match="no such file"):
        next(Source(Params(urls=("/missing/{0..999}.parquet",))).partitions())
    partition = next(source.partitions())
    assert (partition.id, partition.num_samples) == ("s3://bucket/00000.parquet", None)


def test_whole_file_is_a_partition_too(tmp_path: Path) -> None:
    from pipeline.dataset.schema import Partition

    path = str(write_hub(tmp_path / "a.parquet", 5))
    samples = list(Source(Params(urls=(path,))).read(Partition(path, [path, 0, None])))
    assert [s.uri for s in samples] == [f"{path}#{n}" for n in range(5)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"<html>404</html>" * 9, r"a\.parquet: not a parquet file, or broken"),
        ("a.parquet", b"", r"a\.parquet: not a parquet file, or broken"),
        ("a.parquet", None, r"a\.parquet: no such file"),
        ("folder", None, r"folder: no such file"),
        ("*.parquet", None, r"\*\.parquet: no file.*check `params\.urls`"),
    ],
)
def test_what_is_no_parquet_is_named(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InfinegError, match=message):
        read_all(tmp_path / name)


def test_file_named_twice_is_refused(tmp_path: Path) -> None:
    path = write_hub(tmp_path / "a.parquet", 1)
    with pytest.raises(ConfigError, match=r"a\.parquet is named twice"):
        read_all(tmp_path, path)


@pytest.mark.parametrize("codec", ["none", "snappy", "zstd"])
def test_damaged_file_gives_all_that_is_whole_and_then_says_where_it_breaks(
    tmp_path: Path, codec: str
) -> None:
    rows = {"image": [bytes([n]) * 3000 for n in range(40)]}
    path = write(
        tmp_path / "a.parquet", rows, rows_per_group=10, compression=codec, use_dictionary=False,
        data_page_size=6000, write_batch_size=2,
    )  # fmt: skip
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    middle = chunk.data_page_offset + chunk.total_compressed_size // 2
    data[middle : middle + chunk.total_compressed_size // 4] = b"\xff" * (
        chunk.total_compressed_size // 4
    )
    path.write_bytes(data)
    source = Source(Params(urls=(str(path),)))
    [partition] = source.partitions()
    numbers: list[int] = []
    message = r"a\.parquet: row group 1, row [2-8]: broken parquet"
    with pytest.raises(InfinegError, match=message):  # noqa: PT012
        for sample in source.read(partition):
            numbers.append(int(sample.uri.rpartition("#")[2]))
    whole = [n for n in numbers if 10 <= n < 20]
    assert numbers == [*range(10), *whole, *range(20, 40)], "row groups after it are whole"
    assert whole == list(range(10, 10 + len(whole)))
    assert len(whole) >= 2, "pages before the damage are whole"


def test_image_too_large_is_counted_but_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars, "MAX_MEMBER_BYTES", 5000)
    (tmp_path / "1.jpg").write_bytes(b"x" * 5001)
    path = write(tmp_path / "a.parquet", {"image": [b"x" * 5001, JPEG]})
    assert [s.image for s in read_all(path)] == [b"", JPEG]
    path = write(tmp_path / "b.parquet", {"image": ["1.jpg"]})
    assert [s.image for s in read_all(path)] == [b""]


def test_memory_does_not_grow_with_the_row_group(tmp_path: Path) -> None:
    rows = {"image": [bytes([n]) * 200_000 for n in range(200)]}  # 40 MB
    path = write(tmp_path / "a.parquet", rows, rows_per_group=200, compression="none",
                 use_dictionary=False, write_batch_size=4)  # fmt: skip
    source = Source(Params(urls=(str(path),)))
    [partition] = source.partitions()
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    peak = max(pa.total_allocated_bytes() - before for _ in source.read(partition))
    python_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20
    assert python_peak < 16 << 20


def test_shell_is_refused() -> None:
    with pytest.raises(ConfigError, match="shell"):
        list(open_source("parquet", {"urls": "pipe:cat a.parquet"}).partitions())


def test_first_rows_come_before_the_last_are_read(tmp_path: Path) -> None:
    path = write_hub(tmp_path / "a.parquet", 100)
    data = path.read_bytes()
    last = pq.ParquetFile(path).metadata.row_group(49).column(0).data_page_offset
    path.write_bytes(data[:last] + b"\xff" * 64 + data[last + 64 :])
    source = Source(Params(urls=(str(path),)))
    [partition] = source.partitions()
    assert len(list(itertools.islice(source.read(partition), 98))) == 98


def test_one_large_value_that_many_rows_share_is_in_memory_once(tmp_path: Path) -> None:
    values = pa.array([bytes(20 << 20), JPEG], pa.binary())
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 200 + [1, None, 0], pa.int32()), values)
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"image": rows, "label": range(203)}), path, compression="zstd",
        store_schema=False,
        dictionary_pagesize_limit=1 << 30,
    )  # fmt: skip
    assert path.stat().st_size < 10_000
    before, began, sizes = pa.total_allocated_bytes(), time.monotonic(), []
    tracemalloc.start()
    source = Source(Params(urls=(str(path),)))
    for sample in itertools.chain.from_iterable(map(source.read, source.partitions())):
        sizes.append(len(sample.image))
        assert pa.total_allocated_bytes() - before < 150 << 20
    assert tracemalloc.get_traced_memory()[1] < 60 << 20
    tracemalloc.stop()
    assert sizes == [20 << 20] * 200 + [len(JPEG), 0, 20 << 20]
    assert time.monotonic() - began < 10


def test_column_that_unpacks_to_gigabytes_is_refused_and_other_groups_are_read(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.parquet"
    schema = pa.schema([("image", pa.binary())])
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        writer.write_table(pa.table({"image": [JPEG]}, schema))
        writer.write_table(pa.table({"image": [bytes(100 << 20)] * 3}, schema))
        writer.write_table(pa.table({"image": [JPEG]}, schema))
    source = Source(Params(urls=(str(path),)))
    read = []
    with pytest.raises(InfinegError, match=r"row group 1 unpacks to"):  # noqa: PT012
        for partition in source.partitions():
            for sample in source.read(partition):
                read.append(sample.image)
    assert read == [JPEG, JPEG]


def test_text_that_is_no_utf8_is_read(tmp_path: Path) -> None:
    label = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9"], pa.binary()).buffers())
    [sample] = read_all(write(tmp_path / "a.parquet", {"image": [JPEG], "label": label}))
    assert (sample.image, sample.class_name) == (JPEG, "caf\ufffd")


def test_any_wrong_bytes_give_rows_or_a_message(tmp_path: Path) -> None:
    columns = {"image": [JPEG[:200] + bytes([n]) for n in range(8)], "label": ["cat", "dog"] * 4}
    sound = write(tmp_path / "a.parquet", columns, rows_per_group=4).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(sound)
        for at in rng.integers(len(broken) // 2, len(broken), 2):
            broken[at] = rng.integers(0, 256)
        (tmp_path / "a.parquet").write_bytes(broken)
        with contextlib.suppress(InfinegError):
            read_all(tmp_path / "a.parquet", target_labels=["cat"])
