"""A server of pages: its socket, and its life until it is interrupted."""

import contextlib
import socket
from collections.abc import Callable

import uvicorn

_BACKLOG = 2048  # connections that wait to be accepted


def listen(host: str, port: int) -> socket.socket:
    """A TCP socket that listens; port 0 is any free one. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host.strip("[]"), port), family=family, backlog=_BACKLOG)
    # Connections inherit it. Without it the body of an answer, which follows its headers, waits
    # 40 ms; asyncio sets it only for sockets that it has made itself.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def serve_until_interrupted(
    config: uvicorn.Config, listener: socket.socket, announce: Callable[[], None]
) -> None:
    """Answers requests until SIGINT or SIGTERM; announce is called once it does."""
    with contextlib.suppress(KeyboardInterrupt):  # the intended end
        _AnnouncingServer(config, announce).run(sockets=[listener])


class _AnnouncingServer(uvicorn.Server):
    """Whoever reads the announcement may interrupt: by then the signals are the server's.

    An interrupt before, while the event loop is being made, would leave a traceback.
    """

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._announce()
