"""The verdict file: verdicts that are not applied yet, `reviews/<target>.csv` in the data set.

Each change replaces the whole file atomically before the page shows it as saved, and only if the
file still has the content that was read, so that two people who review at once lose nothing. The
columns are those of `infineg review --verdicts` and the content hash: if a key gets another
picture, in a build with another listing for example, its verdict no longer counts.
"""

import csv
import io
import threading
from collections.abc import Collection, Mapping, Sequence

from pipeline import storage
from pipeline.curate.verdicts import Verdict, parse_verdicts

_COLUMNS = ("key", "verdict", "content_hash")

Picture = tuple[str, str]  # key and content hash


class VerdictFile:
    """The file, and its content when it was last read or written."""

    def __init__(self, root: str, target: str) -> None:
        self.uri = storage.join(root, "reviews", f"{target}.csv")
        self._lock = threading.Lock()
        self._content: bytes | None = None
        self._verdicts: dict[Picture, Verdict] = {}
        self.reload()

    def reload(self) -> None:
        """Reads the file again: another process may have written it."""
        with self._lock:
            self._read()

    def select(self, keys: Sequence[str], content_hashes: Sequence[str]) -> list[Verdict | None]:
        """The verdict on each picture, or None."""
        verdicts = self._verdicts
        return [verdicts.get(each) for each in zip(keys, content_hashes, strict=True)]

    def save(self, changes: Mapping[Picture, Verdict | None]) -> None:
        """Returns once the changes are on disk; None removes a verdict.

        Raises TransientStorageError if others keep changing the file.
        """
        with self._lock:
            storage.until_written(lambda: self._change(changes), self.uri)

    def _change(self, changes: Mapping[Picture, Verdict | None]) -> bool:
        """False, and what is there now is read, if another process has changed the file."""
        wanted = dict(self._verdicts)
        for each, verdict in changes.items():
            wanted.pop(each, None)  # the file is in the order of decisions
            if verdict is not None:
                wanted[each] = verdict
        if self._write(_encode(wanted)):
            self._verdicts = wanted
            return True
        self._read()
        return False

    def forget(self, content_hashes: Collection[str]) -> int:
        """Removes the verdicts on some pictures; returns their number."""
        found = [picture for picture in self._verdicts if picture[1] in content_hashes]
        if found:
            self.save(dict.fromkeys(found))
        return len(found)

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
        self._verdicts = {
            (row["key"], row["content_hash"]): verdict
            for row, verdict in parse_verdicts(self.uri, self._content, _COLUMNS)
        }


def _encode(verdicts: Mapping[Picture, Verdict]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows((key, verdict, sha256) for (key, sha256), verdict in verdicts.items())
    return text.getvalue().encode()
