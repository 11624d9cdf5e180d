import collections
import gc
import io
import itertools
import json
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import webdataset

from pipeline.dataset.images import decode_image
from pipeline.dataset.schema import ImageSettings, RawSample
from pipeline.errors import ConfigError, InfinegError
from pipeline.sources import open_source
from pipeline.sources.kinds.webdataset import Params, Source
from pipeline.sources.readers import tars
from pipeline.sources.readers.patterns import expand_braces
from pipeline.sources.readers.tar_headers import Header
from support.corpus import CountingFile, encode, quadrants, write_tar

JPEG = encode(quadrants())


def read(path: Path, **params: str) -> list[RawSample]:
    source = Source(Params(urls=(str(path),), **params))
    [partition] = source.partitions()
    return list(source.read(partition))


def names(samples: list[RawSample]) -> list[str]:
    return [sample.uri.partition("#")[2] for sample in samples]


def test_tar_of_the_webdataset_writer_is_read_with_its_facts(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with webdataset.TarWriter(str(path)) as writer:
        facts = {"license": "CC0", "author": "Ada", "url": "https://example.org/1"}
        writer.write({"__key__": "x/001", "jpg": JPEG, "cls": 7, "json": facts})
        writer.write({"__key__": "x/002", "jpg": JPEG, "cls": 8})
    first, second = read(path, class_field="cls")
    assert first.uri == f"{path}#x/001.jpg"
    assert first.image == JPEG
    assert (first.class_name, first.license, first.author) == ("7", "CC0", "Ada")
    assert (second.class_name, second.license, second.author) == ("8", None, None)


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_compressed_tar_is_read_as_a_stream(tmp_path: Path, compression: str) -> None:
    path = write_tar(tmp_path / "a.tar", [("1.jpg", JPEG), ("2.jpg", JPEG)], f"w:{compression}")
    assert names(read(path)) == ["1.jpg", "2.jpg"]


def test_suffix_in_capitals_and_other_formats_are_images(tmp_path: Path) -> None:
    members = [("1.JPG", JPEG), ("2.jpeg", JPEG), ("3.PNG", JPEG), ("4.webp", JPEG)]
    assert names(read(write_tar(tmp_path / "a.tar", members))) == [name for name, _ in members]


def test_dotted_names_lose_no_image_and_stay_in_one_group(tmp_path: Path) -> None:
    members = [("photo.1.jpg", JPEG), ("photo.2.jpg", JPEG), ("photo.json", b"{}"), ("b.jpg", JPEG)]
    samples = read(write_tar(tmp_path / "a.tar", members))
    assert names(samples) == ["photo.1.jpg", "photo.2.jpg", "b.jpg"]
    groups = [sample.group for sample in samples]
    assert groups == [f"{tmp_path}/a.tar#photo"] * 2 + [None]


def test_sample_without_image_is_read_and_then_rejected(tmp_path: Path) -> None:
    [sample] = read(write_tar(tmp_path / "a.tar", [("1.txt", b"a cat"), ("1.json", b"{}")]))
    assert sample.image == b""
    settings = ImageSettings(image_size=256)
    assert decode_image(sample.image, rotation=0, settings=settings) == "unreadable"


def test_names_with_dots_and_slashes_are_only_text(tmp_path: Path) -> None:
    members = [("../../etc/1.jpg", JPEG), ("/abs/2.jpg", JPEG), ("./3.jpg", JPEG)]
    path = write_tar(tmp_path / "a.tar", members)
    before = sorted(tmp_path.rglob("*"))
    assert names(read(path)) == [name for name, _ in members]
    assert sorted(tmp_path.rglob("*")) == before


def test_name_that_occurs_twice_gives_two_uris(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("1.jpg", JPEG), ("2.jpg", JPEG), ("1.jpg", JPEG)])
    assert names(read(path)) == ["1.jpg", "2.jpg", "1.jpg@2"]


def test_meta_members_and_names_without_suffix_are_no_samples(tmp_path: Path) -> None:
    members = [("__manifest__", b"x"), ("__meta__/a.jpg", JPEG), ("README", b"x"),
               (".DS_Store", b"x"), ("1.jpg", JPEG)]  # fmt: skip
    assert names(read(write_tar(tmp_path / "a.tar", members))) == ["1.jpg"]


