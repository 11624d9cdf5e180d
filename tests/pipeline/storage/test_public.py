"""An address that a stranger has written leads to the internet and nowhere else."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.config.schema import Config
from pipeline.errors import InfinegError, TooManyRejects
from pipeline.sources import open_source
from pipeline.sources.readers.files import read_named_image
from pipeline.storage import public
from support.builds import build_inline, config_of, sidecar_rows
from support.inputs import things

# Of this machine, as is 127.0.0.1; some tests take it for a public one.
OUTSIDE = "127.0.0.2"
JPEG = things(1)[0]


class _Handler(BaseHTTPRequestHandler):
    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(JPEG)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def requests() -> list[str]:
    return []


@pytest.fixture
def port(requests: list[str]) -> Iterator[int]:
    """Of a server on all addresses of this machine."""
    server = ThreadingHTTPServer(("", 0), type("_Bound", (_Handler,), {"requests": requests}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture
def outside(port: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of the server by an address that is taken for a public one."""
    known = public.is_public
    monkeypatch.setattr(public, "is_public", lambda ip: ip == OUTSIDE or known(ip))
    return f"http://{OUTSIDE}:{port}"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "0.0.0.0", "224.0.0.1", "255.255.255.255", "168.63.129.16", "::1", "::", "fe80::1%eth0",
        "fd00:ec2::254", "fec0::1", "ff02::1", "::ffff:127.0.0.1", "::127.0.0.1",
        "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:4136:e378:8000:63bf:80ff:fffe",
    ],
)  # fmt: skip
def test_address_inside_is_not_public(address: str) -> None:
    assert not storage.is_public(address)


def test_address_of_the_internet_is_public() -> None:
    for address in ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"):
        assert storage.is_public(address)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "LOCALHOST", "[0:0:0:0:0:0:0:1]", "me:secret@127.0.0.1",
     "[0:0:0:0:0:ffff:7f00:1]", "169.254.169.254"],
)  # fmt: skip
def test_no_name_of_a_machine_inside_is_asked(host: str, port: int, requests: list[str]) -> None:
    with pytest.raises(storage.PrivateAddress, match="of this machine or of a priv") as caught:
        read_named_image(f"http://{host}:{port}/a", "s3://bucket")
    assert "secret" not in str(caught.value)
    assert requests == []


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0"])
def test_number_in_place_of_an_address_is_a_dead_link(
    host: str, port: int, requests: list[str]
) -> None:
    with contextlib.suppress(storage.PrivateAddress):  # where the resolver knows such numbers
        assert read_named_image(f"http://{host}:{port}/a", "s3://bucket") == b""
    assert requests == []


def test_redirect_inside_is_not_followed(outside: str, port: int, requests: list[str]) -> None:
    assert read_named_image(f"{outside}/a", "s3://bucket") == JPEG
    inside = f"/to/http://127.0.0.1:{port}/secret"
    for path in (inside, f"/to/{outside}{inside}"):
        with pytest.raises(storage.PrivateAddress, match=r"127\.0\.0\.1 is an address of this"):
            read_named_image(f"{outside}{path}", "s3://bucket")
    assert "/secret" not in requests
    assert read_named_image(f"{outside}{inside}", "s3://bucket", allow_private=True) == JPEG
    assert requests[-1] == "/secret"


def test_behind_a_proxy_the_proxy_is_reached_and_addresses_inside_are_not(
    port: int, requests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    assert read_named_image("http://no-such-host.invalid/a", "s3://bucket") == JPEG
    asked = len(requests)
    assert asked
    for host in ("10.1.2.3", "localhost", "169.254.169.254"):
        with pytest.raises(storage.PrivateAddress, match=host):
            read_named_image(f"http://{host}/a", "s3://bucket")
    assert len(requests) == asked


def write_table(path: Path, addresses: list[str], images: list[bytes]) -> str:
    column = [{"bytes": image, "path": None} for image in images]
    column += [{"bytes": None, "path": address} for address in addresses]
    pq.write_table(pa.table({"image": column}), path)
    return str(path)


def table_config(tmp_path: Path, table: str, **params: object) -> Config:
    entry = {"name": "web", "kind": "parquet", "label_state": "verified_absent"}
    return config_of(tmp_path / "data", [{**entry, "params": {"urls": table, **params}}])


def test_row_that_leads_inside_is_rejected_unless_the_source_allows_it(
    tmp_path: Path, port: int, requests: list[str]
) -> None:
    addresses = [f"http://127.0.0.1:{port}/{n}" for n in range(3)]
    table = write_table(tmp_path / "web.parquet", addresses, things(40))
    generation = build_inline(table_config(tmp_path, table))
    (web,) = [source for source in generation.sources if source.name == "web"]
    assert web.counts.rejected["private_address"] == 3
    assert requests == []
    allowed = open_source("parquet", {"urls": table, "allow_private": True})
    samples = [s for part in allowed.partitions() for s in allowed.read(part)]
    assert [s.image for s in samples[-3:]] == [JPEG] * 3
    assert sidecar_rows(tmp_path / "data").num_rows


def test_table_that_leads_nowhere_else_names_the_setting(tmp_path: Path, port: int) -> None:
    addresses = [f"http://127.0.0.1:{port}/{n}" for n in range(20)]
    table = write_table(tmp_path / "web.parquet", addresses, [])
    with pytest.raises(TooManyRejects, match=r"private_address 20.*params\.allow_private: true"):
        build_inline(table_config(tmp_path, table))


def test_list_of_tars_on_another_host_leads_to_none_inside(
    tmp_path: Path, port: int, requests: list[str]
) -> None:
    index = tmp_path / "shardindex.json"
    index.write_text(f'{{"shardlist": [{{"url": "http://127.0.0.1:{port}/a.tar"}}]}}')
    source = open_source("webdataset", {"urls": str(index)})
    (partition,) = source.partitions()
    assert source.estimate_samples(partition, 1000.0) is None  # type: ignore[attr-defined]
    with pytest.raises(storage.PrivateAddress, match=r"read http://127.*/a\.tar: .*allow_private"):
        list(source.read(partition))
    assert requests == []
    named = {"urls": [str(index), f"http://127.0.0.1:{port}/b.tar"]}
    for params in ({"urls": str(index), "allow_private": True}, named):
        with pytest.raises(InfinegError, match=r"broken tar|no tar"):
            list(open_source("webdataset", params).read(partition))
    assert requests
