"""A data set with suspects of hostile names, and `infineg review` on it as a real process."""

import contextlib
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.builds import CATS, build_inline, config_of, first_samples, folder_entry, squares
from support.processes import running_infineg, wait_until

NUM_SUSPECTS = 12
HOSTILE_CLASS = "<b onmouseover=alert(1)>\"'&amp;"
HOSTILE_NAME = "<img src=x onerror=\"document.title='owned'\">{{7*7}}"


def write_suspects(folder: Path) -> Path:
    """Builds a data set with unlabelled cats in quarantine; returns its root."""
    strays = folder / "strays" / HOSTILE_CLASS
    strays.mkdir(parents=True)
    cats = {**CATS, "params": {**CATS["params"], "seed": 7, "num_pictures": 2 * NUM_SUSPECTS}}
    for number, sample in enumerate(first_samples(cats, 2 * NUM_SUSPECTS)):
        (strays / f"{number:03d}{HOSTILE_NAME}.jpg").write_bytes(sample.image)
    entries = [folder_entry("strays", folder / "strays"), squares(num_pictures=60)]
    generation = build_inline(config_of(folder / "data", entries))
    assert sum(file.num_samples for file in generation.quarantine) >= NUM_SUSPECTS
    return folder / "data"


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str

    @property
    def origin(self) -> str:
        """Scheme, host and port, without the secret."""
        return "/".join(self.url.split("/")[:3])

    def request(
        self, path: str, body: Any = None, *, method: str | None = None, **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, content and headers, also of errors."""
        data = None if body is None else json.dumps(body).encode()
        named = {"Content-Type": "application/json"} if data else {}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data, named, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(), dict(error.headers)

    def get(self, path: str) -> Any:
        status, content, _ = self.request(path)
        assert status == 200, content
        return json.loads(content)

    @property
    def token(self) -> str:
        found = re.search(r'name="page-token" content="([^"]+)"', self.request("")[1].decode())
        assert found
        return found[1]


@contextlib.contextmanager
def serve_review(root: Path, log: Path) -> Iterator[Served]:
    log.unlink(missing_ok=True)
    with running_infineg("review", root, "--port", 0, log=log) as process:
        wait_until(lambda: "Every verdict" in log.read_text(), process, log)
        found = re.search(r"http://\S+/", log.read_text())
        assert found
        yield Served(found[0])
