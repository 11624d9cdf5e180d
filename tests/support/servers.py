"""Servers on loopback: S3 (moto's), reached by other processes through their environment; HTTP."""

import contextlib
import http.client
import logging
import re
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

BUCKET = "infineg-test"


@dataclass(frozen=True)
class S3Server:
    """Its address, and the environment in which tools find it."""

    endpoint_url: str
    # "PUT /bucket/key", "POST /bucket?delete", ...: all that succeeded, in order.
    writes: list[str] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)  # "GET /bucket/key", ...: all

    @property
    def env(self) -> dict[str, str]:
        return environment(self.endpoint_url)

    def client(self) -> Any:
        """A client of its own, as another program would have."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id="other",
            aws_secret_access_key="program",
        )

    def new_root(self) -> str:
        """A folder that no test has used."""
        return f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}"


def environment(endpoint_url: str) -> dict[str, str]:
    """The variables a user would set; credential files are empty, so that no real one is used."""
    return {
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }


def forget_clients() -> None:
    """Clients remember the environment in which they were made."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()


@contextlib.contextmanager
def run_s3_server(host: str = "127.0.0.1") -> Iterator[S3Server]:
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # one line per request
    writes: list[str] = []
    reads: list[str] = []
    app = _one_write_at_a_time(DomainDispatcherApplication(create_backend_app), writes, reads)
    server = make_server(host, 0, app, threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        running = S3Server(f"http://{host}:{server.server_port}", writes, reads)
        running.client().create_bucket(Bucket=BUCKET)
        yield running
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _one_write_at_a_time(
    app: Callable[..., Iterable[bytes]], writes: list[str], reads: list[str]
) -> Callable[..., Iterable[bytes]]:
    """Makes conditional writes one step, as in S3 (moto takes two), and records all requests."""
    lock = threading.Lock()

    def serve(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            reads.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
            return app(environ, start_response)
        query = environ["QUERY_STRING"]
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}{'?' if query else ''}{query}"

        def start(status: str, *arguments: Any) -> Any:
            if status.startswith("2"):
                writes.append(request)
            return start_response(status, *arguments)

        with lock:
            return app(environ, start)

    return serve


_S3_CODES = {
    "400": "RequestTimeout",
    "403": "InvalidAccessKeyId",
    "500": "InternalError",
    "503": "SlowDown",
}


_Answer = tuple[int, dict[str, str], bytes]


@dataclass
class FlakyServer:
    """Forwards to `upstream`, or serves `files` (path -> content)."""

    upstream: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    has_ranges: bool = True
    faults: list[str] = field(default_factory=list)
    # Only requests for which this is true use up a fault: (method, path with query).
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
        if fault == "short":  # stored and acknowledged, but not as it was sent
            body = body[: len(body) // 2]
            dropped = ("content-length", "x-amz-checksum", "content-md5")
            headers = {n: v for n, v in headers.items() if not n.lower().startswith(dropped)}
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
            time.sleep(0.02)  # otherwise the reset overtakes the data sent
            self._reset()

    def _reset(self) -> None:
        """Closes with RST instead of FIN."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, *_: Any) -> None:
        """Logs nothing: tests look at `requests`."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Ignores errors: it is made to lose connections."""


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
