"""Addresses are read in ranges where a server offers them, and as a stream where it does not."""

import hashlib
import os
import tarfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import ConfigError, InfinegError, TransientStorageError
from support.corpus import tar_of
from support.servers import FlakyServer, run_flaky_server

MB = 2**20
CONTENT = os.urandom(5 * MB)


@pytest.fixture(autouse=True)
def _quick_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.retry._FIRST_WAIT_S", 0.01)


@pytest.fixture(params=[True, False], ids=["ranges", "no_ranges"])
def server(request: pytest.FixtureRequest) -> Iterator[FlakyServer]:
    files = {"/big": CONTENT, "/empty": b""}
    with run_flaky_server(files=files, has_ranges=request.param) as running:
        yield running


def test_whole_and_parts_are_read(server: FlakyServer) -> None:
    uri = f"{server.url}/big"
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == CONTENT
    assert storage.sha256_of(uri) == hashlib.sha256(CONTENT).hexdigest()
    assert storage.read_range(uri, 3 * MB, 1000) == CONTENT[3 * MB : 3 * MB + 1000]
    assert storage.read_range(uri, 5 * MB - 10, 1000) == CONTENT[-10:]
    assert storage.read_range(uri, 6 * MB, 10) == b""
    assert storage.read_many([uri, f"{server.url}/empty"]) == [CONTENT, b""]
    with storage.open_read(f"{server.url}/empty") as stream:
        assert stream.read() == b""


def test_range_is_all_that_is_sent(server: FlakyServer) -> None:
    if server.has_ranges:
        storage.read_range(f"{server.url}/big", 1000, 20)
        assert [headers["Range"] for _, _, headers in server.requests] == ["bytes=1000-1019"]


def test_stream_seeks_where_there_are_ranges(server: FlakyServer) -> None:
    with storage.open_read(f"{server.url}/big") as stream:
        assert stream.seekable() == server.has_ranges
        if server.has_ranges:
            for at in (4 * MB, 10, 2 * MB, 2 * MB + 5000):
                stream.seek(at)
                assert stream.read(100) == CONTENT[at : at + 100]
            assert stream.seek(-7, os.SEEK_END) == 5 * MB - 7
            assert stream.read() == CONTENT[-7:]


@pytest.mark.parametrize("fault", ["reset", "cut", "429", "500", "503"])
def test_passing_fault_is_not_seen(server: FlakyServer, fault: str) -> None:
    uri = f"{server.url}/big"
    for action, expected in (
        (lambda: storage.read_bytes(uri), CONTENT),
        (lambda: storage.read_range(uri, 10, 20), CONTENT[10:30]),
        (lambda: storage.exists(uri), True),
    ):
        # Two: a lost connection that was kept is asked anew by the driver, a HEAD by a GET.
        server.faults = [fault, fault]
        assert action() == expected
    with storage.open_read(uri) as stream:
        server.faults = ["cut", fault, "cut"]
        stream.read(10)
        assert hashlib.sha256(CONTENT[:10] + stream.read()).digest() == (
            hashlib.sha256(CONTENT).digest()
        )


def test_stream_goes_on_where_it_was_cut(server: FlakyServer) -> None:
    server.faults = ["cut", "reset", "cut"]
    with storage.open_read(f"{server.url}/big") as stream:
        assert stream.read() == CONTENT
    assert server.faults == []
    ranges = [headers.get("Range", "") for _, _, headers in server.requests]
    assert ranges[0] == "bytes=0-"
    starts = [int(wanted.strip("bytes=-")) for wanted in ranges if wanted]
    assert starts == sorted(starts)
    assert starts[-1] > MB or not server.has_ranges


def test_tar_is_read_as_a_stream(server: FlakyServer) -> None:
    members = [(f"{number}.jpg", CONTENT[:100_000]) for number in range(30)]
    server.files["/a.tar"] = tar_of(members)
    server.faults = ["cut", "cut"]
    with (
        storage.open_read(f"{server.url}/a.tar") as stream,
        tarfile.open(fileobj=stream, mode="r|*") as tar,
    ):
        read = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    assert read == members


