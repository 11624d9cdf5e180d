"""Serves the page on this machine until interrupted."""

from collections.abc import Callable, Sequence

from pipeline.curate.local_page import LOCAL_NAMES, serve
from pipeline.curate.review.app import make_app
from pipeline.curate.review.session import ReviewSession
from pipeline.dataset import Dataset
from pipeline.errors import ConfigError


def serve_review(
    root: str,
    *,
    targets: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8001,
    announce: Callable[[str, str], None],
) -> None:
    """Serves a review for some targets, by default for all of the data set.

    announce: called with the address of the page and the path of the verdict file. Port 0 is any
    free one. Raises ConfigError for a host that is not this machine and for a port that is taken.
    """
    if host not in LOCAL_NAMES:
        raise ConfigError(
            f"--host {host}: the page is served only on this machine: use "
            f"{', '.join(LOCAL_NAMES[:3])}. From elsewhere: ssh -L {port}:127.0.0.1:{port} HOST"
        )
    chosen = targets or Dataset(root).read_info().targets
    sessions = {target: ReviewSession(root, target) for target in chosen}
    verdict_path = sessions[chosen[0]].verdict_path
    app = make_app(sessions)
    serve(app, host=host, port=port, announce=lambda url: announce(url, verdict_path))
