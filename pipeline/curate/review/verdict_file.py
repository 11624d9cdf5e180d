"""Verdicts as they are given, in `reviews/<target>.csv` of the data set.

Written whole, atomically, at each change, before the page is told that it is saved; and only over
what was read, so that two who review at once lose nothing of each other. The columns are those of
`infineg review --verdicts`, and the content hash: a key whose picture has changed since, as after
a build with another listing, has no verdict.
"""

import csv
import io
import threading
from collections.abc import Mapping, Sequence

from pipeline import storage
from pipeline.curate.verdicts import VERDICTS, Verdict
from pipeline.errors import InfinegError, TransientStorageError

_COLUMNS = ("key", "verdict", "content_hash")
_NUM_TRIES = 10

# By key and content hash.
Saved = dict[tuple[str, str], Verdict]


class SavedVerdicts:
    """The file, and what it held when it was last read or written."""

    def __init__(self, root: str, target: str) -> None:
        self.uri = storage.join(root, "reviews", f"{target}.csv")
        self._lock = threading.Lock()
        self._content: bytes | None = None
        self._verdicts: Saved = {}
        self.reload()

    def reload(self) -> None:
        """Reads the file again: another process may have written it."""
        with self._lock:
            self._read()

    def select(self, keys: Sequence[str], content_hashes: Sequence[str]) -> list[Verdict | None]:
        """The verdict of each, None where there is none of this very picture."""
        verdicts = self._verdicts
        return [verdicts.get(each) for each in zip(keys, content_hashes, strict=True)]

    def save(self, changes: Mapping[tuple[str, str], Verdict | None]) -> None:
        """Returns once the changes are on disk; None takes a verdict back.

        Raises TransientStorageError where others write all the time.
        """
        with self._lock:
            for _ in range(_NUM_TRIES):
                wanted = dict(self._verdicts)
                for each, verdict in changes.items():
                    wanted.pop(each, None)  # the order of the file is that of deciding
                    if verdict is not None:
                        wanted[each] = verdict
                if self._write(_encode(wanted)):
                    self._verdicts = wanted
                    return
                self._read()
        raise TransientStorageError(f"{storage.redact(self.uri)} changes all the time; try again")

    def _write(self, content: bytes) -> bool:
        if self._content is None:
            is_written = storage.create_exclusive(self.uri, content)
        else:
            is_written = storage.replace_if(self.uri, self._content, content)
        if is_written:
            self._content = content
        return is_written

    def _read(self) -> None:
        try:
            self._content = storage.read_bytes(self.uri)
        except FileNotFoundError:
            self._content, self._verdicts = None, {}
            return
        self._verdicts = _decode(self.uri, self._content)


def _encode(verdicts: Saved) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows((key, verdict, sha256) for (key, sha256), verdict in verdicts.items())
    return text.getvalue().encode()


def _decode(uri: str, content: bytes) -> Saved:
    verdicts: Saved = {}
    rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig")))
    for row in rows:
        key, content_hash = row.get("key"), row.get("content_hash")
        verdict = VERDICTS.get(row.get("verdict") or "")
        if not key or not content_hash or verdict is None:
            raise InfinegError(
                f"{storage.redact(uri)}, line {rows.line_num}: wanted {', '.join(_COLUMNS)}, got "
                f"{row}. Mend the line, or move the file away to begin anew"
            )
        verdicts[key, content_hash] = verdict
    return verdicts
