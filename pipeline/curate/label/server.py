"""Serves the page until interrupted."""

from collections.abc import Callable

from pipeline.config.schema import Config
from pipeline.curate.label.app import make_app
from pipeline.curate.label.session import LabelSession
from pipeline.curate.local_page import LOCAL_NAMES, serve


def serve_labelling(
    config: Config,
    *,
    target: str,
    rater: str,
    host: str = "127.0.0.1",
    port: int = 8002,
    announce: Callable[[str, str], None],
) -> None:
    """announce: called with the address of the page and the path of the log.

    Port 0 is any free one. Beyond this machine the secret in the address is what protects the page.
    Raises ConfigError for a port that is taken, and if there is nothing to label.
    """
    session = LabelSession(config, target, rater)
    app = make_app(session, is_local=host in LOCAL_NAMES)
    serve(app, host=host, port=port, announce=lambda url: announce(url, session.log_path))
