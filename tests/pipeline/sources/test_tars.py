import gzip
import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InfinegError
from pipeline.sources.readers.tars import read_members
from support.corpus import CountingFile, tar_of

NUM_MEMBERS, MEMBER_BYTES = 30, 5000


def noise(number: int) -> bytes:
    """As hard to compress as a JPEG."""
    return np.random.default_rng(number).bytes(MEMBER_BYTES)


def tar_bytes() -> bytes:
    return tar_of((f"train_0/{number:02d}.jpg", noise(number)) for number in range(NUM_MEMBERS))


class Pipe(io.BytesIO):
    """As fsspec's HTTP stream: says that it can seek, and cannot."""

    def seek(self, offset: int, whence: int = 0, /) -> int:  # noqa: ARG002
        raise ValueError("cannot seek")


def read(data: bytes, is_wanted: Callable[[str], bool] = lambda _: True) -> Iterator[bytes | None]:
    return (each.content for each in read_members(io.BytesIO(data), "a.tar.gz", is_wanted))


@pytest.mark.parametrize("position", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("damage", ["overwritten", "cut_off"])
def test_damaged_gzip_gives_all_that_lies_before_the_damage_and_then_says_where(
    damage: str, position: float
) -> None:
    data = bytearray(gzip.compress(tar_bytes()))
    at = int(position * len(data))
    if damage == "cut_off":
        del data[at:]
    else:
        data[at : at + 64] = b"\xff" * 64
    members = read(bytes(data))
    num_sound = int(position * NUM_MEMBERS) - 1  # noise hardly shrinks, headers do
    contents = itertools.islice(members, num_sound)
    assert list(contents) == [noise(number) for number in range(num_sound)]
    with pytest.raises(InfinegError, match=r"^a\.tar\.gz: broken tar (at|after) 'train_0/\d\d"):
        list(members)


def test_flipped_bit_that_still_inflates_is_told_by_the_checksum() -> None:
    data = bytearray(gzip.compress(tar_bytes(), compresslevel=0))  # stored: any byte inflates
    data[len(data) // 2] ^= 1
    members = read(bytes(data))
    contents = list(itertools.islice(members, NUM_MEMBERS))
    assert [content for n, content in enumerate(contents) if content != noise(n)] != []
    with pytest.raises(InfinegError, match=r"broken tar after 'train_0/29\.jpg'.*incorrect data"):
        next(members)


def test_gzip_of_several_members_is_read_to_its_end() -> None:
    tar = tar_bytes()
    half = len(tar) // 2
    data = gzip.compress(tar[:half]) + gzip.compress(tar[half:]) + b"\0" * 512
    assert list(read(data)) == [noise(number) for number in range(NUM_MEMBERS)]


def test_stream_that_cannot_seek_is_read_all_the_same() -> None:
    for data in (tar_bytes(), gzip.compress(tar_bytes())):
        found = [each.content for each in read_members(Pipe(data), "a.tar", lambda _: True)]
        assert found == [noise(number) for number in range(NUM_MEMBERS)]


def test_unwanted_members_of_a_plain_tar_are_not_read() -> None:
    file = CountingFile(tar_bytes())
    members = list(read_members(file, "a.tar", lambda name: name.endswith("29.jpg")))
    assert [each.content for each in members] == [None] * 29 + [noise(29)]
    assert file.num_read < MEMBER_BYTES + (NUM_MEMBERS + 4) * 1024


def test_tar_inside_a_file_is_read_from_where_the_file_stands(tmp_path: Path) -> None:
    path = tmp_path / "outer"
    path.write_bytes(b"x" * 512 + tar_bytes())
    with path.open("rb") as file:
        file.seek(512)
        assert len(list(read_members(file, "outer#inner", lambda _: True))) == NUM_MEMBERS
