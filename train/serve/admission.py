"""Bounds what the server holds at once; what is beyond is refused at once and can come again."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from fastapi import HTTPException

# All uploads together, in bytes; one may have 20 MB, and a phone's picture has 3 to 8.
MAX_HELD_BYTES = 512_000_000
_RETRY_AFTER_S = 1


class Admission:
    """Counts the pictures that are being uploaded, wait or are looked at, and their bytes."""

    def __init__(self, *, max_pictures: int, max_bytes: int = MAX_HELD_BYTES) -> None:
        self._max_pictures = max_pictures
        self._max_bytes = max_bytes
        self.num_pictures = 0
        self.num_bytes = 0

    @contextlib.contextmanager
    def admit(self) -> Iterator["Held"]:
        """A place for one picture within the block. Raises HTTPException 503 if there is none."""
        if self.num_pictures >= self._max_pictures:
            raise _too_busy()
        self.num_pictures += 1
        held = Held(self)
        try:
            yield held
        finally:
            self.num_pictures -= 1
            self.num_bytes -= held.num_bytes

    def add(self, num_bytes: int) -> None:
        """Raises HTTPException 503 if all pictures together would have too many bytes."""
        if self.num_bytes + num_bytes > self._max_bytes:
            raise _too_busy()
        self.num_bytes += num_bytes


@dataclass
class Held:
    """The place of one picture."""

    admission: Admission
    num_bytes: int = 0

    def add(self, num_bytes: int) -> None:
        self.admission.add(num_bytes)
        self.num_bytes += num_bytes


def _too_busy() -> HTTPException:
    return HTTPException(
        503,
        "too many pictures at once: try again in a moment",
        headers={"Retry-After": str(_RETRY_AFTER_S)},
    )
