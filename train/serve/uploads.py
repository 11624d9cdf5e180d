"""The image file in a request, or an answer that a person understands.

A body is read as a stream, held in memory alone, and given up once it is too long.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from fastapi import HTTPException, Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.dataset.decoders import UnusableImage, decoded_area, formats, open_image
from pipeline.dataset.schema import RejectReason
from train.serve.admission import Held

MAX_IMAGE_BYTES = 20_000_000
MAX_PIXELS = 50_000_000
MAX_SIDE = 65_500  # of JPEG, in which the detector's images are kept
FIELD = "image"

_MAX_BODY_BYTES = MAX_IMAGE_BYTES + 65_536  # boundaries, headers and other fields
_MAX_DISCARDED_BYTES = 200_000_000
_UPLOAD_TIMEOUT_S = 60
_DISCARD_TIMEOUT_S = 10
_WANTED = f"send multipart/form-data with one picture in the field `{FIELD}`"
_TOO_LONG = f"the picture is larger than {MAX_IMAGE_BYTES // 1_000_000} MB: send a smaller one"
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


class _InMemory(MultiPartParser):
    """Starlette's parser, without temporary files: there may be no disk to write to."""

    spool_max_size = _MAX_BODY_BYTES


async def read_image(request: Request, held: Held) -> bytes:
    """The bytes of the one picture in a request; counts the bytes of the body in `held`.

    Raises HTTPException: 400 for a body that is no form or has several pictures, 408 for one that
    does not arrive, 413 for too many bytes, 415 if there is no picture in it, 503 as `held` does.
    """
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        raise HTTPException(415, f"this request is {kind or 'without a content type'}: {_WANTED}")
    try:
        async with asyncio.timeout(_UPLOAD_TIMEOUT_S):
            form = await _InMemory(
                request.headers, _bounded(request, held), max_files=2, max_fields=8
            ).parse()
    except TimeoutError:
        raise HTTPException(
            408, f"the picture did not arrive within {_UPLOAD_TIMEOUT_S} s: send it again"
        ) from None
    except MultiPartException as error:
        raise HTTPException(400, f"the form cannot be read ({error.message}): {_WANTED}") from None
    except ClientDisconnect:
        raise HTTPException(400, "the connection ended before the picture had arrived") from None
    try:
        return await _only_image(form)
    finally:
        await form.close()


async def _only_image(form: FormData) -> bytes:
    files = [each for each in form.getlist(FIELD) if isinstance(each, UploadFile)]
    if not files:
        fields = ", ".join(sorted(set(form))) or "none"
        raise HTTPException(
            415, f"no complete picture in the request (its fields: {fields}): {_WANTED}"
        )
    if len(files) > 1:
        raise HTTPException(400, "several pictures in one request: send one request for each")
    image = await files[0].read()
    if len(image) > MAX_IMAGE_BYTES:
        raise HTTPException(413, _TOO_LONG)
    if not image:
        raise HTTPException(415, "the picture is empty: 0 bytes")
    return image


async def _bounded(request: Request, held: Held) -> AsyncGenerator[bytes, None]:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > _MAX_BODY_BYTES:
        raise HTTPException(413, _TOO_LONG)
    async for chunk in request.stream():
        held.add(len(chunk))
        if held.num_bytes > _MAX_BODY_BYTES:
            raise HTTPException(413, _TOO_LONG)
        yield chunk


class ReadRest:
    """ASGI middleware that reads what is left of a body, for nothing, before it is answered.

    A client that still sends when the connection is closed loses the answer, and a browser shows an
    error of the network instead. There are bounds for it in bytes and in time.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        is_begun = is_complete = False

        async def tracked() -> Message:
            nonlocal is_begun, is_complete
            is_begun = True
            message = await receive()
            is_complete = not message.get("more_body", False)
            return message

        async def read_and_send(message: Message) -> None:
            # A client that asks before it sends (Expect: 100-continue) must not be told to send.
            waits = not is_begun and any(name == b"expect" for name, _ in scope["headers"])
            if message["type"] == "http.response.start" and not is_complete and not waits:
                await _discard(tracked)
            await send(message)

        await self._app(scope, tracked, read_and_send)


async def _discard(receive: Receive) -> None:
    num_bytes = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_TIMEOUT_S):
            while num_bytes < _MAX_DISCARDED_BYTES:
                message = await receive()
                num_bytes += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def refuse_oversized(image: bytes) -> None:
    """Raises HTTPException 413 for too many pixels, by the header; decodes nothing.

    What is no image at all is for the detector to say.
    """
    try:
        with open_image(image) as picture:
            area, (width, height) = decoded_area(picture), picture.size
    except UnusableImage as unusable:
        if unusable.reason == RejectReason.TOO_LARGE:
            raise refusal(image, unusable.reason) from None
        return
    if area > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise HTTPException(
            413,
            f"the picture has {width:,} x {height:,} pixels, which is too large: at most "
            f"{MAX_PIXELS // 1_000_000} megapixels and {MAX_SIDE:,} pixels a side",
        )


def refusal(image: bytes, reason: str) -> HTTPException:
    """The answer for an image that the detector cannot use. reason: what it has said."""
    match reason.rpartition(": ")[2]:
        case RejectReason.TOO_LARGE | RejectReason.BAD_ASPECT:
            return HTTPException(413, "the picture is too large to be decoded: send a smaller one")
        case RejectReason.TRUNCATED:
            return HTTPException(415, "part of the picture is missing: send the whole file again")
        case RejectReason.UNSUPPORTED_MODE:
            return HTTPException(
                415, "the picture's colours are of a kind that is not read: save it as JPEG"
            )
        case RejectReason.UNREADABLE:
            return HTTPException(415, _what_it_is(image))
    return HTTPException(415, reason)


def _what_it_is(image: bytes) -> str:
    known = ", ".join(formats())
    if image[4:8] == b"ftyp" and image[8:12] in _HEIF_BRANDS and "HEIF" not in formats():
        return (
            "this is a HEIC picture, which is not read here: save it as JPEG, or install "
            "pillow-heif on the server"
        )
    if b"<svg" in image[:4096].lower():
        return "this is a drawing (SVG), not a photograph: save it as PNG"
    return f"this is no picture that can be read; these can: {known}"
