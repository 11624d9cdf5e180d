"""Files are there whole or not at all; only what is known to pass is tried again."""

import hashlib
import stat
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import ConfigError, TransientStorageError


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path}"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were to be waited, in which nothing is waited."""
    waited: list[float] = []
    monkeypatch.setattr("pipeline.storage.transient.time.sleep", waited.append)
    return waited


def test_what_is_written_is_read(root: str) -> None:
    uri = storage.join(root, "a/b/file.bin")
    content = bytes(range(256)) * 5000
    assert not storage.exists(uri)
    digest = storage.write_atomic(uri, content)
    assert storage.exists(uri)
    assert digest == storage.sha256_of(uri) == hashlib.sha256(content).hexdigest()
    assert storage.read_bytes(uri) == content
    assert storage.read_range(uri, 1000, 20) == content[1000:1020]
    with storage.open_read(uri) as file:
        file.seek(300)
        assert file.read(3) == content[300:303]


def test_listing_is_sorted_relative_and_by_suffix(root: str) -> None:
    for name in ("b.tar", "a/c.TAR", "a/b.txt"):
        storage.write_atomic(storage.join(root, "folder", name), b"x")
    folder = storage.join(root, "folder")
    assert storage.list_files(folder) == ["a/b.txt", "a/c.TAR", "b.tar"]
    assert storage.list_files(folder + "/", (".tar",)) == ["a/c.TAR", "b.tar"]
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

    assert storage.retry(action, "read it") == "done"
    assert waits == [pytest.approx(0.2, rel=0.25), pytest.approx(0.4, rel=0.25)]


def test_lasting_transient_error_is_named_after_five_tries(waits: list[float]) -> None:
    def action() -> None:
        raise TimeoutError("too slow")

    with pytest.raises(TransientStorageError, match=r"read it: .*too slow \(5 tries\)"):
        storage.retry(action, "read it")
    assert waits == [pytest.approx(0.2 * 2**n, rel=0.25) for n in range(4)]


@pytest.mark.parametrize("error", [FileNotFoundError, IsADirectoryError, ZeroDivisionError])
def test_other_errors_are_not_tried_again(error: type[Exception], waits: list[float]) -> None:
    calls = []

    def action() -> None:
        calls.append(1)
        raise error

    with pytest.raises(error):
        storage.retry(action, "read it")
    assert (len(calls), waits) == (1, [])


def test_fetched_file_is_local(tmp_path: Path) -> None:
    storage.write_atomic("memory://bucket/weights.bin", b"weights")
    fetched = storage.fetch("memory://bucket/weights.bin", tmp_path)
    assert fetched.read_bytes() == b"weights"
    assert storage.fetch("memory://bucket/weights.bin", tmp_path) == fetched
    assert storage.fetch(str(fetched), tmp_path / "other") == fetched, "a local file is not copied"
    assert len(list(tmp_path.iterdir())) == 1
