"""Every member of a tar is read, rejected or told."""

import bz2
import contextlib
import gzip
import io
import lzma
import tarfile
import tracemalloc
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from webdataset.tariterators import base_plus_ext

from pipeline.dataset.schema import RawSample
from pipeline.errors import ConfigError, InfinegError
from pipeline.sources import open_source
from pipeline.sources.readers.tar_samples import _NAME
from pipeline.sources.readers.tars import TarMember, list_members, read_members
from support.corpus import encode, quadrants, write_tar

JPEG = encode(quadrants())
LABELS = {"class_field": "cls", "target": "cat", "target_labels": ["cat"]}


def read(path: Path, **params: object) -> list[RawSample]:
    source = open_source("webdataset", {"urls": str(path), **params})
    return [sample for partition in source.partitions() for sample in source.read(partition)]


def found(samples: Sequence[RawSample]) -> list[tuple[str, str | None, bool]]:
    """Member, class, and whether there is an image."""
    return [(s.uri.partition("#")[2], s.class_name, bool(s.image)) for s in samples]


def link(name: str, target: str, kind: bytes = tarfile.LNKTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def tar_of(*members: tuple[str, bytes] | tarfile.TarInfo, **options: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as archive:  # type: ignore[call-overload]
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def members_of(data: bytes) -> list[TarMember]:
    return list(read_members(io.BytesIO(data), "a.tar", lambda _: True))


PACKERS = {"plain": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("is_packed_first", [False, True])
def test_tars_one_after_the_other_are_read_to_the_last(packing: str, is_packed_first: bool) -> None:
    pack = PACKERS[packing]
    tars = [tar_of((f"{n}.jpg", bytes([n]) * 700), (f"{n}.cls", b"1")) for n in range(3)]
    data = b"".join(map(pack, tars)) if is_packed_first else pack(b"".join(tars))
    assert [m.name for m in members_of(data)] == [
        f"{n}.{s}" for n in range(3) for s in ("jpg", "cls")
    ]


@pytest.mark.parametrize("rest", [b"signature" * 200, b"x" * 100])
def test_what_follows_the_end_and_is_no_tar_is_an_error_with_its_byte(rest: bytes) -> None:
    tar = tar_of(("1.jpg", JPEG))
    members = read_members(io.BytesIO(tar + rest), "a.tar", lambda _: True)
    assert next(members).name == "1.jpg"
    with pytest.raises(InfinegError, match=r"broken tar after '1\.jpg', byte \d+: ") as caught:
        next(members)
    assert len(rest) < 512 or f"no header at byte {len(tar)}" in str(caught.value)


@pytest.mark.parametrize("packing", PACKERS)
def test_link_has_the_bytes_of_its_target(tmp_path: Path, packing: str) -> None:
    tar = tar_of(
        ("./a/0.cls", b"cat"),
        ("./a/0.jpg", JPEG),
        link("./a/1.cls", "./a/0.cls"),
        link("./a/1.jpg", "0.jpg", tarfile.SYMTYPE),
        link("./b/2.cls", "../a/1.cls", tarfile.SYMTYPE),  # of a link
        link("./b/2.jpg", "./a/1.jpg"),
    )
    path = tmp_path / "a.tar"
    path.write_bytes(PACKERS[packing](tar))
    samples = read(path, **LABELS, target_policy="positive")
    assert found(samples) == [(f"./{n}.jpg", "cat", True) for n in ("a/0", "a/1", "b/2")]
    assert {sample.image for sample in samples} == {JPEG}


def test_link_forward_is_followed_in_a_tar_that_can_seek(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of(link("0.jpg", "1.jpg", tarfile.SYMTYPE), ("1.jpg", JPEG)))
    assert found(read(path)) == [("0.jpg", None, True), ("1.jpg", None, True)]


@pytest.mark.parametrize("packing", ["plain", "gz"])
def test_link_to_nothing_is_one_reject_and_never_an_unlabelled_sample(
    tmp_path: Path, packing: str
) -> None:
    path = tmp_path / "a.tar"
    tar = tar_of(
        ("0.jpg", JPEG), link("0.cls", "gone.cls"),
        link("1.jpg", "1.jpg", tarfile.SYMTYPE), ("1.cls", b"dog"),
        link("2.jpg", "/etc/passwd", tarfile.SYMTYPE), ("2.cls", b"dog"),
        ("3.jpg", JPEG), ("3.cls", b"dog"),
    )  # fmt: skip
    path.write_bytes(PACKERS[packing](tar))
    samples = read(path, **LABELS)
    assert [sample[::2] for sample in found(samples)] == [
        ("0.jpg", False), ("1.jpg", False), ("2.jpg", False), ("3.jpg", True)
    ]  # fmt: skip


def test_links_are_in_the_listing_with_their_target_s_place() -> None:
    data = tar_of(("a.jpg", JPEG), link("b.jpg", "a.jpg"), link("c.jpg", "no.jpg"))
    listed = {name: data[at : at + size] for name, at, size in list_members(io.BytesIO(data), "t")}
    assert listed == {"a.jpg": JPEG, "b.jpg": JPEG, "c.jpg": b""}


@pytest.mark.parametrize("packing", ["plain", "gz"])
@pytest.mark.parametrize("policy", ["exclude", "positive", "only"])
@pytest.mark.parametrize("order", ["images_first", "labels_first", "one_apart"])
def test_members_of_one_key_that_lie_apart_are_an_error_before_any_sample(
    tmp_path: Path, order: str, policy: str, packing: str
) -> None:
    images = [(f"{n}.jpg", JPEG) for n in range(4)]
    labels = [(f"{n}.cls", b"cat") for n in range(4)]
    pairs = [member for pair in zip(images, labels, strict=True) for member in pair]
    members = {
        "images_first": images + labels,
        "labels_first": labels + images,
        "one_apart": [images[0], *pairs[2:], labels[0]],
    }[order]
    path = tmp_path / "a.tar"
    path.write_bytes(PACKERS[packing](tar_of(*members)))
    source = open_source("webdataset", {"urls": str(path), **LABELS, "target_policy": policy})
    [partition] = source.partitions()
    with pytest.raises(InfinegError, match=r"side by side.* e\.g\. '0'.*tar --sort=name"):
        next(iter(source.read(partition)))


def refusal_of(folder: Path, *members: tuple[str, bytes], class_field: str = "cls") -> str:
    path = write_tar(folder / "a.tar", members)
    [partition] = (
        source := open_source(
            "webdataset", {"urls": str(path), **LABELS, "class_field": class_field}
        )
    ).partitions()
    with pytest.raises(InfinegError) as refused:
        next(iter(source.read(partition)))
    return str(refused.value)


def test_label_whose_field_has_a_dot_is_missed_where_it_lies_apart(tmp_path: Path) -> None:
    members = [("0.jpg", JPEG), ("1.jpg", JPEG), ("0.cls.txt", b"cat"), ("1.cls.txt", b"dog")]
    assert "side by side" in refusal_of(tmp_path, *members, class_field="cls.txt")


def test_label_beside_an_image_whose_name_has_a_dot_is_not_passed_over(tmp_path: Path) -> None:
    members = [("0.jpg", JPEG), ("0.cls", b"cat"), ("1.v2.jpg", JPEG), ("1.v2.cls", b"cat")]
    path = write_tar(tmp_path / "b.tar", members)
    with pytest.raises(InfinegError, match=r"'1\.v2\.cls': a key ends at the first dot.*not its"):
        read(path, class_field="cls", target="cat", target_labels=["dog"])


@pytest.mark.parametrize("is_label_first", [True, False])
def test_label_of_more_members_than_are_read_together_is_refused(
    tmp_path: Path, is_label_first: bool
) -> None:
    images = [(f"0.{n}.jpg", JPEG) for n in range(65)]
    members = [("0.cls", b"cat"), *images] if is_label_first else [*images, ("0.cls", b"cat")]
    assert "'0' has 66 members and one label" in refusal_of(tmp_path, *members)


def test_image_without_a_label_and_equal_keys_of_joined_tars_are_no_error(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    tar = tar_of(("0.jpg", JPEG), ("1.jpg", JPEG), ("1.cls", b"dog"))
    path.write_bytes(tar + tar)
    assert [sample.class_name for sample in read(path, **LABELS)] == [None, "dog"] * 2


def test_label_files_apart_are_told_without_a_class_field(tmp_path: Path) -> None:
    members = [("0.jpg", JPEG), ("1.jpg", JPEG), ("0.json", b'{"license": "CC0"}')]
    path = write_tar(tmp_path / "a.tar", members)
    assert found(read(path)) == [
        ("0.jpg", None, True),
        ("1.jpg", None, True),
        ("0.json", None, False),
    ]


@pytest.mark.parametrize("packing", ["plain", "gz"])
@pytest.mark.parametrize(
    ("members", "zeros", "place"),
    [((), 10_240, "at its start"), ((("0.jpg", JPEG),), 2 << 20, "after '0.jpg'")],
)
def test_zeros_in_place_of_members_are_told(
    members: Sequence[tuple[str, bytes]],
    zeros: int,
    place: str,
    packing: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A download into a file of the full size that was cut off."""
    path = tmp_path / "a.tar"
    path.write_bytes(PACKERS[packing](tar_of(*members) * bool(members) + bytes(zeros)))
    assert len(read(path)) == len(members)
    assert f"a.tar: only zeros {place}" in caplog.text


def test_hidden_files_are_no_samples_and_others_are_told_by_suffix(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = [("__MACOSX/x/._1.jpg", b"\0\5\x16\7"), ("x/1.jpg", JPEG), ("x/.2.jpg", JPEG),
               (".cache/3.jpg", JPEG), ("./4.jpg", JPEG), ("README", b"x"),
               ("x/LICENSE", b"x")]  # fmt: skip
    assert [name for name, _, _ in found(read(write_tar(tmp_path / "a.tar", members)))] == [
        "x/1.jpg", "./4.jpg"
    ]  # fmt: skip
    assert "no suffix 2" in caplog.text


def test_mask_beside_its_image_is_told_and_no_sample(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = [("1.jpg", JPEG), ("1.mask.png", JPEG), ("2.jpg", JPEG), ("2_mask.png", JPEG),
               ("2.cls", b"cat"), ("man_with_mask.jpg", JPEG),
               ("man_with_mask.cls", b"dog")]  # fmt: skip
    samples = read(write_tar(tmp_path / "a.tar", members), **LABELS, target_policy="positive")
    assert found(samples) == [
        ("1.jpg", None, True), ("2.jpg", "cat", True), ("man_with_mask.jpg", "dog", True)
    ]  # fmt: skip
    assert "mask 2" in caplog.text


def test_name_that_is_no_utf8_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for tar_format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path.write_bytes(tar_of(("caf\udce9/" + "x" * 120 + ".jpg", JPEG), format=tar_format))
        [sample] = read(path)
        assert sample.image == JPEG
        assert "caf\udce9/" in sample.uri


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz"])
def test_bytes_behind_a_sound_stream_are_a_warning(
    packing: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = PACKERS[packing](tar_of(("1.jpg", JPEG), ("2.jpg", JPEG)))
    for rest in (b"\0" * 3000, b"s", b"signature\n"):
        caplog.clear()
        assert [member.content for member in members_of(data + rest)] == [JPEG, JPEG]
        assert ("passed over" in caplog.text) == (rest.strip(b"\0") != b"")


@pytest.mark.parametrize(
    ("head", "name"),
    [(b"\x28\xb5\x2f\xfd", "zstd"), (b"PK\x03\x04", "zip"), (b"\x04\x22\x4d\x18", "lz4")],
)
def test_compression_that_is_not_read_is_named(head: bytes, name: str) -> None:
    with pytest.raises(InfinegError, match=rf"^a\.tar: compressed with {name}, .*unpack it"):
        members_of(head + bytes(2000))


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
@pytest.mark.parametrize("is_packed", [False, True])
def test_header_that_claims_gigabytes_takes_no_memory(kind: bytes, is_packed: bool) -> None:
    head = tarfile.TarInfo("././@LongLink")
    head.type, head.size = kind, 3 << 30
    data = tar_of(("1.jpg", JPEG)) + head.tobuf(tarfile.GNU_FORMAT)
    data += bytes(8 << 20)
    tracemalloc.start()
    with pytest.raises(InfinegError, match=r"after '1\.jpg'.*a header of 3,221,225,472 bytes"):
        members_of(zlib.compress(data, wbits=31) if is_packed else data)
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "member",
    [b"-1", b"\xff" * 12, b"99999999999", b"zz"],
    ids=["minus", "negative", "not-octal", "no-number"],
)
def test_wild_size_is_an_error(member: bytes) -> None:
    block = bytearray(tar_of(("1.jpg", b"x"))[:512])
    block[124:136] = member.ljust(12, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    with pytest.raises(InfinegError, match=r"a\.tar: broken tar at its start: no number"):
        members_of(bytes(block) + bytes(2048))


@pytest.mark.parametrize(
    "record", [b"5\n", b"9999 path=x\n", b"0 path=x\n", b"x path=y\n", b"12 size=-1\n"]
)
def test_broken_pax_header_is_an_error(record: bytes) -> None:
    head = tarfile.TarInfo("pax")
    head.type, head.size = b"x", len(record)
    data = head.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + tar_of(("1.jpg", JPEG))
    with pytest.raises(InfinegError, match="broken tar at its start"):
        members_of(data)


def test_folder_in_place_of_a_tar_is_an_error_that_says_how_to_name_tars(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a folder, not a tar; name the tars, e\.g\. .*\.tar"):
        read(tmp_path)


def test_sparse_file_is_one_reject() -> None:
    head = tarfile.TarInfo("1.jpg")
    head.type, head.size = tarfile.GNUTYPE_SPARSE, 512
    block = bytearray(head.tobuf(tarfile.GNU_FORMAT))
    block[482] = 1  # one more block of its map
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    data = bytes(block) + bytes(512) + bytes(512) + tar_of(("2.jpg", JPEG))
    assert [(m.name, m.content, m.is_lost) for m in members_of(data)] == [
        ("1.jpg", b"", True), ("2.jpg", JPEG, False)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_members_are_those_of_tarfile(tar_format: int) -> None:
    rng = np.random.default_rng(0)
    members = []
    for number in range(60):
        folder = "/".join("d" * int(rng.integers(1, 40)) for _ in range(rng.integers(1, 3)))
        name = f"{folder}/{number}é.jpg" if tar_format else f"{folder}/{number}.jpg"
        members.append((name, rng.bytes(int(rng.integers(0, 3000)))))
    long = [("l" * 90 + "/" + "x" * 90 + ".jpg", b"ustar prefix"), ("p" * 60 + "/y.jpg", b"z")]
    data = tar_of(*members, *long, link("link.jpg", members[3][0]), format=tar_format)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = []
        for member in archive:
            content = archive.extractfile(member)
            assert content is not None
            expected.append((member.name, content.read()))
    assert [(m.name, m.content) for m in members_of(data)] == expected
    assert [m.content for m in members_of(gzip.compress(data))] == [c for _, c in expected]


def test_any_flipped_byte_gives_members_or_one_error() -> None:
    data = tar_of(("1.jpg", b"one" * 400), link("2.jpg", "1.jpg"), ("3" * 150, b"x"), format=1)
    rng = np.random.default_rng(1)
    for _ in range(400):
        broken = bytearray(data[:8192])
        for at in rng.integers(0, len(broken), 3):
            broken[at] = rng.integers(0, 256)
        with contextlib.suppress(InfinegError):
            members_of(bytes(broken))


@pytest.mark.parametrize(
    "name",
    ["a.jpg", "a.b.jpg", "x/a.jpg", "x.y/a.b.jpg", "a", "x.y/a", ".a", "x/.a", "a.", "a\n.jpg"],
)
def test_key_and_field_are_split_as_webdataset_does(name: str) -> None:
    match = _NAME.match(name)
    assert (match.groups() if match else (None, None)) == base_plus_ext(name)
