"""`infineg serve` as a real process, and requests to it."""

import contextlib
import http.client
import json
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.processes import Command, running_infineg, wait_until

BOUNDARY = "b0undary"


@dataclass(frozen=True)
class Answered:
    status: int
    headers: dict[str, str]  # lower case
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


@dataclass(frozen=True)
class Serving:
    """A running server. url: of the page, with its token if it has one."""

    url: str
    process: Command
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.split("/")[2].rpartition(":")[2])

    @property
    def base(self) -> str:
        """The path of the page."""
        return "/" + self.url.split("/", 3)[3]

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def request(
        self,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        *,
        method: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answered:
        with contextlib.closing(self.connect()) as connection:
            connection.request(method or ("POST" if body else "GET"), path, body, headers or {})
            answer = connection.getresponse()
            named = {name.lower(): value for name, value in answer.getheaders()}
            return Answered(answer.status, named, answer.read())

    def ask(
        self, *images: bytes, field: str = "image", query: str = "", **headers: str
    ) -> Answered:
        """POST predict with the images in a form."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request(
            f"{self.base}predict{query}", form_of(*images, field=field), headers=FORM | named
        )


FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def form_of(*images: bytes, field: str = "image", filename: str | None = "a.jpg") -> bytes:
    """A form with files, or (filename None) with plain fields."""
    named = "" if filename is None else f'; filename="{filename}"'
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"{named}\r\n\r\n'.encode()
    return b"".join([*(head + image + b"\r\n" for image in images), f"--{BOUNDARY}--\r\n".encode()])


@contextlib.contextmanager
def serve(run: Path, log: Path, *options: object, **env: str) -> Iterator[Serving]:
    log.unlink(missing_ok=True)
    with running_infineg("serve", run, "--port", 0, *options, log=log, **env) as process:
        wait_until(lambda: "Ctrl-C" in log.read_text(), process, log)
        found = re.search(r"http://\S+/", log.read_text())
        assert found
        yield Serving(found[0], process, log)


def at_once(serving: Serving, images: list[bytes]) -> list[Answered]:
    """The answers to as many clients, which begin together."""
    answers: list[Answered | None] = [None] * len(images)
    barrier = threading.Barrier(len(images))

    def ask(number: int) -> None:
        barrier.wait()
        answers[number] = serving.ask(images[number])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert None not in answers, "a client got no answer"
    return [answer for answer in answers if answer]
