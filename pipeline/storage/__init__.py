"""Files and objects through fsspec: list, read, write atomically, hash, retry.

Every path is a local path or a URL such as s3://, gs://, hf:// or https://. All reads and writes
of the project go through this package.
"""

from pipeline.storage.atomic import HashingWriter, open_atomic, refuse_unwritable, write_atomic
from pipeline.storage.conditional import create_exclusive, remove_if, replace_if, until_written
from pipeline.storage.fencing import Fence, fence_of, fence_worker, fenced
from pipeline.storage.files import (
    exists,
    fetch,
    local_path,
    open_read,
    read_bytes,
    read_local,
    read_many,
    read_range,
    remove_many,
    remove_tree,
    sha256_of,
)
from pipeline.storage.listings import (
    list_files,
    list_prefix,
    list_times,
    list_visible,
    size_of,
    sizes_of,
)
from pipeline.storage.local_cache import HALF_COPY, LocalCache, cache_folder
from pipeline.storage.locations import (
    configure,
    escape,
    holds_credentials,
    is_secret_name,
    join,
    redact,
    refuse_credentials,
)
from pipeline.storage.outside import as_failure, reading
from pipeline.storage.public import PrivateAddress, is_public
from pipeline.storage.threads import map_ahead
from pipeline.storage.versions import FileVersion, list_versions, versions_of
from pipeline.storage.walking import is_hidden, walk

__all__ = [
    "HALF_COPY",
    "Fence",
    "FileVersion",
    "HashingWriter",
    "LocalCache",
    "PrivateAddress",
    "as_failure",
    "cache_folder",
    "configure",
    "create_exclusive",
    "escape",
    "exists",
    "fence_of",
    "fence_worker",
    "fenced",
    "fetch",
    "holds_credentials",
    "is_hidden",
    "is_public",
    "is_secret_name",
    "join",
    "list_files",
    "list_prefix",
    "list_times",
    "list_versions",
    "list_visible",
    "local_path",
    "map_ahead",
    "open_atomic",
    "open_read",
    "read_bytes",
    "read_local",
    "read_many",
    "read_range",
    "reading",
    "redact",
    "refuse_credentials",
    "refuse_unwritable",
    "remove_if",
    "remove_many",
    "remove_tree",
    "replace_if",
    "sha256_of",
    "size_of",
    "sizes_of",
    "until_written",
    "versions_of",
    "walk",
    "write_atomic",
]
