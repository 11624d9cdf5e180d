"""What every page has that is served from here to a person's browser.

Other users of this machine reach the port, too: every path begins with a secret, which only the
terminal shows. It is no cookie, which a browser would send to all ports of this machine.

URIs and class names come from strangers, and any site that is open in the browser may send requests
here. Therefore a page runs no foreign or inline script (CSP) and sets texts as text; names are
looked up and never used as paths; on loopback only host names of this machine are accepted (DNS
rebinding); and a change needs a token that a foreign site can neither read nor, without CORS, send.
"""

import hmac
import secrets
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Annotated

import jinja2
import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from starlette.middleware.trustedhost import TrustedHostMiddleware

from pipeline import storage
from pipeline.errors import ConfigError, InfinegError
from pipeline.telemetry.listening import listen, serve_until_interrupted

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
_SHARED = {"local_page.js": "text/javascript", "icon.svg": "image/svg+xml"}
_STATIC = {"page.css": "text/css", "page.js": "text/javascript", **_SHARED}


class UnknownPicture(InfinegError):
    """What is on the page has no such picture."""


def make_app(routes: APIRouter, *, package: str, command: str, is_local: bool = True) -> FastAPI:
    """The application that serves `routes`, and the files of a page that lie in `package`.

    command: that has printed the address. is_local: whether only this machine is to reach it; else
    the secret is all that protects it. `app.state` has the template `page` and the `token` in it.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.globals["command"] = command
    app.state.package, app.state.command = package, command
    app.state.page = environment.from_string(_read_file(package, "page.html.j2"))
    app.state.secret = secrets.token_urlsafe(32)  # in the address of the page
    app.state.token = secrets.token_urlsafe(32)  # in the page
    app.middleware("http")(_require_secret)
    hosts = list(LOCAL_NAMES) if is_local else ["*"]
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    app.middleware("http")(_add_headers)
    app.add_exception_handler(UnknownPicture, _answer(404))
    # A takedown deletes files.
    app.add_exception_handler(
        FileNotFoundError, _answer(404, "the picture was deleted: reload the page")
    )
    app.add_exception_handler(InfinegError, _answer(409))
    app.add_exception_handler(OSError, _answer(409))
    app.include_router(routes)
    app.add_api_route("/static/{name}", _read_static)
    return app


def serve(app: FastAPI, *, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serves an application until interrupted.

    announce: called when the page is served, with its address, in which is its secret. Port 0 is
    any free one. Raises ConfigError for a port that is taken.
    """
    try:
        listener = listen(host, port)
    except OSError as error:
        raise ConfigError(
            f"--port {port}: cannot listen on {host} ({error.strerror}). Use another, or 0 for any "
            "free one"
        ) from None
    with listener:
        # Without a log of its own, which would show what ours redacts.
        config = uvicorn.Config(app, log_level="warning", access_log=False, log_config=None)
        name = f"[{host.strip('[]')}]" if ":" in host else host
        url = f"http://{name}:{listener.getsockname()[1]}/{app.state.secret}/"
        serve_until_interrupted(config, listener, lambda: announce(url))


def _require_token(request: Request, x_page_token: Annotated[str, Header()] = "") -> None:
    token: str = request.app.state.token
    origin = request.headers.get("origin")
    is_same = origin is None or origin == f"http://{request.headers['host']}"
    if not is_same or not hmac.compare_digest(x_page_token.encode(), token.encode()):
        raise HTTPException(403, "the request does not come from the current page: reload it")


CHANGES = [Depends(_require_token)]  # dependencies of a route that changes something


def picture(jpeg: bytes) -> Response:
    """The answer of a route whose path never gets another picture."""
    headers = {"Cache-Control": "private, max-age=3600, immutable"}
    return Response(jpeg, media_type="image/jpeg", headers=headers)


def _read_static(name: str, request: Request) -> Response:
    if name not in _STATIC:
        raise HTTPException(404)
    return Response(_read_file(request.app.state.package, name), media_type=_STATIC[name])


async def _require_secret(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    """Takes the secret off the path, for the routes; refuses a path without it."""
    given, slash, rest = request.scope["path"].removeprefix("/").partition("/")
    secret: str = request.app.state.secret
    if not slash or not hmac.compare_digest(given.encode(), secret.encode()):
        detail = (
            f"open the address that `{request.app.state.command}` has printed, with all that "
            "follows the port"
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


def _read_file(package: str, name: str) -> str:
    folder = "pipeline.curate" if name in _SHARED else package
    return (resources.files(folder) / name).read_text(encoding="utf-8")
