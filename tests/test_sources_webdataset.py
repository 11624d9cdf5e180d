import gc
import itertools
import json
import tarfile
from pathlib import Path

import pytest
import webdataset
from corpus import encode, quadrants, write_tar

from pipeline.errors import ConfigError, InfinegError
from pipeline.formats import tars
from pipeline.formats.patterns import expand_braces
from pipeline.images import decode_image
from pipeline.records import ImageSettings, RawSample
from pipeline.sources import open_source
from pipeline.sources.webdataset import Params, Source

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


def test_links_and_folders_are_no_samples(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("1.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        folder = tarfile.TarInfo("2.jpg")
        folder.type = tarfile.DIRTYPE
        archive.addfile(link)
        archive.addfile(folder)
    assert read(path) == []


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
    assert sum(issubclass(type(each), tarfile.TarInfo) for each in gc.get_objects()) < 10
