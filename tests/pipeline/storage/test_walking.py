"""Which files of a folder are read: links, hidden files, depth, names, permissions."""

import os
import subprocess
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import InfinegError
from pipeline.sources.readers.files import read_named_image
from pipeline.storage.walking import is_hidden


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("a.jpg", False), ("./a.jpg", False), ("../a.jpg", False), ("a/b..c/d.jpg", False),
        ("._a.jpg", True), (".DS_Store", True), ("a/.b/c.jpg", True), ("__MACOSX/a.jpg", True),
        ("x/__MACOSX/._a.jpg", True), ("__MACOSX.jpg", False), ("_a.jpg", False),
    ],
)  # fmt: skip
def test_hidden_are_dot_names_and_what_macos_adds(name: str, hidden: bool) -> None:
    assert is_hidden(name) == hidden


def test_each_folder_is_walked_once_however_many_links_lead_to_it(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "b/2.jpg", "z/3.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "a/to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b/to_a").symlink_to("../a")
    (tmp_path / "a_link_before").symlink_to("z")
    (tmp_path / "self").symlink_to(".")
    (tmp_path / "nowhere.jpg").symlink_to("gone.jpg")
    (tmp_path / "round.jpg").symlink_to("round.jpg")
    (tmp_path / "second.jpg").symlink_to("a/1.jpg")
    files = ["a/1.jpg", "b/2.jpg", "nowhere.jpg", "round.jpg", "second.jpg", "z/3.jpg"]
    assert storage.list_files(str(tmp_path)) == storage.list_visible(str(tmp_path)) == files


def test_folders_at_any_depth_are_walked(tmp_path: Path) -> None:
    depth = 1100
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(depth):
            os.mkdir("d")
            os.chdir("d")
        Path("a.jpg").touch()
    finally:
        os.chdir(here)
    try:
        assert storage.list_visible(str(tmp_path)) == ["d/" * depth + "a.jpg"]
    finally:  # pytest would remove it by a function that calls itself for each level
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)


def test_folder_whose_path_is_too_long_is_an_error_not_an_omission(tmp_path: Path) -> None:
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(30):
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
        Path("a.jpg").touch()
    finally:
        os.chdir(here)
    with pytest.raises(InfinegError, match="the name is too long"):
        storage.list_visible(str(tmp_path))


def test_folder_below_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    (tmp_path / "open").mkdir()
    (tmp_path / "closed").mkdir(mode=0o700)
    (tmp_path / ".Trashes").mkdir(mode=0o700)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder.is_relative_to("/tmp/pytest-of-root"):
            folder.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(InfinegError, match=f"list {tmp_path}/closed: permission denied"):
            storage.list_visible(str(tmp_path))
    finally:
        os.seteuid(0)


def test_pipe_is_passed_over_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").touch()
    assert storage.list_visible(str(tmp_path)) == ["b.jpg"]
    assert "a.jpg: a pipe, socket or device, passed over" in caplog.text


def test_object_store_has_the_same_rule_for_hidden_files() -> None:
    for name in ("a.jpg", "._a.jpg", ".b/c.jpg", "__MACOSX/d.jpg"):
        storage.write_atomic(f"memory://walking/{name}", b"x")
    assert storage.list_visible("memory://walking") == ["a.jpg"]


def test_escaped_name_is_utf8_and_plain_names_stay() -> None:
    assert storage.escape("caf\udce9/\ud800 é") == r"caf\xe9/\ud800 é"
    assert storage.redact("s3://a:b@c/\udcff.jpg") == r"s3://***@c/\xff.jpg"


def test_pipe_that_is_named_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    assert read_named_image("a.jpg", str(tmp_path)) == b""
    (tmp_path / "b.jpg").write_bytes(b"0123456789")
    assert storage.read_range(str(tmp_path / "b.jpg"), 3, 4) == b"3456"
    assert storage.read_range(str(tmp_path / "b.jpg"), 8, 40) == b"89"
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    assert read_named_image("loop.jpg", str(tmp_path)) == b""
