"""Every file of a folder is read, or told by its suffix, or hidden."""

import gzip
from pathlib import Path

import pytest

from pipeline.dataset.schema import Positioned
from pipeline.errors import ConfigError
from pipeline.sources import open_source
from pipeline.sources.readers.folders import list_images
from pipeline.worker.steps.read import SourceDefaults, read_batch
from support.corpus import encode, quadrants, write_tar

JPEG = encode(quadrants())
DEFAULTS = SourceDefaults(
    source="s", targets=("cat",), split_fractions={"train": 1.0, "val": 0.0, "test": 0.0}
)


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(JPEG)
    return folder


def uris(kind: str, **params: object) -> list[str]:
    """Of the rows, as they are stored."""
    source = open_source(kind, params)
    read = [
        Positioned(partition.id, ordinal, sample)
        for partition in source.partitions()
        for ordinal, sample in enumerate(source.read(partition))
    ]
    rows = read_batch(read, DEFAULTS)
    assert len(set(rows["key"].to_pylist())) == len(read)
    return sorted(uri.rpartition("/")[2].rpartition("#")[2] for uri in rows["uri"].to_pylist())


def test_other_suffixes_are_told_by_their_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "a.jfif", "b.JPE", "c.avif", "d.pgm", "e.jp2", "f.JP2", "g.svg", "h", ".i.jp2")
    assert uris("image_folder", path=str(tmp_path)) == ["a.jfif", "b.JPE", "c.avif", "d.pgm"]
    assert "passed over by their suffix: .jp2 2, no suffix 1, .svg 1" in caplog.text
    assert caplog.text.count("passed over") == 1, "told once, however often it is listed"


def test_masks_beside_images_are_told_and_no_samples(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "images/1.jpg", "masks/1.png", "2.jpg", "2_mask.png", "Masks/2.png",
          "man_with_mask.jpg", "3-seg.png", "no_mask/7.jpg", "mask/7.jpg")  # fmt: skip
    assert list_images(str(tmp_path)) == [
        "2.jpg", "3-seg.png", "images/1.jpg", "man_with_mask.jpg", "mask/7.jpg", "no_mask/7.jpg"
    ]  # fmt: skip
    assert "3 masks beside images are passed over, e.g. 2_mask" in caplog.text


def test_folder_of_masks_alone_is_read(tmp_path: Path) -> None:
    names = ["1_mask.png", "2_mask.png"]
    assert list_images(str(write(tmp_path / "masks", *names))) == names


@pytest.mark.parametrize("kind", ["image_folder", "imagenet", "open_images"])
def test_names_that_are_no_utf8_are_stored_escaped(tmp_path: Path, kind: str) -> None:
    names = {
        "image_folder": ("caf\udce9/1\udcff.jpg", "b.jpg"),
        "imagenet": ("n02099601/1\udcff.jpg", "n02099601/b.jpg"),
        "open_images": ("train/1\udcff.jpg", "train/b.jpg"),
    }[kind]
    write(tmp_path, *names)
    assert uris(kind, path=str(tmp_path)) == [r"1\xff.jpg", "b.jpg"]


def test_tar_whose_own_name_is_no_utf8_is_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "caf\udce9.tar", [("1.jpg", JPEG)])
    assert uris("webdataset", urls=str(path)) == ["1.jpg"]


@pytest.mark.parametrize("kind", ["image_folder", "imagenet", "open_images", "webdataset"])
def test_apple_double_files_are_passed_over_everywhere(tmp_path: Path, kind: str) -> None:
    folder = {"imagenet": "n02099601/", "open_images": "train/"}.get(kind, "")
    if kind == "webdataset":
        members = [("._a.jpg", b"\0\5\x16\7"), ("a.jpg", JPEG), ("__MACOSX/._a.jpg", b"\0\5\x16\7")]
        params = {"urls": str(write_tar(tmp_path / "a.tar", members))}
    else:
        write(tmp_path, f"{folder}a.jpg", f"{folder}._a.jpg", f"{folder}.x/b.jpg")
        params = {"path": str(tmp_path)}
    assert uris(kind, **params) == ["a.jpg"]


def test_tars_of_open_images_pass_over_hidden_files_and_tell_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = [("train_0/._0a.jpg", b"x"), ("train_0/0a.jpg", JPEG), ("train_0/0b.txt", b"x")]
    path = write_tar(tmp_path / "a.tar", members)
    (tmp_path / "train_0.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert uris("open_images", path=str(tmp_path / "train_0.tar.gz")) == ["0a.jpg"]
    assert "passed over by their suffix: .txt 1" in caplog.text


def test_heic_without_its_plugin_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sources.readers.folders.image_suffixes", lambda: (".jpg", ".png"))
    write(tmp_path, "a.heic")
    with pytest.raises(ConfigError, match=r"\.heic 1 .*infineg\[heif\].*check `params\.path`"):
        list_images(str(tmp_path))
