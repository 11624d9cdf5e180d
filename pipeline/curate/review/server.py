"""Serves the page on this machine until interrupted."""

from collections.abc import Callable, Sequence

import uvicorn

from pipeline.curate.review.app import LOCAL_NAMES, make_app
from pipeline.curate.review.session import ReviewSession
from pipeline.dataset import Dataset
from pipeline.errors import ConfigError
from pipeline.telemetry.listening import listen, serve_until_interrupted


def serve_review(
    root: str,
    *,
    targets: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8001,
    announce: Callable[[str, str], None],
) -> None:
    """Serves a review for some targets, by default for all of the data set.

    announce: called when the page is served, with its address, in which is its secret, and
    the path of the verdict file. Port 0 is any free one. Raises ConfigError for a host that is not
    this machine and for a port that is taken.
    """
    if host not in LOCAL_NAMES:
        raise ConfigError(
            f"--host {host}: the page is served only on this machine: use "
            f"{', '.join(LOCAL_NAMES[:3])}. From elsewhere: ssh -L {port}:127.0.0.1:{port} HOST"
        )
    chosen = targets or Dataset(root).read_info().targets
    sessions = {target: ReviewSession(root, target) for target in chosen}
    try:
        listener = listen(host, port)
    except OSError as error:
        raise ConfigError(
            f"--port {port}: cannot listen on {host} ({error.strerror}). Use another, or 0 for any "
            "free one"
        ) from None
    with listener:
        app = make_app(sessions)
        # Without a log of its own, which would show what ours redacts.
        config = uvicorn.Config(app, log_level="warning", access_log=False, log_config=None)
        name = f"[{host}]" if ":" in host else host
        url = f"http://{name}:{listener.getsockname()[1]}/{app.state.secret}/"
        verdict_path = sessions[chosen[0]].verdict_path
        serve_until_interrupted(config, listener, lambda: announce(url, verdict_path))
