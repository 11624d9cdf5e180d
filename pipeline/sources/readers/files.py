"""Reads single images by address, also by untrusted addresses in data; spreads lists of files."""

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import simplejpeg

from pipeline import storage
from pipeline.dataset.keys import short_hash
from pipeline.dataset.schema import Partition
from pipeline.errors import ConfigError, InfinegError, TransientStorageError
from pipeline.sources.readers import tars

_log = logging.getLogger(__name__)

# Protocols that data may name.
_SCHEMES = frozenset({"http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "memory"})
# For one image from an http server, redirects and repeated tries included.
_DEADLINE_S = 20.0
_SCHEME = re.compile(r"([A-Za-z0-9+.-]+)://")


def read_image(uri: str, *, allow_private: bool = True) -> bytes:
    """The file's bytes; b"" if it cannot be read, so that the sample is counted.

    Raises ConfigError if no file could be read this way, TransientStorageError if running again
    may help, and, unless `allow_private`, PrivateAddress.
    """
    limit = tars.MAX_MEMBER_BYTES
    try:
        content = storage.read_range(
            uri, 0, limit + 1, http_deadline_s=_DEADLINE_S, allow_private=allow_private
        )
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        _log.info("%s: %s", storage.redact(uri), error)
        return b""
    except (ConfigError, TransientStorageError, storage.PrivateAddress):
        raise
    except InfinegError as error:  # forbidden; removed; empty, so that it has no range
        _log.info("%s", error)
        return b""
    if len(content) > limit:
        _log.warning("%s: over %d bytes, not read", storage.redact(uri), limit)
        return b""
    return content


def read_named_image(path: str, folder: str, *, allow_private: bool = False) -> bytes:
    """The bytes of the file that a table in `folder` names; b"" if it cannot be read.

    Invalid addresses and hosts that do not answer are dead links: one row must not end a run.
    Raises PrivateAddress for a host that is none of the internet, unless `allow_private`.
    """
    uri = locate(path, folder)
    if uri is None:
        _log.warning("%s: %r is not followed", folder, path[:200])
        return b""
    try:
        return read_image(uri, allow_private=allow_private)
    except storage.PrivateAddress:
        raise
    except InfinegError as error:
        is_own = not uri.lower().startswith(("http://", "https://"))
        if is_own and isinstance(error, TransientStorageError):
            raise
        _log.warning("%s", error)
    except ValueError as error:  # from aiohttp: not a URL
        _log.warning("%s: %r: %s", folder, path[:200], error)
    return b""


def locate(path: str, folder: str) -> str | None:
    """The address of a file that a table in `folder` names; None if it is not followed.

    A remote table may not name files of this machine; relative paths stay below `folder`.
    """
    if not path.isprintable() or "::" in path or ".." in path.split("/"):
        return None
    is_local = "://" not in folder
    if scheme := _SCHEME.match(path):
        if scheme[1].lower() in ("file", "local"):
            return path if is_local else None
        return path if scheme[1].lower() in _SCHEMES else None
    if path.startswith("/"):
        return path if is_local else None
    return storage.join(folder, path)


def spread_partitions(
    addresses: list[Any], *, size: int, images_per_address: int | None = 1
) -> Iterator[Partition]:
    """At most `size` addresses each: every n-th, so that the first partition has all classes.

    The id depends on the addresses, so that a changed folder does not resume into its old parts.
    """
    num_partitions = -(-len(addresses) // size)
    for number in range(num_partitions):
        chosen = addresses[number::num_partitions]
        yield Partition(
            id=f"{number:06d}-{short_hash(json.dumps(chosen))}",
            locator=chosen,
            num_samples=images_per_address and images_per_address * len(chosen),
        )


def toy_jpegs() -> list[bytes]:
    """JPEGs of 64x48 pixels: a red, a green and a blue ramp."""
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    jpegs = []
    for channel in range(3):
        pixels = np.zeros((48, 64, 3), np.uint8)
        pixels[..., channel] = ramp
        jpegs.append(simplejpeg.encode_jpeg(pixels, quality=90, colorsubsampling="420"))
    return jpegs
