"""Files are there whole or not at all; only what is known to pass is tried again."""

import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.config.output import OutputConfig
from pipeline.errors import ConfigError, InfinegError, TransientStorageError
from pipeline.storage.fenced_files import put_fenced, remove_fenced
from pipeline.storage.retry import retry


@pytest.fixture(params=["local", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3_root"))
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path}"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were to be waited, in which nothing is waited."""
    waited: list[float] = []
    monkeypatch.setattr("pipeline.storage.retry.time.sleep", waited.append)
    return waited


@pytest.fixture
def _unconfigured() -> Iterator[None]:
    yield
    storage.configure({})


def test_what_is_written_is_read(root: str) -> None:
    uri = storage.join(root, "a/b/file.bin")
    content = bytes(range(256)) * 5000
    assert not storage.exists(uri)
    digest = storage.write_atomic(uri, content)
    assert storage.exists(uri)
    assert digest == storage.sha256_of(uri) == hashlib.sha256(content).hexdigest()
    assert storage.read_bytes(uri) == content
    assert storage.read_range(uri, 1000, 20) == content[1000:1020]
    assert storage.read_range(uri, len(content) - 3, 20) == content[-3:]
    with storage.open_read(uri) as file:
        file.seek(300)
        assert file.read(3) == content[300:303]
        assert file.seek(-300, os.SEEK_END) == len(content) - 300
        assert file.read() == content[-300:]


def test_listing_is_sorted_relative_and_by_suffix(root: str) -> None:
    for name in ("b.tar", "a/c.TAR", "a/b.txt"):
        storage.write_atomic(storage.join(root, "folder", name), b"x")
    folder = storage.join(root, "folder")
    assert storage.list_files(folder) == ["a/b.txt", "a/c.TAR", "b.tar"]
    assert storage.list_files(folder + "/", (".tar",)) == ["a/c.TAR", "b.tar"]
    assert storage.exists(folder)
    assert storage.list_files(storage.join(root, "no_such")) == []


def test_removed_tree_is_gone_and_a_missing_one_no_error(root: str) -> None:
    storage.write_atomic(storage.join(root, "folder/a/b"), b"x")
    storage.remove_tree(storage.join(root, "folder"))
    assert storage.list_files(storage.join(root, "folder")) == []
    storage.remove_tree(storage.join(root, "folder"))


def test_failed_write_leaves_nothing_new_and_the_old_file_whole(root: str) -> None:
    uri = storage.join(root, "file")
    storage.write_atomic(uri, b"old")
    with pytest.raises(ZeroDivisionError), storage.open_atomic(uri) as file:  # noqa: PT012
        file.write(b"half of the new")
        raise ZeroDivisionError
    assert storage.read_bytes(uri) == b"old"
    assert storage.list_files(root) == ["file"]


def test_file_is_not_seen_before_it_is_whole(root: str) -> None:
    uri = storage.join(root, "file")
    with storage.open_atomic(uri) as file:
        file.write(b"x")
        assert not storage.exists(uri)
    assert storage.read_bytes(uri) == b"x"


def test_written_file_can_be_read_by_others(tmp_path: Path) -> None:
    storage.write_atomic(str(tmp_path / "file"), b"x")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_hashing_writer_counts_what_goes_through(tmp_path: Path) -> None:
    with storage.open_atomic(str(tmp_path / "file")) as file:
        file.write(b"abc")
        file.write(memoryview(b"defg"))
        assert file.tell() == 7
    assert file.size_bytes == 7
    assert file.sha256 == hashlib.sha256(b"abcdefg").hexdigest()


@pytest.mark.parametrize("uri", ["pipe:cat /etc/passwd", "|ls"])
def test_shells_are_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="run a shell and are refused"):
        storage.open_read(uri)


def test_unknown_protocol_is_a_mistake_of_the_config() -> None:
    with pytest.raises(ConfigError, match="nosuch://bucket/file"):
        storage.read_bytes("nosuch://bucket/file")


@pytest.mark.parametrize("error", [TimeoutError, ConnectionResetError, InterruptedError])
def test_transient_error_is_tried_again(error: type[OSError], waits: list[float]) -> None:
    failures = [error("lost"), error("lost")]

    def action() -> str:
        if failures:
            raise failures.pop()
        return "done"

    assert retry(action, "read it") == "done"
    assert waits == [pytest.approx(0.2, rel=0.25), pytest.approx(0.4, rel=0.25)]


def test_lasting_transient_error_is_named_after_five_tries(waits: list[float]) -> None:
    def action() -> None:
        raise TimeoutError("too slow")

    with pytest.raises(TransientStorageError, match=r"read it: .*too slow \(5 tries\)"):
        retry(action, "read it")
    assert waits == [pytest.approx(0.2 * 2**n, rel=0.25) for n in range(4)]


@pytest.mark.parametrize("error", [FileNotFoundError, IsADirectoryError, ZeroDivisionError])
def test_other_errors_are_not_tried_again(error: type[Exception], waits: list[float]) -> None:
    calls = []

    def action() -> None:
        calls.append(1)
        raise error

    with pytest.raises(error):
        retry(action, "read it")
    assert (len(calls), waits) == (1, [])


def test_sizes_are_those_of_what_is_there(root: str) -> None:
    uris = [storage.join(root, name) for name in ("a/x.tar", "a/y.tar", "b/z.tar", "c/no_such")]
    for number, uri in enumerate(uris[:3]):
        storage.write_atomic(uri, b"x" * (number + 1))
    assert storage.sizes_of(uris) == dict(zip(uris[:3], (1, 2, 3), strict=True))
    assert storage.sizes_of([]) == {}


def test_only_what_is_on_a_disk_has_a_local_path(tmp_path: Path) -> None:
    assert storage.local_path(f"file://{tmp_path}/x") == tmp_path / "x"
    assert storage.local_path("memory://bucket/x") is None


def test_many_are_read_and_removed_in_their_order(root: str) -> None:
    uris = [storage.join(root, f"folder/{number}.json") for number in range(20)]
    for uri in uris:
        storage.write_atomic(uri, uri.encode())
    assert storage.read_many(uris[::-1]) == [uri.encode() for uri in uris[::-1]]
    assert storage.read_many([]) == []
    storage.remove_many([*uris[1:], storage.join(root, "no_such")])
    assert storage.list_files(root) == ["folder/0.json"]


def test_prefix_lists_files_of_one_folder_only(root: str) -> None:
    for name in ("f/ab.json", "f/ac.json", "f/b.json", "f/a/c.json", "f/a[1].json", "fab"):
        storage.write_atomic(storage.join(root, name), b"x")
    at = storage.join(root, "f")
    assert storage.list_prefix(f"{at}/a") == [f"{at}/a[1].json", f"{at}/ab.json", f"{at}/ac.json"]
    assert len(storage.list_prefix(f"{at}/")) == 4
    assert storage.list_prefix(storage.join(root, "no_such", "a")) == []


def test_tree_with_brackets_in_its_name_is_removed_alone(root: str) -> None:
    for name in ("data[1]/a", "data1/a"):
        storage.write_atomic(storage.join(root, name), b"x")
    storage.remove_tree(storage.join(root, "data[1]"))
    assert storage.list_files(root) == ["data1/a"]


def test_linked_folders_are_listed_and_circles_end(tmp_path: Path) -> None:
    (tmp_path / "root/cats").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root/cats/a.jpg").touch()
    (tmp_path / "elsewhere/b.jpg").touch()
    (tmp_path / "root/dogs").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/cats/up").symlink_to(tmp_path / "root")
    assert storage.list_files(str(tmp_path / "root")) == ["cats/a.jpg", "dogs/b.jpg"]


