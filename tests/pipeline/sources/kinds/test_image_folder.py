from pathlib import Path

import pytest

from pipeline.dataset.schema import RawSample
from pipeline.errors import ConfigError
from pipeline.sources.kinds.image_folder import Params, Source
from pipeline.sources.readers import tars
from support.corpus import encode, quadrants


def read_all(params: Params) -> dict[str, RawSample]:
    source = Source(params)
    samples = [s for partition in source.partitions() for s in source.read(partition)]
    names = {str(Path(sample.uri).relative_to(params.path)): sample for sample in samples}
    assert len(names) == len(samples)
    return names


def test_every_image_is_read_and_nothing_else(tmp_path: Path) -> None:
    jpeg = encode(quadrants())
    for name in ("a/1.jpg", "a/b/2.JPEG", "3.png", "a/notes.txt", ".hidden.jpg", ".cache/4.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg)
    (tmp_path / "page.jpg").write_text("404 Not Found")

    samples = read_all(Params(path=str(tmp_path)))

    assert {name: sample.class_name for name, sample in samples.items()} == {
        "a/1.jpg": "a",
        "a/b/2.JPEG": "a/b",
        "3.png": None,
        "page.jpg": None,
    }
    assert samples["page.jpg"].image == b"404 Not Found", "whether it is an image, decode says"
    assert all((s.label, s.label_state) == ("", "unknown") for s in samples.values())


def test_first_partition_shows_every_class(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / name).mkdir()
        for number in range(5):
            (tmp_path / name / f"{number}.jpg").write_bytes(b"")
    source = Source(Params(path=str(tmp_path), files_per_partition=4))
    partitions = list(source.partitions())
    assert [partition.num_samples for partition in partitions] == [4] * 5
    assert {sample.class_name for sample in source.read(partitions[0])} == set("abcd")


def test_partition_of_a_changed_folder_has_another_id(tmp_path: Path) -> None:
    source = Source(Params(path=str(tmp_path)))
    (tmp_path / "b.jpg").write_bytes(b"")
    [before] = source.partitions()
    (tmp_path / "a.jpg").write_bytes(b"")
    [after] = source.partitions()
    assert before.id != after.id


@pytest.mark.parametrize(
    ("folder", "cause"),
    [
        ("missing", "no such folder"),
        ("empty", "no file in it that is not hidden"),
        ("others", r"no image in it, only files with other suffixes: \.txt 2, \.jp2 1"),
        ("others/a.txt", "a file, not a folder"),
    ],
)
def test_folder_without_images_is_an_error_that_names_the_cause(
    tmp_path: Path, folder: str, cause: str
) -> None:
    for name in ("empty/.DS_Store", "others/a.txt", "others/b.TXT", "others/c.jp2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    source = Source(Params(path=str(tmp_path / folder)))
    with pytest.raises(ConfigError, match=rf"{folder}: {cause}; check `params\.path`"):
        list(source.partitions())


def test_object_store_is_read_like_a_disk() -> None:
    from fsspec import filesystem

    memory = filesystem("memory")
    memory.pipe("/photos/cat/1.jpg", b"bytes")
    try:
        source = Source(Params(path="memory://photos"))
        [sample] = [s for partition in source.partitions() for s in source.read(partition)]
    finally:
        memory.rm("/photos", recursive=True)
    assert (sample.uri, sample.class_name) == ("memory://photos/cat/1.jpg", "cat")
    assert sample.image == b"bytes"


def test_reading_goes_on_where_it_was_left(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(bytes([number]))
    source = Source(Params(path=str(tmp_path)))
    [partition] = source.partitions()
    (tmp_path / "1.jpg").unlink()
    assert [s.image for s in source.read_from(partition, 2)] == [b"\x02", b"\x03", b"\x04"]
    assert [s.image for s in source.read(partition)][:2] == [b"\x00", b""], "gone, but counted"


def test_file_too_large_for_memory_is_counted_but_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars, "MAX_MEMBER_BYTES", 3)
    (tmp_path / "1.jpg").write_bytes(b"1234")
    (tmp_path / "2.jpg").write_bytes(b"123")
    samples = read_all(Params(path=str(tmp_path)))
    assert {name: sample.image for name, sample in samples.items()} == {
        "1.jpg": b"",
        "2.jpg": b"123",
    }