def test_link_out_of_the_tar_is_a_reject_and_a_folder_no_sample(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("1.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        folder = tarfile.TarInfo("2.jpg")
        folder.type = tarfile.DIRTYPE
        archive.addfile(link)
        archive.addfile(folder)
    [sample] = read(path)
    assert (sample.uri, sample.image) == (f"{path}#1.jpg", b"")


@pytest.mark.parametrize("damage", ["cut_in_content", "cut_in_header", "wrong_header", "cut_gz"])
def test_broken_tar_gives_all_that_is_whole_and_then_says_where_it_breaks(
    tmp_path: Path, damage: str
) -> None:
    is_gz = damage == "cut_gz"
    noise = [bytes(i * j % 251 for i in range(3000)) for j in range(1, 4)]
    path = write_tar(
        tmp_path / "a.tar",
        [(f"{number}.jpg", content) for number, content in enumerate(noise)],
        "w:gz" if is_gz else "w",
    )
    data = bytearray(path.read_bytes())
    third = 2 * (512 + 3072)  # where the third header begins
    if damage == "cut_in_content":
        del data[third + 512 + 100 :]
    elif damage == "cut_in_header":
        del data[third + 100 :]
    elif damage == "wrong_header":
        data[third : third + 4] = b"oops"
    else:
        del data[-200:]
    path.write_bytes(data)

    source = Source(Params(urls=(str(path),)))
    [partition] = source.partitions()
    samples = source.read(partition)
    assert [sample.image for sample in itertools.islice(samples, 2)] == noise[:2]
    with pytest.raises(InfinegError, match=r"a\.tar: broken tar (after '1|at '2)\.jpg', byte \d+"):
        next(samples)


@pytest.mark.parametrize("content", [b"", b"<html>404 Not Found</html>" * 100])
def test_file_that_is_no_tar_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(InfinegError, match=r"a\.tar: broken tar at its start"):
        read(tmp_path / "a.tar")


def test_tar_that_ends_without_its_zero_blocks_is_whole(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("1.jpg", JPEG), ("2.jpg", JPEG)])
    size = 2 * (512 + -(-len(JPEG) // 512) * 512)
    path.write_bytes(path.read_bytes()[:size])
    assert names(read(path)) == ["1.jpg", "2.jpg"]


def test_member_too_large_for_memory_is_counted_but_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars, "MAX_MEMBER_BYTES", 5000)
    path = write_tar(tmp_path / "a.tar", [("1.jpg", b"x" * 5001), ("2.jpg", JPEG)])
    assert [sample.image for sample in read(path)] == [b"", JPEG]


@pytest.mark.parametrize(
    "description", [b"{", b"[1]", b"\xff\xfe", json.dumps({"author": 3}).encode()]
)
def test_useless_description_costs_no_picture(tmp_path: Path, description: bytes) -> None:
    [sample] = read(write_tar(tmp_path / "a.tar", [("1.jpg", JPEG), ("1.json", description)]))
    assert (sample.image, sample.author) == (JPEG, None)


def test_missing_tar_is_named_with_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.tar: no such tar; check `params\.urls`"):
        read(tmp_path / "no.tar")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{008..011}.tar", ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]),
        ("{x,y}/{0..1}", ["x/0", "x/1", "y/0", "y/1"]),
    ],
)
def test_braces_expand_as_in_a_shell(pattern: str, expected: list[str]) -> None:
    assert list(expand_braces(pattern)) == expected


def test_braces_that_count_down_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\{3\.\.1\} counts down"):
        list(expand_braces("a-{3..1}.tar"))


def test_tar_named_twice_is_refused() -> None:
    source = Source(Params(urls=("a-{0..3}.tar", "a-2.tar")))
    with pytest.raises(ConfigError, match=r"a-2\.tar is named twice"):
        list(source.partitions())


@pytest.mark.parametrize("url", ["pipe:cat a.tar", "|cat a.tar"])
def test_url_that_runs_a_shell_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"params\.urls.*shell"):
        open_source("webdataset", {"urls": url})


def test_huge_pattern_costs_nothing_before_it_is_read() -> None:
    source = Source(Params(urls=("s3://bucket/{000000000..999999999}.tar",)))
    first = next(iter(source.partitions()))
    assert first.id == "s3://bucket/000000000.tar"


