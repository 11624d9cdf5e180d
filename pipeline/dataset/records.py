"""JSON records that say if they have been damaged.

A record ends in the line `"checksum": "<sha256>"`, of what stands before it. One of an older
version has no such line, and is read as it is.
"""

import hashlib
import re
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.errors import InfinegError

RecordT = TypeVar("RecordT", bound=BaseModel)
_END = re.compile(rb',\n "checksum": "([0-9a-f]{64})"\n}\n')
_END_BYTES = len(b',\n "checksum": ""\n}\n') + 64


def encode_record(record: BaseModel) -> bytes:
    """JSON of a record with at least one field."""
    body = record.model_dump_json(indent=1).encode().removesuffix(b"\n}")
    digest = hashlib.sha256(body).hexdigest()
    return body + f',\n "checksum": "{digest}"\n}}\n'.encode()


def decode_record(uri: str, content: bytes, record: type[RecordT]) -> RecordT:
    """The record. Raises InfinegError if it is damaged, or not one that this version reads."""
    end = _END.fullmatch(content[-_END_BYTES:])
    if end is not None:
        content = content[:-_END_BYTES]
        if hashlib.sha256(content).hexdigest().encode() != end[1]:
            raise InfinegError(
                f"{uri}: damaged, or changed by hand: its checksum is that of another content. "
                "Restore it from a copy. (Without the line of its checksum it is read unchecked)"
            )
        content += b"\n}"
    try:
        return record.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise InfinegError(
            f"{uri}: not a {record.__name__} that this version reads "
            f"({where + ': ' if where else ''}{reason})"
        ) from None


def has_checksum(content: bytes) -> bool:
    """Whether a record ends in a checksum."""
    return _END.fullmatch(content[-_END_BYTES:]) is not None
