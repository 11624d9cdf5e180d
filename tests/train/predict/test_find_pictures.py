"""Pictures wherever they are."""

import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import storage
from pipeline.errors import ConfigError, InfinegError
from train.predict.files import find_pictures


def _jpeg(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 32), (shade, shade, shade)).save(file, "JPEG")
    return file.getvalue()


IMAGES = {f"{shade}.jpg": _jpeg(shade) for shade in (10, 90, 200)}


def _found(*paths: str | Path) -> dict[str, bytes | str]:
    """Name -> bytes, or the error."""
    found: dict[str, bytes | str] = {}
    for picture in find_pictures(paths):
        assert picture.name not in found
        try:
            found[picture.name] = picture.read()
        except (OSError, InfinegError) as error:
            found[picture.name] = f"error: {error}"
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos/deep").mkdir(parents=True)
    for name, content in IMAGES.items():
        (tmp_path / "photos" / name).write_bytes(content)
    (tmp_path / "photos/deep/10.jpg").write_bytes(IMAGES["10.jpg"])
    (tmp_path / "photos/[x].jpg").write_bytes(IMAGES["90.jpg"])
    return tmp_path / "photos"


@pytest.fixture
def web(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_glob_is_expanded_and_a_file_of_such_a_name_is_itself(folder: Path) -> None:
    assert list(_found(folder / "?0.jpg")) == [f"{folder}/10.jpg", f"{folder}/90.jpg"]
    assert list(_found(folder / "**/10.jpg")) == [f"{folder}/10.jpg", f"{folder}/deep/10.jpg"]
    assert _found(folder / "[x].jpg") == {f"{folder}/[x].jpg": IMAGES["90.jpg"]}
    with pytest.raises(ConfigError, match=r"\*\.png: no file or folder matches"):
        find_pictures([folder / "*.png"])


def test_an_address_is_read_and_a_missing_one_is_an_error_of_its_own(web: str) -> None:
    found = _found(f"{web}/10.jpg", f"{web}/none.jpg", f"{web}/90.jpg?size=large")
    assert found[f"{web}/10.jpg"] == IMAGES["10.jpg"]
    assert found[f"{web}/90.jpg?size=large"] == IMAGES["90.jpg"]
    assert str(found[f"{web}/none.jpg"]).startswith("error: ")


def test_a_secret_in_an_address_is_not_shown(web: str) -> None:
    (name,) = _found(f"{web}/10.jpg?X-Amz-Signature=abcdef")
    assert "abcdef" not in name


def test_folders_globs_and_files_of_an_object_store(s3_root: str) -> None:
    for name, content in IMAGES.items():
        storage.write_atomic(f"{s3_root}/photos/{name}", content)
    storage.write_atomic(f"{s3_root}/photos/words.txt", b"words")
    root = f"{s3_root}/photos"
    everything = {f"{root}/{name}": content for name, content in IMAGES.items()}
    assert _found(root) == everything
    assert _found(f"{root}/*.jpg") == everything
    assert _found(f"{root}/90.jpg") == {f"{root}/90.jpg": IMAGES["90.jpg"]}
    assert str(_found(f"{root}/none.jpg")[f"{root}/none.jpg"]).startswith("error: ")


def _write_tar(path: Path, content: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, image in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(image)
            archive.addfile(member, io.BytesIO(image))


def test_images_in_tars_and_tables_are_found_here_and_on_an_object_store(
    tmp_path: Path, s3_root: str
) -> None:
    _write_tar(tmp_path / "a.tar", IMAGES)
    images = [{"bytes": content, "path": name} for name, content in IMAGES.items()]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    for name in ("a.tar", "a.parquet"):
        here = _found(tmp_path / name)
        assert [*here.values()] == [*IMAGES.values()]
        storage.write_atomic(f"{s3_root}/{name}", (tmp_path / name).read_bytes())
        there = _found(f"{s3_root}/{name}")
        assert [*there.values()] == [*IMAGES.values()]
        assert all(each.startswith(f"{s3_root}/{name}") for each in there)


def test_of_a_tar_that_is_cut_off_what_can_be_read_is_found(tmp_path: Path) -> None:
    _write_tar(tmp_path / "whole.tar", IMAGES)
    (tmp_path / "a.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[: 2 * 1024 + 700])
    found = _found(tmp_path / "a.tar")
    assert next(iter(found.values())) == IMAGES["10.jpg"]
    assert str(found[f"{tmp_path}/a.tar"]).startswith("error: ")


def test_a_table_without_images_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"words": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="image"):
        list(find_pictures([tmp_path / "a.parquet"]))


def test_stdin_lists_paths_of_every_sort(
    folder: Path, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = f"{folder}/10.jpg\n\n{folder}/none.jpg\r\n{folder}/deep\n{web}/90.jpg\n{folder}/9*\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    found = _found("-")
    assert list(found) == [
        f"{folder}/10.jpg", f"{folder}/none.jpg", f"{folder}/deep/10.jpg", f"{web}/90.jpg",
        f"{folder}/90.jpg",
    ]  # fmt: skip
    assert found[f"{folder}/none.jpg"] == "error: no such file or folder"
    assert np.mean([isinstance(each, bytes) for each in found.values()]) == 0.8


def test_a_line_of_stdin_that_leads_nowhere_costs_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = ["http://[", "x" * 5000, f"{folder}/{'x' * 300}", "gopher://a", "\0", "s3://"]
    lines = [f"{folder}/10.jpg", *wrong, f"{folder}/90.jpg"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    found = _found("-")
    assert list(found) == lines
    assert [line for line in lines if isinstance(found[line], bytes)] == [lines[0], lines[-1]]


def test_a_path_that_cannot_be_looked_up_is_refused() -> None:
    for path, said in (("", "an empty path"), ("x" * 5000, "File name too long")):
        with pytest.raises(ConfigError, match=said):
            find_pictures([path])
