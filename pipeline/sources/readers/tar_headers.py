"""Headers of tars: POSIX ustar and pax, GNU and older ones, in bounded memory.

Unlike tarfile it reads on behind an end-of-archive marker, as tars may be concatenated; it takes
no damage for the end, and no header takes more memory than `_MAX_EXTENSION_BYTES`.
https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html,
https://www.gnu.org/software/tar/manual/html_node/Standard.html
"""

import io
from collections.abc import Iterator
from typing import IO, Literal, NamedTuple

BLOCK_BYTES = 512
# Of names, links and attributes that do not fit into a header.
_MAX_EXTENSION_BYTES = 1 << 20
_SKIPPED_BYTES = 1 << 16  # read at once where the file cannot seek
_ZEROS = bytes(BLOCK_BYTES)
_LONG_NAME, _LONG_LINK, _SPARSE = b"L", b"K", b"S"
_PAX, _PAX_OF_SOLARIS, _PAX_FOR_ALL = b"x", b"X", b"g"
_KINDS: dict[bytes, "Kind"] = {
    b"0": "file", b"\0": "file", b"7": "file", b"1": "hard link", b"2": "symbolic link",
    _SPARSE: "sparse",
}  # fmt: skip
_WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")

Kind = Literal["file", "sparse", "hard link", "symbolic link", "other"]


class BrokenTar(Exception):
    """A tar that does not go on as its format says."""


class Header(NamedTuple):
    """A member. `offset` and `content_at` are in bytes from the start of the tar."""

    name: str
    kind: Kind
    target: str  # of a link
    size: int
    offset: int
    content_at: int


class TarStream:
    """A tar from where the file stands; knows its position in it."""

    def __init__(self, file: IO[bytes], *, is_seekable: bool) -> None:
        self.file = file
        self.is_seekable = is_seekable
        self.at = 0
        self._start = file.tell() if is_seekable else 0

    def read(self, size: int) -> bytes:
        """`size` bytes, fewer only at the end."""
        data = self.file.read(size)
        if len(data) < size:  # a raw stream gives what it has
            pieces = [data]
            while data and (size := size - len(data)):
                data = self.file.read(size)
                pieces.append(data)
            data = b"".join(pieces)
        self.at += len(data)
        return data

    def read_all(self, size: int) -> bytes:
        """Raises BrokenTar if there are fewer."""
        data = self.read(size)
        if len(data) < size:
            raise BrokenTar("unexpected end of data")
        return data

    def go_to(self, at: int) -> None:
        """Forward to a byte; raises BrokenTar if the tar ends before it."""
        if self.is_seekable and at > self.at:
            self.seek(at - 1)
            self.read_all(1)
        while self.at < at:
            self.read_all(min(at - self.at, _SKIPPED_BYTES))

    def seek(self, at: int) -> None:
        self.file.seek(self._start + at, io.SEEK_SET)
        self.at = at


def read_headers(tar: TarStream) -> Iterator[Header]:
    """Each member's header. The content of a member may be read before the next is asked for.

    Raises BrokenTar at what is no header.
    """
    for_all: dict[str, str] = {}
    extensions: dict[str, str] = {}
    offset: int | None = None  # of the first of a member's headers
    while block := tar.read(BLOCK_BYTES):
        if block in (_ZEROS, _ZEROS[: len(block)]):  # the end marker, or padding
            continue
        at = tar.at - len(block)
        kind, size = _checked(block, at)
        if kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_OF_SOLARIS, _PAX_FOR_ALL):
            offset = at if offset is None else offset
            target = for_all if kind == _PAX_FOR_ALL else extensions
            target |= _read_extension(tar, kind, size)
            continue
        header = _header(block, kind, size, for_all | extensions, at if offset is None else offset)
        extensions, offset = {}, None
        if kind == _SPARSE:
            _pass_map(tar, block)
        header = header._replace(content_at=tar.at)
        yield header
        tar.go_to(header.content_at + _padded(0 if kind in _WITHOUT_CONTENT else header.size))
    if tar.at == 0:
        raise BrokenTar("empty file")


def _checked(block: bytes, at: int) -> tuple[bytes, int]:
    """Kind and size of a block that is a header."""
    if len(block) < BLOCK_BYTES:
        raise BrokenTar("unexpected end of data")
    unsigned = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    # Some old programs added bytes as signed numbers.
    signed = unsigned - 256 * sum(each > 127 for each in block[:148] + block[156:])
    try:
        is_header = int(block[148:156].strip(b" \0"), 8) in (unsigned, signed)
    except ValueError:
        is_header = False
    if not is_header:
        raise BrokenTar(f"no header at byte {at}, but {block[:16]!r}")
    return block[156:157], _number(block[124:136])


def _number(field: bytes) -> int:
    """Octal digits, or a binary number after a byte of 128."""
    if field[0] == 128:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    try:
        number = int(digits or b"0", 8)
    except ValueError:
        number = -1
    if number < 0:
        raise BrokenTar(f"no number: {field!r}")
    return number


def _read_extension(tar: TarStream, kind: bytes, size: int) -> dict[str, str]:
    """What a header before a member's own says of it, by the names of pax."""
    if size > _MAX_EXTENSION_BYTES:
        raise BrokenTar(f"a header of {size:,} bytes, over {_MAX_EXTENSION_BYTES:,}")
    end = tar.at + _padded(size)
    content = tar.read_all(size)
    tar.go_to(end)
    if kind == _LONG_NAME:
        return {"path": _text(content)}
    if kind == _LONG_LINK:
        return {"linkpath": _text(content)}
    return dict(_pax_records(content))


def _pax_records(content: bytes) -> Iterator[tuple[str, str]]:
    """Records `length key=value\\n`; the length counts all of its record."""
    at = 0
    while at < len(content) and content[at]:
        space = content.find(b" ", at, at + 20)
        digits = content[at:space] if space > 0 else b""
        end = at + int(digits) if digits.isdigit() else at
        key, equals, value = content[space + 1 : end - 1].partition(b"=")
        if not at < end <= len(content) or not equals:
            raise BrokenTar(f"no record of a pax header: {content[at : at + 16]!r}")
        yield key.decode(errors="replace"), value.decode(errors="surrogateescape")
        at = end


def _header(block: bytes, kind: bytes, size: int, said: dict[str, str], offset: int) -> Header:
    name = _text(block[:100])
    # GNU keeps times where ustar has the first part of a long name.
    if block.startswith(b"ustar\0", 257) and (prefix := _text(block[345:500])):
        name = f"{prefix}/{name}"
    if "size" in said:
        if not said["size"].isdecimal():
            raise BrokenTar(f"no size: {said['size'][:20]!r}")
        size = int(said["size"][:20])
    name = said.get("path", name)
    is_folder = kind in (b"0", b"\0") and name.endswith("/")  # of tars older than POSIX
    is_sparse = any(key.startswith("GNU.sparse.") for key in said)
    return Header(
        name=said.get("GNU.sparse.name", name),
        kind="other" if is_folder else "sparse" if is_sparse else _KINDS.get(kind, "other"),
        target=said.get("linkpath", _text(block[157:257])),
        size=size,
        offset=offset,
        content_at=0,
    )


def _pass_map(tar: TarStream, block: bytes) -> None:
    """The rest of the map of a sparse file, which GNU keeps before its content."""
    has_more = block[482]
    while has_more:
        has_more = tar.read_all(BLOCK_BYTES)[504]


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="surrogateescape")


def _padded(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES
