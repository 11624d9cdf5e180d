"""S3 behaves as a disk does; transient failures cost time, others are reported."""

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline import storage
from pipeline.errors import ConfigError, InfinegError, TransientStorageError
from support.servers import (
    BUCKET,
    FlakyServer,
    S3Server,
    environment,
    forget_clients,
    run_flaky_server,
)

MB = 2**20


@pytest.fixture(autouse=True)
def _quick_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.retry._FIRST_WAIT_S", 0.01)


@pytest.fixture
def client(s3_server: S3Server) -> Any:
    return s3_server.client()


@pytest.fixture
def flaky(
    s3_server: S3Server, s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FlakyServer]:
    """A proxy before S3 that fails as the test says; `client` bypasses it."""
    del s3_root
    with run_flaky_server(upstream=s3_server.endpoint_url) as server:
        for name, value in environment(server.url).items():
            monkeypatch.setenv(name, value)
        # One try a call of the driver: what is tried again is then `retry`'s doing.
        once = {"retries": {"total_max_attempts": 1}, "read_timeout": 0.5}
        storage.configure({"s3://": {"config_kwargs": once}})
        forget_clients()
        yield server
        storage.configure({})


def key_of(uri: str) -> str:
    return uri.removeprefix(f"s3://{BUCKET}/")


def put(client: Any, uri: str, data: bytes) -> None:
    client.put_object(Bucket=BUCKET, Key=key_of(uri), Body=data)


def test_what_another_writes_or_removes_is_seen_at_once(s3_root: str, client: Any) -> None:
    uri = storage.join(s3_root, "parts/a.json")
    prefix = storage.join(s3_root, "parts/a")
    assert not storage.exists(uri)
    assert storage.list_files(s3_root) == storage.list_prefix(prefix) == []
    put(client, uri, b"{}")
    assert storage.exists(uri)
    assert storage.list_files(s3_root) == ["parts/a.json"]
    assert storage.list_prefix(prefix) == [uri]
    put(client, uri, b"{1}")
    assert storage.read_bytes(uri) == b"{1}"
    client.delete_object(Bucket=BUCKET, Key=key_of(uri))
    assert not storage.exists(uri)
    assert storage.list_files(s3_root) == storage.list_prefix(prefix) == []


def test_what_another_process_writes_is_seen_at_once(s3_root: str) -> None:
    uri = storage.join(s3_root, "a.json")
    assert storage.list_files(s3_root) == []
    code = "import sys; from pipeline import storage; storage.write_atomic(sys.argv[1], b'{}')"
    subprocess.run([sys.executable, "-c", code, uri], check=True, timeout=60)
    assert storage.list_files(s3_root) == ["a.json"]
    assert storage.exists(uri)


def test_object_that_stands_for_a_folder_is_no_file(s3_root: str, client: Any) -> None:
    for name in ("f/ab.json", "f/a/c.json", "f/a/"):
        put(client, storage.join(s3_root, name), b"")
    at = storage.join(s3_root, "f")
    assert storage.list_prefix(f"{at}/a") == [f"{at}/ab.json"]
    assert storage.list_files(at) == ["a/c.json", "ab.json"]


def test_missing_one_of_many_is_named(s3_root: str) -> None:
    uris = [storage.join(s3_root, name) for name in ("a", "no_such")]
    storage.write_atomic(uris[0], b"x")
    with pytest.raises(FileNotFoundError, match=r"read .*/no_such: no such file"):
        storage.read_many(uris)