def test_folder_that_may_not_be_read_is_reported(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    tmp_path.chmod(0o700)
    os.seteuid(65534)
    try:
        with pytest.raises(InfinegError, match=f"list {tmp_path}: permission denied"):
            storage.list_files(str(tmp_path))
    finally:
        os.seteuid(0)


def test_one_of_many_creates(root: str) -> None:
    uri = storage.join(root, "lock.json")
    with ThreadPoolExecutor(16) as pool:
        created = list(pool.map(lambda n: storage.create_exclusive(uri, b"%d" % n), range(16)))
    assert created.count(True) == 1
    assert storage.read_bytes(uri) == b"%d" % created.index(True)
    assert storage.list_files(root) == ["lock.json"], "no temporary file stays"


def test_creating_needs_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)  # as FAT and some network file systems do
    assert storage.create_exclusive(str(tmp_path / "a/lock"), b"x")
    assert not storage.create_exclusive(str(tmp_path / "a/lock"), b"y")
    assert storage.read_bytes(str(tmp_path / "a/lock")) == b"x"


def test_one_of_many_replaces(root: str) -> None:
    uri = storage.join(root, "lock.json")
    assert not storage.replace_if(uri, b"old", b"new"), "there is none"
    storage.write_atomic(uri, b"old")
    with ThreadPoolExecutor(16) as pool:
        done = list(pool.map(lambda n: storage.replace_if(uri, b"old", b"%d" % n), range(16)))
    assert done.count(True) == 1
    winner = b"%d" % done.index(True)
    assert storage.read_bytes(uri) == winner
    assert not storage.remove_if(uri, b"old")
    assert storage.remove_if(uri, winner)
    assert storage.list_files(root) == []
    assert not storage.remove_if(uri, winner)


@pytest.mark.parametrize(
    "uri",
    [
        "simplecache::s3://b/f",
        "filecache::s3://b/f",
        "zip://a.jpg::s3://b/f.zip",
        "tar://a::/f.tar",
    ],
)
def test_chained_urls_are_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="chained URLs"):
        storage.read_bytes(uri)


def test_colons_in_a_name_chain_nothing(root: str) -> None:
    uri = storage.join(root, "a::b.jpg")
    storage.write_atomic(uri, b"x")
    assert storage.read_bytes(uri) == b"x"
    assert storage.list_files(root) == ["a::b.jpg"]


@pytest.mark.parametrize(
    "uri", ["reference://f", "github://a:b@/f", "data://x", "ftp://h/f", "sftp://h/f", "hdfs://h/f"]
)
def test_protocols_beyond_files_are_refused(uri: str) -> None:
    with pytest.raises(
        ConfigError, match=r"is not supported\. Supported are local paths and .*s3://"
    ):
        storage.read_bytes(uri)


def test_missing_driver_is_named() -> None:
    with pytest.raises(ConfigError, match=r"gs://b/f: gs:// needs the package gcsfs: pip install"):
        storage.read_bytes("gs://b/f")


@pytest.mark.parametrize(
    ("prefix", "options"),
    [
        ("s3://", {"key": "VALUE"}),
        ("s3://", {"client_kwargs": {"aws_secret_access_key": "VALUE"}}),
        ("s3://", {"endpoint_url": "https://user:VALUE@host"}),
        ("gs://", {"token": "VALUE"}),
        ("az://", {"connection_string": "VALUE"}),
        ("https://", {"headers": {"Authorization": "VALUE"}}),
        ("hf://", {"token": "VALUE"}),
        ("az://", {"password": "VALUE"}),
    ],
)
def test_credentials_in_options_are_refused_unseen(prefix: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"credentials are not read from options") as caught:
        storage.configure({prefix: options})
    assert "VALUE" not in str(caught.value)


