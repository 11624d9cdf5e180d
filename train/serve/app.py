"""The page and the API over HTTP.

Nothing is loaded from another host, no script is foreign or inline (CSP), and names of
files never reach the server's page: the browser sets them as text.
"""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from importlib import resources
from importlib.metadata import version
from typing import Annotated, Any

import jinja2
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from train.model.neighbours import Neighbour
from train.serve.access import Access
from train.serve.admission import Admission
from train.serve.batching import Batcher
from train.serve.metrics import CountRequests, ServeMetrics
from train.serve.model import Prediction, ServedModel
from train.serve.uploads import (
    FIELD,
    MAX_IMAGE_BYTES,
    MAX_PIXELS,
    ReadRest,
    read_image,
    refusal,
    refuse_oversized,
)

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self' blob:; script-src 'self'; style-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
# Where the files of the page lie; the colours and letters are those of report.html.
_STATIC = {
    "theme.css": ("pipeline.page", "text/css"),
    "page.css": ("train.serve", "text/css"),
    "page.js": ("train.serve", "text/javascript"),
    "icon.svg": ("train.serve", "image/svg+xml"),
}
_FORM = {
    "parameters": [
        {
            "name": "nearest",
            "in": "query",
            "description": "true: answer with the training pictures most like it, some 20 kB.",
            "schema": {"type": "string", "enum": ["true"]},
        }
    ],
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {FIELD: {"type": "string", "format": "binary"}},
                }
            }
        },
    },
}


class Alike(BaseModel, frozen=True):
    """A training picture that is like the one asked about; not where its file is."""

    label: str = Field(description='What it shows; "" for none of the targets.')
    similarity: float = Field(description="Cosine of the embeddings.")
    key: str
    source: str
    license: str | None
    preview: str = Field(description="A small JPEG, base64.")

    @classmethod
    def of(cls, neighbour: Neighbour) -> "Alike":
        preview = base64.b64encode(neighbour.preview).decode()
        told = {name: getattr(neighbour, name) for name in cls.model_fields}
        return cls(**{**told, "preview": preview})


class Nearest(BaseModel, frozen=True):
    """The training pictures most like it, nearest first."""

    positives: list[Alike]
    negatives: list[Alike]


class Answer(BaseModel, frozen=True):
    """What a picture shows."""

    label: str = Field(description='The target that the picture shows; "" for none of them.')
    probabilities: dict[str, float] = Field(description="By target, at `prior`.")
    thresholds: dict[str, float] = Field(
        description="By target: the probability from which it is the label."
    )
    prior: float | None = Field(
        description="Share of all pictures that show a target, which probabilities go by."
    )
    one_in: float = Field(
        description="Of so many pictures without the target, one looks this much like it."
    )
    model: str = Field(description="The run, and the first digits of the sha256 of its model.json.")
    nearest: Nearest | None = Field(
        None, description="Only if asked for, of a run with neighbours.parquet."
    )


class Fault(BaseModel, frozen=True):
    """Why there is no answer."""

    detail: str


class Health(BaseModel, frozen=True):
    """Whether predictions are made."""

    status: str


_FAULTS: dict[int | str, dict[str, Any]] = {
    400: {"model": Fault, "description": "The form is broken, or has several pictures."},
    401: {"model": Fault, "description": "The token is missing or wrong."},
    403: {"model": Fault, "description": "Sent by a page of another site."},
    408: {"model": Fault, "description": "The picture did not arrive in time."},
    413: {
        "model": Fault,
        "description": f"Over {MAX_IMAGE_BYTES // 1_000_000} MB, or over "
        f"{MAX_PIXELS // 1_000_000} megapixels.",
    },
    415: {"model": Fault, "description": "No picture that can be read."},
    503: {"model": Fault, "description": "Too many pictures at once; see Retry-After."},
}

_routes = APIRouter()


class _Service:
    """What requests share."""

    def __init__(self, model: ServedModel, *, max_pictures: int) -> None:
        self.model = model
        self.metrics = ServeMetrics(model.targets, model.val_logits)
        self.admission = Admission(max_pictures=max_pictures)
        self.metrics.watch_queue(lambda: self.admission.num_pictures)
        self.batcher = Batcher(model.predict, on_batch=self.metrics.batch_size.observe)
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        self.page = environment.from_string(_read_file("train.serve", "page.html.j2")).render(
            targets=model.targets, model=model.name, max_bytes=MAX_IMAGE_BYTES
        )


def make_app(model: ServedModel, *, token: str | None, max_pictures: int) -> ASGIApp:
    """The application: FastAPI's, behind access, headers and counting.

    token: None where the server is on loopback. max_pictures: how many may be uploaded, wait and
    be looked at, all together.
    """
    service = _Service(model, max_pictures=max_pictures)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.batcher.running():
            yield

    # Without its pages of documentation, which load scripts from another host.
    app = FastAPI(
        title="infineg",
        version=version("infineg"),
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.add_exception_handler(Exception, _say_fault)
    app.include_router(_routes)
    return CountRequests(ReadRest(_AddHeaders(Access(app, token=token))), service.metrics)


def _service_of(request: Request) -> _Service:
    service: _Service = request.app.state.service
    return service


Service = Annotated[_Service, Depends(_service_of)]


@_routes.get("/", response_class=HTMLResponse, include_in_schema=False)
async def show_page(service: Service) -> str:
    return service.page


@_routes.get("/static/{name}", include_in_schema=False)
async def read_static(name: str) -> Response:
    if name not in _STATIC:
        raise HTTPException(404)
    package, media_type = _STATIC[name]
    return Response(_read_file(package, name), media_type=media_type)


@_routes.post("/predict", responses=_FAULTS, openapi_extra=_FORM, response_model_exclude_unset=True)
async def predict(request: Request, service: Service) -> Answer:
    """Whether a picture shows a target: JPEG, PNG, WebP, and other formats of photographs."""
    with service.admission.admit() as held:
        image = await read_image(request, held)
        await asyncio.to_thread(refuse_oversized, image)
        found = await service.batcher.predict(image)
    if isinstance(found, str):
        raise refusal(image, found)
    service.metrics.add(found)
    is_wanted = request.query_params.get("nearest") == "true"
    explained = {"nearest": _alike(found)} if is_wanted else {}
    return Answer(
        label=found.label,
        probabilities=found.probabilities,
        thresholds=found.thresholds,
        prior=found.prior,
        one_in=found.one_in,
        model=service.model.name,
        **explained,
    )


def _alike(found: Prediction) -> Nearest | None:
    if found.nearest is None:
        return None
    kinds = (found.nearest.positives, found.nearest.negatives)
    positives, negatives = ([Alike.of(each) for each in kind] for kind in kinds)
    return Nearest(positives=positives, negatives=negatives)


@_routes.get("/healthz", responses={503: {"model": Health}})
async def check_health(service: Service) -> Response:
    """200 while predictions are made, 503 otherwise."""
    if service.batcher.is_alive:
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": "predictions have stopped: see the server's log"}, 503)


@_routes.get("/metrics", include_in_schema=False)
async def read_metrics(service: Service) -> Response:
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _say_fault(_: Request, __: Exception) -> Response:
    """For a bug, whose traceback the server logs."""
    return JSONResponse({"detail": "the server failed at this: its log has the reason"}, 500)


class _AddHeaders:
    """ASGI middleware that gives every answer the headers of `_HEADERS`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _read_file(package: str, name: str) -> str:
    return (resources.files(package) / name).read_text(encoding="utf-8")