def test_tree_with_brackets_in_its_name_is_removed_alone(
    s3_root: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.files._MAX_DELETED", 2)
    for name in ("data[1]/a", "data[1]/b", "data[1]/c", "data1/a"):
        put(client, storage.join(s3_root, name), b"x")
    storage.remove_tree(storage.join(s3_root, "data[1]"))
    assert storage.list_files(s3_root) == ["data1/a"]
    storage.remove_many([storage.join(s3_root, "data1/a"), storage.join(s3_root, "no_such")])
    assert storage.list_files(s3_root) == []


@pytest.mark.parametrize("fault", ["reset", "cut", "hang", "429", "500", "503", "400"])
def test_passing_fault_is_not_seen(
    flaky: FlakyServer, s3_root: str, client: Any, fault: str
) -> None:
    uri = storage.join(s3_root, "file")
    put(client, uri, b"0123456789" * 100)
    for action, expected in (
        (lambda: storage.read_bytes(uri), b"0123456789" * 100),
        (lambda: storage.read_range(uri, 10, 20), b"0123456789" * 2),
        (lambda: storage.list_files(s3_root), ["file"]),
        (lambda: storage.exists(uri), True),
    ):
        flaky.faults = [fault]
        assert action() == expected
        assert flaky.faults == [], "the fault was met"
        if fault == "hang":
            break  # half a second each
    flaky.faults = [fault]
    storage.write_atomic(uri, b"new")
    assert client.get_object(Bucket=BUCKET, Key=key_of(uri))["Body"].read() == b"new"


def test_lasting_fault_is_named_after_five_tries(flaky: FlakyServer, s3_root: str) -> None:
    flaky.faults = ["503"] * 100
    with pytest.raises(TransientStorageError, match=r"^read s3://.*/file: .*\(5 tries\)$"):
        storage.read_bytes(storage.join(s3_root, "file"))
    assert flaky.num_requests("GET") == 5, "the driver does not try on its own account"


def test_server_that_is_not_there_is_named(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    once = {"config_kwargs": {"retries": {"total_max_attempts": 1}}}
    monkeypatch.setattr("pipeline.storage.locations._options", {"s3://": once})
    with pytest.raises(TransientStorageError, match=r"read s3://.*127\.0\.0\.1:1.*\(5 tries\)"):
        storage.read_bytes(storage.join(s3_root, "file"))


def test_stream_goes_on_after_lost_connections(
    flaky: FlakyServer, s3_root: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.locations._READ_AHEAD_BYTES", MB)
    forget_clients()
    content = os.urandom(5 * MB)
    uri = storage.join(s3_root, "big.tar")
    put(client, uri, content)
    with storage.open_read(uri) as stream:
        assert stream.read(512) == content[:512]
        flaky.faults = ["cut", "503", "reset", "", "cut"]
        assert stream.read() == content[512:]
    assert flaky.faults == []


def test_object_that_changes_under_a_reader_is_no_mixture(
    s3_root: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.locations._READ_AHEAD_BYTES", MB)
    forget_clients()
    uri = storage.join(s3_root, "big.tar")
    put(client, uri, bytes(4 * MB))
    with storage.open_read(uri) as stream:
        stream.read(512)
        put(client, uri, b"1" * 4 * MB)
        with pytest.raises(InfinegError, match=r"read .*big\.tar: .*"):
            stream.read()


@pytest.mark.parametrize("fault", ["500", "reset"])
def test_failed_upload_in_parts_leaves_nothing(
    flaky: FlakyServer, s3_root: str, client: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr("pipeline.storage.uploads._PART_BYTES", 5 * MB)
    uri = storage.join(s3_root, "big.tar")
    flaky.is_flaky = lambda method, path: method == "PUT" and "partNumber=2" in path
    flaky.faults = [fault] * 100
    with (
        pytest.raises(TransientStorageError, match=r"write .*big\.tar.*\(5 tries\)"),
        storage.open_atomic(uri) as file,
    ):
        file.write(bytes(11 * MB))
    assert not storage.exists(uri)
    assert "Uploads" not in client.list_multipart_uploads(Bucket=BUCKET), "aborted, not paid for"


def test_upload_in_parts_outlives_passing_faults(
    flaky: FlakyServer, s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.uploads._PART_BYTES", 5 * MB)
    uri = storage.join(s3_root, "big.tar")
    content = os.urandom(11 * MB)
    flaky.is_flaky = lambda method, path: method == "PUT" and "partNumber=2" in path
    flaky.faults = ["503", "reset"]
    with storage.open_atomic(uri) as file:
        file.write(content)
    assert storage.sha256_of(uri) == hashlib.sha256(content).hexdigest()


def test_server_decides_who_creates(s3_root: str, flaky: FlakyServer) -> None:
    uri = storage.join(s3_root, "lock.json")
    assert [storage.create_exclusive(uri, b"%d" % n) for n in range(3)] == [True, False, False]
    conditions = [
        headers.get("If-None-Match") for method, _, headers in flaky.requests if method == "PUT"
    ]
    assert conditions == ["*"] * 3, "and not what the driver saw before"


def test_write_whose_answer_was_lost_is_known_as_ones_own(flaky: FlakyServer, s3_root: str) -> None:
    uri = storage.join(s3_root, "lock.json")
    flaky.is_flaky = lambda method, _: method in ("PUT", "DELETE")
    flaky.faults = ["lost"]
    assert storage.create_exclusive(uri, b"mine")
    flaky.faults = ["lost"]
    assert storage.replace_if(uri, b"mine", b"mine again")
    flaky.faults = ["lost"]
    assert storage.remove_if(uri, b"mine again")
    assert flaky.faults == []


def test_missing_bucket_is_a_mistake_of_the_config(s3_root: str) -> None:
    for action in (
        lambda: storage.read_bytes("s3://no-such-bucket/file"),
        lambda: storage.list_files("s3://no-such-bucket/folder"),
        lambda: storage.write_atomic("s3://no-such-bucket/file", b""),
    ):
        with pytest.raises(ConfigError, match=r"s3://no-such-bucket/f\w+: there is no such bucket"):
            action()
    with pytest.raises(FileNotFoundError, match=r"read s3://.*/file: no such file"):
        storage.read_bytes(storage.join(s3_root, "file"))


def test_missing_credentials_tell_what_to_set(
    s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", "/nonexistent")
    forget_clients()
    with pytest.raises(ConfigError, match=r"read s3://.*set AWS_PROFILE, or AWS_ACC.*anon: true"):
        storage.read_bytes(storage.join(s3_root, "file"))


def test_refused_credentials_are_told_without_them(flaky: FlakyServer, s3_root: str) -> None:
    flaky.faults = ["403"] * 10
    with pytest.raises(
        ConfigError, match=r"read s3://.*the access key is not known there"
    ) as caught:
        storage.read_bytes(storage.join(s3_root, "file"))
    assert "testing" not in str(caught.value)
    assert len(flaky.requests) == 1, "not tried again"


def test_longest_prefix_says_where(
    s3_server: S3Server, s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    forget_clients()
    uri = storage.join(s3_root, "file")
    once = {"retries": {"total_max_attempts": 1}}
    here = {"endpoint_url": s3_server.endpoint_url, "config_kwargs": once}
    nowhere = {"endpoint_url": "http://127.0.0.1:2", "config_kwargs": once}
    with contextlib.ExitStack() as stack:
        stack.callback(storage.configure, {})
        storage.configure(
            {"s3://": nowhere, f"s3://{BUCKET}": here, f"s3://{BUCKET[:-1]}": nowhere}
        )
        storage.write_atomic(uri, b"x")
        assert storage.read_bytes(uri) == b"x"
        storage.configure({"s3://": here, s3_root: nowhere})
        with pytest.raises(TransientStorageError, match=r"127\.0\.0\.1:2"):
            storage.read_bytes(uri)


@pytest.mark.parametrize("num_bytes", [1000, 11 * MB])
def test_upload_that_the_server_did_not_keep_whole_is_sent_again(
    flaky: FlakyServer, s3_root: str, monkeypatch: pytest.MonkeyPatch, num_bytes: int
) -> None:
    monkeypatch.setattr("pipeline.storage.uploads._PART_BYTES", 5 * MB)
    uri, content = storage.join(s3_root, "file"), os.urandom(num_bytes)
    flaky.is_flaky = lambda method, _: method == "PUT"
    flaky.faults = ["short"]
    with storage.open_atomic(uri) as file:
        file.write(content)
    assert flaky.faults == []
    assert storage.read_bytes(uri) == content
    flaky.faults = ["short"] * 100
    with pytest.raises(TransientStorageError, match=r"the server has other bytes: ETag"):
        storage.write_atomic(uri, content)


class OnlyFor:
    """A fence that holds while its file says so."""

    def __init__(self, uri: str, holder: bytes) -> None:
        self.uri, self._holder = uri, holder

    def check(self, content: bytes | None) -> None:
        if content != self._holder:
            raise InfinegError("it is not held")


def test_fenced_upload_replaces_only_what_it_has_seen(
    flaky: FlakyServer, s3_root: str, client: Any
) -> None:
    lease, uri = storage.join(s3_root, "data/lease"), storage.join(s3_root, "data/file")
    put(client, lease, b"mine")
    with storage.fenced(storage.join(s3_root, "data"), OnlyFor(lease, b"mine")):
        for content in (b"first", b"second"):
            storage.write_atomic(uri, content)
            assert storage.read_bytes(uri) == content
        flaky.faults = ["lost"]
        flaky.is_flaky = lambda method, _: method == "PUT"
        storage.write_atomic(uri, b"third")
        assert storage.read_bytes(uri) == b"third"
        storage.write_atomic(storage.join(s3_root, "elsewhere"), b"x")

        put(client, lease, b"another's")
        for change in (
            lambda: storage.write_atomic(uri, b"fourth"),
            lambda: storage.create_exclusive(uri + "-new", b"fourth"),
            lambda: storage.remove_many([uri]),
            lambda: storage.remove_tree(storage.join(s3_root, "data")),
        ):
            with pytest.raises(InfinegError, match="it is not held"):
                change()
        storage.write_atomic(storage.join(s3_root, "elsewhere"), b"y")
    assert storage.read_bytes(uri) == b"third"
    assert storage.list_files(storage.join(s3_root, "data")) == ["file", "lease"]
    storage.write_atomic(uri, b"fifth")
