"""What the application answers when its network has a bug, or a client is slow or leaves."""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from support.corpus import encode, quadrants
from support.serving import FORM, Serving, form_of
from train.serve import uploads
from train.serve.app import make_app
from train.serve.model import ServedModel
from train.serve.server import _listen

PNG = encode(quadrants(), "PNG")


class _Detector:
    targets = ("cat",)

    def __init__(self, predict: Callable[[bytes], str]) -> None:
        self._predict = predict

    def predict_each(self, images: Iterable[bytes]) -> Iterator[tuple[bytes, str]]:
        return ((image, self._predict(image)) for image in images)


@contextlib.contextmanager
def application(predict: Callable[[bytes], str]) -> Iterator[Serving]:
    detector: Any = _Detector(predict)
    app = make_app(ServedModel(detector, "stub", {}), token=None, max_pictures=4)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, access_log=False, log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            yield Serving(url, process=None, log=Path())  # type: ignore[arg-type]
        finally:
            server.should_exit = True
            thread.join()


def test_a_bug_is_a_500_that_is_logged_and_the_next_picture_is_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def predict(image: bytes) -> str:
        if image == b"bug":
            raise RuntimeError("a bug")
        return "no usable image: something new"

    with application(predict) as serving, caplog.at_level(logging.ERROR):
        answer = serving.ask(b"bug")
        assert answer.status == 500
        assert answer.json == {"detail": "the server failed at this: its log has the reason"}
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert serving.request("/healthz").json == {"status": "ok"}
        answer = serving.ask(PNG)
        assert (answer.status, answer.json["detail"]) == (415, "no usable image: something new")
        metrics = _metrics(serving)
        assert 'infineg_serve_requests_total{path="/predict",status="500"} 1.0' in metrics
        assert "RuntimeError: a bug" in caplog.text


def test_a_picture_that_does_not_arrive_gets_408_and_its_place_is_free_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uploads, "_UPLOAD_TIMEOUT_S", 0.2)
    monkeypatch.setattr(uploads, "_DISCARD_TIMEOUT_S", 0.2)
    with (
        application(lambda _: "no") as serving,
        contextlib.closing(serving.connect()) as slow,
        contextlib.closing(serving.connect()) as leaves,
    ):
        for connection in (slow, leaves):
            connection.putrequest("POST", "/predict")
            for name, value in (FORM | {"Content-Length": "1000"}).items():
                connection.putheader(name, value)
            connection.endheaders(form_of(PNG)[:100])
        time.sleep(0.1)
        leaves.close()
        answer = slow.getresponse()
        assert answer.status == 408
        assert b"send it again" in answer.read()
        assert "infineg_serve_pictures_held 0.0" in _metrics(serving)


def test_a_client_that_asks_before_it_sends_is_not_told_to_send_in_vain() -> None:
    with application(lambda _: "no") as serving:
        head = (
            "POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 30000000\r\n"
            f"Content-Type: {FORM['Content-Type']}\r\nExpect: 100-continue\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", serving.port), timeout=10) as client:
            client.sendall(head.encode())
            assert client.recv(100).startswith(b"HTTP/1.1 413 ")


def test_the_body_of_an_answer_does_not_wait_for_the_receipt_of_its_headers() -> None:
    with (
        _listen("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def _metrics(serving: Serving) -> str:
    return serving.request("/metrics").content.decode()
