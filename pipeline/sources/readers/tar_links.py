"""Where the links of a tar lead, within that tar."""

import contextlib
import posixpath

from pipeline.sources.readers.tar_headers import BrokenTar, Header, TarStream, read_headers

_MAX_HOPS = 16  # a link may lead to a link


def linked_name(header: Header) -> str:
    """The name that a member stands for: of a link its target's, else its own."""
    if header.kind == "hard link":
        return posixpath.normpath(header.target)
    if header.kind == "symbolic link":
        return posixpath.normpath(posixpath.join(posixpath.dirname(header.name), header.target))
    return posixpath.normpath(header.name)


class MemberIndex:
    """All members of a tar that can seek, in memory: made only for tars that have links."""

    def __init__(self, tar: TarStream) -> None:
        here = tar.at
        tar.seek(0)
        self._members: dict[str, list[Header]] = {}
        with contextlib.suppress(BrokenTar):  # told when the members there are read
            for header in read_headers(tar):
                if header.kind != "other":
                    name = posixpath.normpath(header.name)
                    self._members.setdefault(name, []).append(header)
        tar.seek(here)

    def find(self, link: Header) -> tuple[int, int] | None:
        """Offset and size of the content that a link leads to; None if it is not in the tar."""
        header: Header | None = link
        for _ in range(_MAX_HOPS):
            if header is None or header.kind == "sparse":
                return None
            if header.kind == "file":
                return header.content_at, header.size
            header = self._target(header)
        return None

    def _target(self, link: Header) -> Header | None:
        """A hard link is to the last member of a name before it, a symbolic one to the last."""
        named = self._members.get(linked_name(link), [])
        if link.kind == "hard link":
            named = [header for header in named if header.offset < link.offset]
        return named[-1] if named else None