def test_headers_of_a_long_tar_do_not_pile_up_in_memory(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{number}.jpg", b"") for number in range(500)])
    source = Source(Params(urls=(str(path),)))
    [partition] = source.partitions()
    samples = source.read(partition)
    assert len(list(itertools.islice(samples, 499))) == 499
    assert sum(type(each) is Header for each in gc.get_objects()) < 10


@pytest.mark.parametrize("compression", ["", "gz"])
@pytest.mark.parametrize("params", [{}, {"class_field": "cls", "target_labels": ["1"]}])
def test_reading_goes_on_where_it_was_left(
    tmp_path: Path, compression: str, params: dict[str, Any]
) -> None:
    members = [("a.cls", b"0"), ("a.jpg", JPEG), ("b.jpg", JPEG), ("b.cls", b"1"), ("c.cls", b"0"),
               ("c.json", b"{}"), ("d.cls", b"0"), ("d.1.jpg", b"1"), ("d.2.jpg", b"2"),
               ("d.3.png", b"3"), ("README", b"x"), ("a.jpg", b"again"), ("e.jpg", b"e"),
               ("e.cls", b"1"), ("f.txt", b"f"), ("g.jpg", b"g")]  # fmt: skip
    path = write_tar(tmp_path / "a.tar", members, f"w:{compression}")
    source = Source(Params(urls=(str(path),), **params))
    [partition] = source.partitions()
    samples = list(source.read(partition))
    assert len(samples) == (8 if params else 10)
    for start in range(len(samples) + 2):
        assert list(source.read_from(partition, start)) == samples[start:]


def test_images_before_the_start_are_not_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{n}.jpg", bytes(100_000)) for n in range(20)])
    file = CountingFile(path.read_bytes())
    number = itertools.count()
    list(tars.read_members(file, "uri", lambda _: next(number) >= 18))
    assert file.num_read < 250_000, "what the reader's own counting relies on"
    source = Source(Params(urls=(str(path),)))
    [partition] = source.partitions()
    assert names(list(source.read_from(partition, 18))) == ["18.jpg", "19.jpg"]


def test_layout_of_img2dataset_is_read_and_its_failures_counted(tmp_path: Path) -> None:
    def description(key: str, status: str) -> bytes:
        return json.dumps(
            {"url": "https://example.org/1.jpg", "caption": "a cat", "key": key, "status": status,
             "error_message": None, "width": 96, "height": 64, "exif": "{}", "license": "CC BY",
             "author": "Ada", "sha256": "00"}
        ).encode()  # fmt: skip

    members = []
    # Key 1 was not downloaded: img2dataset leaves it out, so that keys have gaps.
    for key, status in (("000000000", "success"), ("000000002", "failed_to_resize")):
        members += [(f"{key}.jpg", JPEG), (f"{key}.json", description(key, status)),
                    (f"{key}.txt", b"a cat")]  # fmt: skip
    members += [("000000003.json", description("000000003", "failed_to_download"))]
    samples = read(write_tar(tmp_path / "00000.tar", members))
    assert names(samples) == ["000000000.jpg", "000000002.jpg", "000000003.json"]
    assert [sample.image for sample in samples] == [JPEG, b"", b""]
    assert {(s.license, s.author, s.class_name) for s in samples} == {("CC BY", "Ada", None)}


def test_status_of_others_costs_no_picture(tmp_path: Path) -> None:
    members = [("1.jpg", JPEG), ("1.json", b'{"status": "published", "license": ["CC0"]}')]
    [sample] = read(write_tar(tmp_path / "a.tar", members))
    assert (sample.image, sample.license) == (JPEG, None)


def test_other_members_are_ignored_beside_an_image(tmp_path: Path) -> None:
    members = [("1.jpg", JPEG), ("1.npz", b"x"), ("1.pyd", b"cos\nsystem\n(S'x'\ntR."),
               ("1.side.png", JPEG), ("1.txt", b"a cat")]  # fmt: skip
    assert names(read(write_tar(tmp_path / "a.tar", members))) == ["1.jpg", "1.side.png"]


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_are_read_whole(tmp_path: Path, tar_format: int) -> None:
    name = "/".join(["folder-" + "x" * 60] * 4) + "/\N{SNOWMAN}1.jpg"
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tar_format) as archive:
        member = tarfile.TarInfo(name)
        member.size = len(JPEG)
        archive.addfile(member, io.BytesIO(JPEG))
    [sample] = read(path)
    assert names([sample]) == [name]
    assert sample.image == JPEG


def test_class_may_be_a_value_of_the_json_and_make_a_target(tmp_path: Path) -> None:
    members = [
        member
        for key, label in (("a", 1), ("b", 0), ("c", None))
        for member in ((f"{key}.jpg", JPEG), (f"{key}.json", json.dumps({"label": label}).encode()))
    ]
    path = write_tar(tmp_path / "a.tar", members)
    source = Source(
        Params(
            urls=(str(path),),
            class_field="json.label",
            label_names=("dog", "cat"),
            target_labels=("cat",),
            target_policy="positive",
            labels_are_exhaustive=True,
        )
    )
    [partition] = source.partitions()
    assert [(s.class_name, s.label, s.label_state) for s in source.read(partition)] == [
        ("cat", "cat", "verified_present"),
        ("dog", "", "verified_absent"),
        (None, "", "unknown"),
    ]


