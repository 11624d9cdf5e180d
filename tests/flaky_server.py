"""An HTTP server on loopback that fails as it is told, before another server or some files.

Faults are taken one a request, from the front:
    reset   the connection is reset before an answer
    lost    the request is carried out, then the connection is reset
    cut     half of the body is sent, then the connection is reset
    hang    the answer comes after 2 s
    503     any number: this status, with the body that S3 would send
"""

import contextlib
import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_S3_CODES = {
    "400": "RequestTimeout",
    "403": "InvalidAccessKeyId",
    "500": "InternalError",
    "503": "SlowDown",
}
_Answer = tuple[int, dict[str, str], bytes]


@dataclass
class FlakyServer:
    """What it does: `upstream` is asked, or `files` (path -> content) are served."""

    upstream: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    has_ranges: bool = True
    faults: list[str] = field(default_factory=list)
    # Only requests that these are true for use up a fault: (method, path with query).
    is_flaky: Callable[[str, str], bool] = lambda _method, _path: True
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    url: str = ""

    def num_requests(self, method: str) -> int:
        return sum(request[0] == method for request in self.requests)

    def next_fault(self, method: str, path: str) -> str:
        return self.faults.pop(0) if self.faults and self.is_flaky(method, path) else ""

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> _Answer:
        return (
            self._ask(method, path, headers, body) if self.upstream else self._file(path, headers)
        )

    def _ask(self, method: str, path: str, headers: dict[str, str], body: bytes) -> _Answer:
        connection = http.client.HTTPConnection(urlsplit(self.upstream).netloc, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()

    def _file(self, path: str, headers: dict[str, str]) -> _Answer:
        content = self.files.get(path.partition("?")[0])
        if content is None:
            return 404, {}, b"no such file"
        etag = {"ETag": f'"{hash(content)}"'}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("Range", ""))
        if wanted is None or not self.has_ranges:
            return 200, etag, content
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        if first >= len(content):
            return 416, {"Content-Range": f"bytes */{len(content)}"}, b""
        part = content[first : last + 1]
        return 206, {**etag, "Content-Range": f"bytes {first}-{last}/{len(content)}"}, part


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    flaky: FlakyServer

    def _serve(self) -> None:
        headers = dict(self.headers.items())
        body = self.rfile.read(int(headers.get("Content-Length", 0)))
        self.flaky.requests.append((self.command, self.path, headers))
        fault = self.flaky.next_fault(self.command, self.path)
        if fault == "reset":
            return self._reset()
        if fault.isdigit():
            text = (
                f"<Error><Code>{_S3_CODES.get(fault, 'Other')}</Code><Message>no</Message></Error>"
            )
            return self._send(int(fault), {"Content-Type": "application/xml"}, text.encode())
        if fault == "hang":
            time.sleep(2)
        status, answered, content = self.flaky.answer(self.command, self.path, headers, body)
        if fault == "lost":
            return self._reset()
        return self._send(status, answered, content, is_cut=fault == "cut")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _send(
        self, status: int, headers: dict[str, str], content: bytes, *, is_cut: bool = False
    ) -> None:
        self.send_response(status)
        names = {name.lower() for name in headers}
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        if "content-length" not in names:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if is_cut else content)
        if is_cut:
            self.wfile.flush()
            time.sleep(0.02)  # else the reset overtakes what was sent
            self._reset()

    def _reset(self) -> None:
        """Closes with RST instead of FIN."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, *_: Any) -> None:
        """Nothing: a test tells what it saw by `requests`."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Nothing: to lose connections is its work."""


@contextlib.contextmanager
def run_flaky_server(**settings: Any) -> Iterator[FlakyServer]:
    flaky = FlakyServer(**settings)
    server = _Server(("127.0.0.1", 0), type("_Bound", (_Handler,), {"flaky": flaky}))
    flaky.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield flaky
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