def test_file_that_changes_under_a_reader_is_no_mixture(server: FlakyServer) -> None:
    server.faults = ["cut"]
    with storage.open_read(f"{server.url}/big") as stream:
        stream.read(10)
        server.files["/big"] = os.urandom(5 * MB)
        with pytest.raises(InfinegError, match=r"read http://.*/big: it was changed while"):
            stream.read()


def test_missing_file_is_missing(server: FlakyServer) -> None:
    uri = f"{server.url}/no_such"
    assert not storage.exists(uri)
    for action in (storage.read_bytes, storage.open_read, storage.sha256_of):
        with pytest.raises(FileNotFoundError, match=r"read http://.*/no_such: no such file"):
            action(uri)
    with pytest.raises(FileNotFoundError, match=r"no such file"):
        storage.read_range(uri, 0, 10)


def test_lasting_fault_is_no_missing_file(server: FlakyServer) -> None:
    for action in (storage.exists, storage.read_bytes, storage.open_read):
        server.faults = ["503"] * 100
        with pytest.raises(TransientStorageError, match=r"http://.*\(5 tries\)"):
            action(f"{server.url}/big")


def test_refusal_is_reported_without_the_signature(
    server: FlakyServer, caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"{server.url}/big?X-Amz-Credential=SECRET&X-Amz-Signature=SECRET&part=1"
    for action in (storage.exists, storage.read_bytes, storage.open_read):
        server.faults = ["403"] * 100
        with pytest.raises(
            InfinegError, match=r"Signature=\*\*\*&part=1: access is denied"
        ) as caught:
            action(uri)
        assert "SECRET" not in "".join(traceback.format_exception(caught.value))
        server.faults = ["503"] * 100
        with pytest.raises(TransientStorageError) as lasting:
            action(uri)
        assert "SECRET" not in "".join(traceback.format_exception(lasting.value))
    server.faults = []
    with pytest.raises(FileNotFoundError) as missing:
        storage.read_bytes(uri.replace("/big", "/no_such"))
    assert "SECRET" not in "".join(traceback.format_exception(missing.value))
    assert "SECRET" not in caplog.text


def test_addresses_are_neither_listed_nor_written(server: FlakyServer) -> None:
    for listing in (storage.list_files, storage.list_prefix, storage.remove_tree):
        with pytest.raises(ConfigError, match="http and https cannot be listed"):
            listing(f"{server.url}/folder/")
    with pytest.raises(ConfigError, match="can only be read"):
        storage.write_atomic(f"{server.url}/file", b"x")


def test_address_is_fetched_whole(server: FlakyServer, tmp_path: Path) -> None:
    server.faults = ["cut", "503"]
    with (tmp_path / "copy").open("wb") as file:
        fetched = storage.fetch(f"{server.url}/big", file)
    assert (tmp_path / "copy").read_bytes() == CONTENT
    assert fetched == (hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
    assert storage.sizes_of([f"{server.url}/big", f"{server.url}/no_such"]) == {
        f"{server.url}/big": len(CONTENT)
    }


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FlakyServer]:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with run_flaky_server() as server:
        storage.configure({"hf://": {"endpoint": server.url}})
        yield server
        storage.configure({})


@pytest.mark.parametrize("fault", ["reset", "429", "503"])
def test_lasting_fault_of_the_hub_is_named(hub: FlakyServer, fault: str) -> None:
    for action in (storage.exists, storage.read_bytes):
        hub.faults = [fault] * 100
        with pytest.raises(TransientStorageError, match=r"hf://datasets/o/r/f: .*\(5 tries\)$"):
            action("hf://datasets/o/r/f")


def test_refusal_of_the_hub_is_reported(hub: FlakyServer) -> None:
    hub.faults = ["403"] * 100
    with pytest.raises(InfinegError, match=r"read hf://datasets/o/r/f: access is denied \(403\)"):
        storage.read_bytes("hf://datasets/o/r/f")
    hub.faults = []
    assert not storage.exists("hf://datasets/o/r/f")