def test_target_without_a_class_field_is_refused(tmp_path: Path) -> None:
    source = Source(Params(urls=(str(tmp_path / "a.tar"),), target_labels=("cat",)))
    with pytest.raises(ConfigError, match=r"give `params\.class_field`"):
        list(source.partitions())


SHARD_INDEXES = {
    "_info.json": {
        "splits": {
            "train": {"name": "train", "filenames": ["x-0.tar"], "shard_lengths": [1],
                      "num_samples": 1, "alt_label": ""},
            "validation": {"filenames": ["x-1.tar"], "shard_lengths": [1], "num_samples": 1},
        }
    },
    "shardindex.json": {
        "__kind__": "wids-shard-index-v1", "wids_version": 1, "name": "x",
        "shardlist": [{"url": f"x-{n}.tar", "md5sum": "0", "nsamples": 1, "filesize": 1}
                      for n in range(2)],
    },
    ".nv-meta/.info.json": {"energon_version": "7", "shard_counts": {"x-0.tar": 1, "x-1.tar": 1}},
}  # fmt: skip


@pytest.mark.parametrize("name", SHARD_INDEXES)
def test_tars_may_be_named_by_the_index_beside_them(tmp_path: Path, name: str) -> None:
    (tmp_path / ".nv-meta").mkdir()
    (tmp_path / name).write_text(json.dumps(SHARD_INDEXES[name]))
    source = Source(Params(urls=(str(tmp_path / name),)))
    assert [p.id for p in source.partitions()] == [f"{tmp_path}/x-0.tar", f"{tmp_path}/x-1.tar"]


@pytest.mark.parametrize(
    "index",
    ['{"shardlist": [{"url": "ssh://host/x.tar"}]}', '{"shardlist": [{"url": "../x.tar"}]}',
     "[]", "{", '{"splits": {}}'],
)  # fmt: skip
def test_index_that_names_no_tars_or_foreign_ones_is_refused(tmp_path: Path, index: str) -> None:
    (tmp_path / "shardindex.json").write_text(index)
    source = Source(Params(urls=(str(tmp_path / "shardindex.json"),)))
    with pytest.raises(ConfigError, match=r"shardindex\.json: no list of tars.*params\.urls"):
        list(source.partitions())


@pytest.mark.parametrize(
    "urls",
    [("a-{0..3}.tar", "a-{3..4}.tar"), ("a.tar", "a.tar"), ("{b,a}-{00..01}.tar", "a-01.tar"),
     ("a-01.tar", "a-{00..99}.tar"), ("a-{x,y,x}.tar",)],
)  # fmt: skip
def test_names_that_patterns_share_are_refused(urls: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="twice"):
        list(Source(Params(urls=urls)).partitions())


@pytest.mark.parametrize(
    "urls", [("a-{0..3}.tar", "a-{03..04}.tar"), ("a-{0..3}.tar", "b-{0..3}.tar", "a-4.tar")]
)
def test_names_that_only_resemble_each_other_are_not(urls: tuple[str, ...]) -> None:
    assert len(list(Source(Params(urls=urls)).partitions())) in (6, 9)


def test_no_name_of_a_long_pattern_is_kept() -> None:
    source = Source(Params(urls=("s3://bucket/{00000000..09999999}.tar", "s3://bucket/x.tar")))
    partitions = source.partitions()
    next(partitions)
    tracemalloc.start()
    collections.deque(itertools.islice(partitions, 20_000), maxlen=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_key_of_very_many_images_is_read_in_pieces_and_stays_one_group(tmp_path: Path) -> None:
    members = [(f"v1.0_{n}.jpg", bytes([n % 256]) * 25_000) for n in range(600)] + [
        ("v1.json", b"{}")
    ]
    path = write_tar(tmp_path / "a.tar", [*members, ("w.jpg", b"w"), ("x.json", b"{}")])
    source = Source(Params(urls=(str(path),)))
    [partition] = source.partitions()
    tracemalloc.start()
    collections.deque(source.read(partition), maxlen=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000, "64 members are in memory, or twice as many, not 15 MB of them"
    samples = list(source.read(partition))
    assert names(samples) == [name for name, _ in members[:-1]] + ["w.jpg", "x.json"]
    assert {s.group for s in samples[:600]} == {f"{path}#v1"}
    assert [s.group for s in samples[600:]] == [None, None]
    for start in (1, 63, 64, 65, 128, 599, 600, 602):
        assert list(source.read_from(partition, start)) == samples[start:]