@pytest.mark.usefixtures("_unconfigured")
def test_options_that_are_no_credentials_are_taken() -> None:
    storage.configure(
        {
            "gs://": {"token": "anon"},
            "s3://b": {"anon": True, "s3_additional_kwargs": {"SSEKMSKeyId": "arn:aws:kms:1"}},
        }
    )
    with pytest.raises(ConfigError, match="a prefix is a URL such as"):
        storage.configure({"bucket": {}})
    with pytest.raises(ConfigError, match="zip:// is not supported"):
        storage.configure({"zip://": {}})


@pytest.mark.usefixtures("_unconfigured")
def test_option_that_cannot_be_is_a_mistake_of_the_config() -> None:
    storage.configure({"s3://": {"max_concurrency": 0}})
    with pytest.raises(ConfigError, match="s3://b/f: max_concurrency must be"):
        storage.read_bytes("s3://b/f")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://bucket/a@b.jpg", "s3://bucket/a@b.jpg"),
        ("https://user:pw@host/f?page=2", "https://***@host/f?page=2"),
        (
            "get 'https://h/f?X-Amz-Credential=A&X-Amz-Date=1&X-Amz-Signature=B' failed",
            "get 'https://h/f?X-Amz-Credential=***&X-Amz-Date=1&X-Amz-Signature=***' failed",
        ),
        ("https://h/f?sv=1&sig=abc%3D", "https://h/f?sv=1&sig=***"),
        ("https://h/f?access_token=abc", "https://h/f?access_token=***"),
    ],
)
def test_secrets_in_uris_are_not_shown(text: str, shown: str) -> None:
    assert storage.redact(text) == shown


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (28, "no space is left there"),
        (30, "the file system is read-only"),
        (13, "permission denied"),
    ],
)
def test_what_a_user_can_mend_is_reported(number: int, reason: str, waits: list[float]) -> None:
    def action() -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(InfinegError, match=f"^write it: {reason}"):
        retry(action, "write it")
    assert waits == []


def test_drivers_are_imported_only_when_used() -> None:
    code = (
        "import sys; from pipeline import storage; storage.list_files('/nonexistent'); "
        "print({'botocore', 's3fs', 'aiohttp', 'huggingface_hub', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize("protocol", ["gs", "gcs", "az", "abfs", "abfss", "hf"])
def test_storage_without_conditional_writes_is_refused_with_the_reason(protocol: str) -> None:
    uri = f"{protocol}://bucket/data"
    for change in (
        lambda: storage.write_atomic(uri, b"x"),
        lambda: storage.create_exclusive(uri, b"x"),
        lambda: storage.replace_if(uri, b"x", b"y"),
    ):
        with pytest.raises(ConfigError, match=rf"{protocol}://bucket/data: .*conditional writes"):
            change()
    with pytest.raises(ValueError, match=rf"{protocol}:// can only be read"):
        OutputConfig(path=uri)


def test_file_that_another_process_puts_there_is_not_replaced(tmp_path: Path) -> None:
    """Between the answer of the fence and the change, another process becomes the holder."""
    path, temporary = tmp_path / "file", tmp_path / ".tmp-mine"
    answers: list[bool] = []

    def ask() -> None:
        if answers:
            raise InfinegError("it is not held")
        answers.append(True)
        (tmp_path / ".tmp-other").write_bytes(b"of the other")
        os.replace(tmp_path / ".tmp-other", path)

    for before in (None, b"left by another run"):
        answers.clear()
        path.unlink(missing_ok=True)
        if before is not None:
            path.write_bytes(before)
        temporary.write_bytes(b"of the other")
        with pytest.raises(InfinegError, match="it is not held"):
            put_fenced(str(temporary), str(path), ask, replaces=False)
        inode = path.stat().st_ino
        assert path.read_bytes() == b"of the other"
        answers.clear()
        with pytest.raises(InfinegError, match="it is not held"):
            remove_fenced(str(path), ask)
        assert path.stat().st_ino != inode, "the file that came last is there"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".tmp-mine", "file"]
