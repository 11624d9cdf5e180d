"""Serves a run until interrupted."""

import contextlib
import socket
from collections.abc import Callable

import uvicorn

from pipeline.errors import ConfigError
from pipeline.telemetry.listening import listen, serve_until_interrupted
from train.serve.access import choose_token
from train.serve.app import make_app
from train.serve.model import load_model

_ANY = ("0.0.0.0", "::")
# How long requests in flight may take at shutdown; slower ones are dropped.
_LAST_ANSWERS_S = 1


def serve_run(
    run: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    prior: float | None = None,
    token_file: str | None = None,
    max_pictures: int = 128,
    announce: Callable[[str], None],
) -> None:
    """Serves the page and the API of a run.

    announce: called when the page is served, with its address. On another address than
    loopback a token is part of it; one from a file or the environment is not shown. Port 0 is any
    free one. Raises ConfigError for a run that is not trained and calibrated, for a bad token, and
    for an address that cannot be listened on.
    """
    token, is_new = choose_token(host, token_file)
    with _listen(host, port) as listener:
        app = make_app(load_model(run, prior=prior), token=token, max_pictures=max_pictures)
        # Without a log of its own, which would show the paths that carry the token.
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=_LAST_ANSWERS_S,
            ws="none",
        )
        shown = "" if token is None else f"{token if is_new else 'TOKEN'}/"
        url = f"http://{_reachable(host)}:{listener.getsockname()[1]}/{shown}"
        serve_until_interrupted(config, listener, lambda: announce(url))


def _listen(host: str, port: int) -> socket.socket:
    try:
        return listen(host, port)
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror}). Use an address "
            "of this machine, and another port, or 0 for any free one"
        ) from None


def _reachable(host: str) -> str:
    """The host for an address; of all addresses the one that leads to other machines."""
    bare = host.strip("[]")
    if bare in _ANY:
        is_ipv6 = ":" in bare
        family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
        bare = socket.gethostname()
        # Connecting a UDP socket sends nothing; it only chooses the route.
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(("2001:db8::1" if is_ipv6 else "192.0.2.1", 9))
            bare = probe.getsockname()[0]
    return f"[{bare}]" if ":" in bare else bare
