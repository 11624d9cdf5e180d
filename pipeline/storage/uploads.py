"""Changes on S3: whole, confirmed, and never of what another process has written meanwhile.

The answer to an upload has the ETag of what was received: the MD5 of its bytes, or of the MD5s of
its parts. Where it is something else (encryption with a key of KMS or of the client), the size is
asked for.

Below a fenced root (`pipeline.storage.fencing`) an upload is conditional: the object must not be
there, or be the one that was there before the lease was asked.
"""

import hashlib
import io
from collections.abc import Callable
from functools import partial
from typing import IO, Any

from pipeline.storage.errors import is_refused
from pipeline.storage.fencing import ask_fence, is_fenced
from pipeline.storage.threads import map_many

# Larger uploads go in parts, 10 at a time: 160 MB of memory.
_PART_BYTES = 16 * 2**20
_PARTS_AT_ONCE = 10
_NUM_TRIES = 5


class UnconfirmedUpload(ConnectionError):
    """What a server has is not what was sent; worth another try."""


def upload(fs: Any, path: str, open_file: Callable[[], IO[bytes]]) -> None:
    """Writes an object. Raises InfinegError if this process may not write it any more."""
    has_fence = is_fenced(fs, path)
    condition: dict[str, str] = {"IfNoneMatch": "*"}
    for _ in range(_NUM_TRIES):
        ask_fence(fs, path)
        with open_file() as file:
            try:
                _put(fs, path, file, condition if has_fence else {})
                return
            except OSError as error:
                if not (has_fence and is_refused(error)):
                    raise
        # Something is there: of an interrupted run, or of an upload whose answer was lost. The
        # lease is asked again after this, so that it is not what a later holder has written.
        condition = _condition_now(fs, path)
    raise UnconfirmedUpload("another process keeps writing it")


def upload_bytes(fs: Any, path: str, data: bytes) -> None:
    upload(fs, path, lambda: io.BytesIO(data))


def remove_object(fs: Any, path: str) -> None:
    """Removes what was there when the lease was asked. Raises FileNotFoundError if nothing was."""
    condition = {"IfMatch": fs.info(path)["ETag"]}
    ask_fence(fs, path)
    bucket, key, _ = fs.split_path(path)
    try:
        fs.call_s3("delete_object", Bucket=bucket, Key=key, **condition)
    except OSError as error:
        if not is_refused(error):
            raise


def _condition_now(fs: Any, path: str) -> dict[str, str]:
    try:
        return {"IfMatch": fs.info(path)["ETag"]}
    except FileNotFoundError:
        return {"IfNoneMatch": "*"}


def _put(fs: Any, path: str, file: IO[bytes], condition: dict[str, str]) -> None:
    bucket, key, _ = fs.split_path(path)
    where = {"Bucket": bucket, "Key": key}
    size = file.seek(0, io.SEEK_END)
    if size <= 2 * _PART_BYTES:
        file.seek(0)
        data = file.read()
        answer = fs.call_s3("put_object", Body=data, **where, **condition)
        _confirm(fs, where, answer, _md5(data).hexdigest(), size)
        return
    upload_id = fs.call_s3("create_multipart_upload", **where)["UploadId"]
    whole = {**where, "UploadId": upload_id}
    try:
        parts, digests = _put_parts(fs, whole, file, size)
        answer = fs.call_s3(
            "complete_multipart_upload", MultipartUpload={"Parts": parts}, **whole, **condition
        )
    except BaseException:
        fs.call_s3("abort_multipart_upload", **whole)
        raise
    _confirm(fs, where, answer, f"{_md5(b''.join(digests)).hexdigest()}-{len(parts)}", size)


def _put_parts(
    fs: Any, whole: dict[str, str], file: IO[bytes], size: int
) -> tuple[list[dict[str, Any]], list[bytes]]:
    """The parts as S3 wants them to complete an upload, and their MD5s."""
    parts: list[dict[str, Any]] = []
    digests: list[bytes] = []
    file.seek(0)
    while file.tell() < size:
        pieces = [piece for _ in range(_PARTS_AT_ONCE) if (piece := file.read(_PART_BYTES))]
        numbers = range(len(parts) + 1, len(parts) + 1 + len(pieces))
        put = partial(_put_part, fs, whole)
        answers = map_many(put, list(zip(numbers, pieces, strict=True)), fs=fs)
        parts += [
            {"PartNumber": n, "ETag": a["ETag"]} for n, a in zip(numbers, answers, strict=True)
        ]
        digests += [_md5(piece).digest() for piece in pieces]
    return parts, digests


def _put_part(fs: Any, whole: dict[str, str], part: tuple[int, bytes]) -> dict[str, Any]:
    number, data = part
    answer: dict[str, Any] = fs.call_s3("upload_part", PartNumber=number, Body=data, **whole)
    _has_etag(answer, _md5(data).hexdigest())
    return answer


def _confirm(fs: Any, where: dict[str, str], answer: dict[str, Any], etag: str, size: int) -> None:
    """Raises UnconfirmedUpload unless the server has what was sent."""
    if not _has_etag(answer, etag):
        found = fs.call_s3("head_object", **where)["ContentLength"]
        if found != size:
            raise UnconfirmedUpload(f"the server has {found:,} bytes of {size:,}")


def _has_etag(answer: dict[str, Any], etag: str) -> bool:
    """Whether an answer has an ETag of the content; raises UnconfirmedUpload if that differs."""
    encryption = answer.get("ServerSideEncryption", "AES256")
    received = str(answer.get("ETag", "")).strip('"')
    if encryption != "AES256" or "SSECustomerAlgorithm" in answer or not received:
        return False
    if received != etag:
        raise UnconfirmedUpload(f"the server has other bytes: ETag {received}, not {etag}")
    return True


def _md5(data: bytes) -> Any:
    return hashlib.md5(data, usedforsecurity=False)
