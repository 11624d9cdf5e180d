"""Servers that never end, drip or point elsewhere cost a bounded time."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline import storage
from pipeline.errors import InfinegError, TransientStorageError
from pipeline.sources.readers import files


class _Odd(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith(("/to/", "/circle")):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        if self.path == "/silent":
            time.sleep(30)
        self.send_response(200)
        self.end_headers()
        try:
            while self.path == "/drip":
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.1)
            self.wfile.write(b"all")
        except OSError:
            pass  # the client has gone

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Odd)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["drip", "silent"])
def test_image_that_does_not_come_in_time_is_a_dead_link(
    url: str, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "_DEADLINE_S", 1.5)
    began = time.monotonic()
    with caplog.at_level("INFO"):
        assert files.read_named_image(f"{url}/{path}", "s3://bucket", allow_private=True) == b""
    assert 1 < time.monotonic() - began < 6
    assert f"{path}: not complete after 1.5 s" in caplog.text
    assert files.read_named_image(f"{url}/whole", "s3://bucket", allow_private=True) == b"all"


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/a", "http://", "gopher:x"]
)
def test_redirect_to_what_is_no_web_address_is_a_dead_link(url: str, target: str) -> None:
    assert files.read_named_image(f"{url}/to/{target}", "s3://bucket", allow_private=True) == b""
    with pytest.raises((InfinegError, FileNotFoundError)):
        storage.read_bytes(f"{url}/to/{target}")


def test_redirects_in_circles_are_a_dead_link(url: str) -> None:
    circle = f"{url}/circle"
    assert files.read_named_image(circle, "s3://bucket", allow_private=True) == b""
    with pytest.raises(InfinegError, match=r"circle: .*redirect"):
        storage.read_bytes(circle)


def test_stream_that_drips_is_given_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.streams._SLOW_S", 1.0)
    began = time.monotonic()
    with (
        storage.open_read(f"{url}/drip") as stream,
        pytest.raises(TransientStorageError, match=r"drip: only \d+ bytes in 1 s"),
    ):
        stream.read()
    assert time.monotonic() - began < 5
