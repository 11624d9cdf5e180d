"""The review over HTTP: the page, JSON and pictures, for a browser on this machine.

Other users of this machine reach the port, too: every path begins with a secret, which only the
terminal shows. It is no cookie, which a browser would send to all ports of this machine.

URIs and class names come from strangers, and any site that is open in the browser may send requests
here. Therefore the page runs no foreign or inline script (CSP) and sets texts as text; names are
looked up and never used as paths; only host names of this machine are accepted (DNS rebinding); and
a change needs a token that a foreign site can neither read nor, without CORS, send.
"""

import hmac
import secrets
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Annotated, Any

import jinja2
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from pipeline import storage
from pipeline.curate.review.session import ReviewSession
from pipeline.curate.review.suspects import UnknownPicture
from pipeline.curate.verdicts import Verdict
from pipeline.errors import InfinegError

LOCAL_NAMES = ("127.0.0.1", "localhost", "::1", "[::1]")
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; script-src 'self'; style-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_STATIC = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}


class Decisions(BaseModel, frozen=True, extra="forbid"):
    """Verdicts by key; null removes one."""

    verdicts: dict[str, Verdict | None] = Field(min_length=1, max_length=1000)


_routes = APIRouter()


def make_app(sessions: dict[str, ReviewSession]) -> FastAPI:
    """The application that serves reviews, by target."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    app.state.page = environment.from_string(_read_file("page.html.j2"))
    app.state.sessions = sessions  # the first is the default
    app.state.secret = secrets.token_urlsafe(32)  # in the address of the page
    app.state.token = secrets.token_urlsafe(32)  # in the page
    app.middleware("http")(_require_secret)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOCAL_NAMES), www_redirect=False)
    app.middleware("http")(_add_headers)
    app.add_exception_handler(UnknownPicture, _answer(404))
    # A takedown deletes files.
    app.add_exception_handler(
        FileNotFoundError, _answer(404, "the picture was deleted: reload the page")
    )
    app.add_exception_handler(InfinegError, _answer(409))
    app.add_exception_handler(OSError, _answer(409))
    app.include_router(_routes)
    return app


def _find_session(request: Request, target: str = "") -> ReviewSession:
    sessions: dict[str, ReviewSession] = request.app.state.sessions
    if target and target not in sessions:
        raise HTTPException(404, f"unknown target: this review has {', '.join(sessions)}")
    return sessions[target or next(iter(sessions))]


def _require_token(request: Request, x_review_token: Annotated[str, Header()] = "") -> None:
    token: str = request.app.state.token
    origin = request.headers.get("origin")
    is_same = origin is None or origin == f"http://{request.headers['host']}"
    if not is_same or not hmac.compare_digest(x_review_token.encode(), token.encode()):
        raise HTTPException(403, "the request does not come from the current page: reload it")


Session = Annotated[ReviewSession, Depends(_find_session)]
_changes = [Depends(_require_token)]


@_routes.get("/", response_class=HTMLResponse)
def show_page(request: Request, session: Session) -> str:
    state = request.app.state
    session.refresh()
    page: str = state.page.render(session=session, targets=list(state.sessions), token=state.token)
    return page


@_routes.get("/api/page/{number}")
def read_page(number: int, session: Session) -> dict[str, Any]:
    return session.page(max(number, 0))


@_routes.get("/api/undecided")
def find_undecided(session: Session, after: int = -1) -> dict[str, int | None]:
    return {"position": session.next_undecided(after)}


@_routes.get("/api/nearest/{key}")
def find_nearest(key: str, session: Session) -> list[dict[str, Any]]:
    return session.nearest(key)


@_routes.get("/suspects/{key}")
def read_suspect(key: str, session: Session) -> Response:
    return _picture(session.suspect_image(key))


@_routes.get("/positives/{content_hash}")
def read_positive(content_hash: str, session: Session) -> Response:
    return _picture(session.positive_image(content_hash))


@_routes.post("/api/verdicts", dependencies=_changes)
def save_verdicts(decisions: Decisions, session: Session) -> dict[str, Any]:
    return session.decide(decisions.verdicts)


@_routes.post("/api/apply", dependencies=_changes)
def apply_verdicts(session: Session) -> dict[str, int]:
    generation, num_applied = session.apply()
    return {"generation": generation.number, "num_applied": num_applied}


@_routes.get("/static/{name}")
def read_static(name: str) -> Response:
    if name not in _STATIC:
        raise HTTPException(404)
    return Response(_read_file(name), media_type=_STATIC[name])


def _picture(jpeg: bytes) -> Response:
    # A key or content hash never gets another picture.
    headers = {"Cache-Control": "private, max-age=3600, immutable"}
    return Response(jpeg, media_type="image/jpeg", headers=headers)


async def _require_secret(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    """Takes the secret off the path, for the routes; refuses a path without it."""
    given, slash, rest = request.scope["path"].removeprefix("/").partition("/")
    secret: str = request.app.state.secret
    if not slash or not hmac.compare_digest(given.encode(), secret.encode()):
        detail = (
            "open the address that `infineg review` has printed, with all that follows the port"
        )
        return JSONResponse({"detail": detail}, 403)
    request.scope["path"] = f"/{rest}"
    return await call_next(request)


async def _add_headers(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    response = await call_next(request)
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _answer(status: int, detail: str | None = None) -> Callable[[Request, Exception], Response]:
    """A handler that answers with `detail`, or with what the error says."""
    return lambda _, error: JSONResponse(
        {"detail": detail or storage.redact(str(storage.as_failure(error) or error))}, status
    )


def _read_file(name: str) -> str:
    return (resources.files("pipeline.curate.review") / name).read_text(encoding="utf-8")
