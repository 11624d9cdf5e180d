"""Who may use the server.

Without a token it is for the programs and browsers of this machine: it listens on loopback, and
refuses requests under a foreign host name (DNS rebinding) and pictures that a page of another site
makes a browser send. Such a page could not read the answer, but it could keep the machine busy.

With a token, each request shows it: in an Authorization header, or as the first part of the path,
which is how a browser carries it. It is no cookie, which a browser would send by itself, and to all
ports of the machine. Rebinding and foreign sites then fail for lack of the token. /healthz, which
says nothing, is open.
"""

import hmac
import ipaddress
import os
import re
import secrets
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline import storage
from pipeline.errors import ConfigError

TOKEN_VARIABLE = "INFINEG_SERVE_TOKEN"
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,256}")
_OPEN = "/healthz"


class Access:
    """ASGI middleware that refuses requests from elsewhere, or without the token."""

    def __init__(self, app: ASGIApp, *, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            refused = _refusal(scope) if self._token is None else self._without_token(scope)
            if refused:
                await refused(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _without_token(self, scope: Scope) -> JSONResponse | None:
        """Takes the token off the path if it is there."""
        if scope["path"] == _OPEN:
            return None
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(given.strip()):
            return None
        given, slash, rest = scope["path"].removeprefix("/").partition("/")
        if slash and self._is_token(given):
            scope["path"] = f"/{rest}"
            return None
        detail = (
            "a token is needed: open the address that `infineg serve` has printed, with all that "
            "follows the port, or send the header `Authorization: Bearer TOKEN`"
        )
        return JSONResponse({"detail": detail}, 401, {"WWW-Authenticate": "Bearer"})

    def _is_token(self, given: str) -> bool:
        assert self._token is not None
        return hmac.compare_digest(given.encode(), self._token.encode())


def _refusal(scope: Scope) -> JSONResponse | None:
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    if not is_loopback(_name_of(host)):
        detail = "this server answers on this machine alone: open it as 127.0.0.1 or localhost"
        return JSONResponse({"detail": detail}, 400)
    if scope["method"] in ("GET", "HEAD"):  # such as a link to the page; changes and costs nothing
        return None
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
    if site not in ("same-origin", "none") or (origin is not None and origin != f"http://{host}"):
        return JSONResponse({"detail": "requests of other sites are refused"}, 403)
    return None


def _name_of(host: str) -> str:
    """The host of a Host header, without its port; "" if it has none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own, by its spelling."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def choose_token(host: str, token_file: str | None) -> tuple[str | None, bool]:
    """The token, and whether it is a new one, which must be shown.

    From the file, else from the environment; else a new one, or on loopback none. Raises
    ConfigError for one that is too short or has other characters than an address may have.
    """
    if token_file is not None:
        given, place = storage.read_bytes(token_file).decode(errors="replace").strip(), token_file
    elif TOKEN_VARIABLE in os.environ:
        given, place = os.environ[TOKEN_VARIABLE].strip(), TOKEN_VARIABLE
    else:
        return (None, False) if is_loopback(host) else (secrets.token_urlsafe(32), True)
    if not _TOKEN.fullmatch(given):
        raise ConfigError(
            f"{place}: a token has 16 to 256 characters of A-Z a-z 0-9 . _ ~ - (this one has "
            f"{len(given)}); make one with `openssl rand -hex 32`"
        )
    return given, False
