"""`infineg init`: what it sees in a folder, and the config that it writes for it."""

from pathlib import Path

import pytest

from pipeline.cli.init import target_name, write_config
from pipeline.cli.layout import look
from pipeline.config.loading import load_config
from pipeline.config.schema import Config
from pipeline.errors import ConfigError
from pipeline.sources import load_source_module, open_source
from support.inputs import CAT_WNIDS, DOG_WNID, TIGER_WNID, things, write_folder
from support.processes import call_infineg

PICTURES = things(2)


def fill(folder: Path, number: int = 12) -> None:
    """Pictures by their names, which is all that is looked at; and a file that is none."""
    write_folder(folder, [PICTURES[0]] * number)
    (folder / "notes.txt").write_text("no picture")


def written(root: Path, target: str, path: Path, *, is_all: bool = False) -> Config:
    write_config(look(str(root), target, is_all=is_all), target, str(path))
    return load_config(path)


def paths_of(entries: object) -> list[str]:
    return [entry.params["path"] for entry in entries if entry.kind == "image_folder"]  # type: ignore[attr-defined]


def test_folder_of_pictures_is_all_positives_and_says_what_that_means(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "photos", 20)
    config = tmp_path / "otter.yaml"
    code, out, err = call_infineg(
        capsys, "init", tmp_path / "photos", "--target", "Otter", "--out", config
    )
    assert code == 0, err
    assert "20 pictures of otter" in out
    assert "no other pictures: negatives are drawings" in out
    assert f"Next: infineg run {config}" in " ".join(out.split())
    loaded = load_config(config)
    assert loaded.target_names == ("otter",)
    assert paths_of(loaded.positives) == [str(tmp_path / "photos")]
    assert {entry.kind for entry in loaded.sources} == {"shapes", "squares"}
    assert "learns from drawings only" in config.read_text()
    before = config.read_text()
    code, _, err = call_infineg(
        capsys, "init", tmp_path / "photos", "--target", "otter", "--out", config
    )
    assert (code, config.read_text()) == (2, before)
    assert "is there already" in err


@pytest.mark.parametrize("name", ["Red Pandas", "red_panda", "red-panda"])
def test_folder_named_like_the_target_holds_it_and_the_others_do_not(
    tmp_path: Path, name: str
) -> None:
    for folder in (name, "foxes", "old/bears"):
        fill(tmp_path / "photos" / folder)
    for number in range(3):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(PICTURES[1])
    found = look(str(tmp_path / "photos"), "red_panda")
    assert [folder.name for folder in found.positives] == [name]
    assert [folder.name for folder in found.others] == ["foxes", "old"]
    assert (found.num_positives, found.num_loose) == (12, 3)
    config = written(tmp_path / "photos", "red_panda", tmp_path / "c.yaml")
    assert paths_of(config.positives) == [str(tmp_path / "photos" / name)]
    assert paths_of(config.sources) == [str(tmp_path / "photos" / n) for n in ("foxes", "old")]


def test_folders_for_splits_are_looked_into(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("dog", "cat"):
            fill(tmp_path / "photos" / split / name)
    config = written(tmp_path / "photos", "dog", tmp_path / "c.yaml")
    assert paths_of(config.positives) == [
        str(tmp_path / "photos" / split / "dog") for split in ("train", "val")
    ]
    assert len({entry.name for entry in config.entries}) == len(config.entries)


def test_splits_without_folders_of_classes_are_all_positives(tmp_path: Path) -> None:
    for split in ("train", "val"):
        fill(tmp_path / "photos" / split)
    config = written(tmp_path / "photos", "dog", tmp_path / "c.yaml")
    assert paths_of(config.positives) == [str(tmp_path / "photos")]


def test_folder_of_the_target_is_found_at_any_depth(tmp_path: Path) -> None:
    for folder in ("animals/dogs", "animals/cats", "places/rooms"):
        fill(tmp_path / "photos" / folder)
    (tmp_path / "photos" / "animals" / "1.jpg").write_bytes(PICTURES[1])
    found = look(str(tmp_path / "photos"), "dog")
    assert [folder.name for folder in found.positives] == ["animals/dogs"]
    assert [folder.name for folder in found.others] == ["animals/cats", "places"]
    assert found.num_loose == 1


def test_folders_called_positive_and_negative(tmp_path: Path) -> None:
    fill(tmp_path / "photos" / "positive")
    fill(tmp_path / "photos" / "negative")
    found = look(str(tmp_path / "photos"), "dog")
    assert [folder.name for folder in found.positives] == ["positive"]
    assert [folder.name for folder in found.others] == ["negative"]


def test_many_folders_of_classes_are_one_source_without_the_target(tmp_path: Path) -> None:
    for split in ("train", "val"):
        fill(tmp_path / split / "dog")
        for number in range(9):
            fill(tmp_path / split / f"class{number}", 2)
    config = written(tmp_path, "dog", tmp_path / "c.yaml")
    others = [entry for entry in config.sources if entry.kind == "image_folder"]
    assert [entry.params["path"] for entry in others] == [
        str(tmp_path / split) for split in ("train", "val")
    ]
    for entry in others:
        source = open_source("image_folder", entry.params)
        read = [sample.uri for each in source.partitions() for sample in source.read(each)]
        assert len(read) == 18
        assert not any("/dog/" in uri for uri in read)
        assert {file.uri for file in source.files()} == set(read)


def test_classes_of_imagenet(tmp_path: Path) -> None:
    for wnid, number in zip((*CAT_WNIDS, TIGER_WNID, DOG_WNID), (3, 3, 2, 2, 2, 5, 5), strict=True):
        fill(tmp_path / "imagenet" / wnid, number)
    config = written(tmp_path / "imagenet", "cat", tmp_path / "c.yaml")
    positives, others = config.positives[0], config.sources[0]
    for entry, wanted in ((positives, 12), (others, 10)):
        source = open_source(entry.kind, entry.params)
        assert sum(1 for each in source.partitions() for _ in source.read(each)) == wanted
    with pytest.raises(ConfigError, match=r"classes of ImageNet.*target_wnids"):
        look(str(tmp_path / "imagenet"), "otter")
    fill(tmp_path / "cat")
    beside = written(tmp_path, "cat", tmp_path / "d.yaml").sources[0]
    assert (beside.name, beside.kind) == ("imagenet", "imagenet")


def test_tars_are_named_and_not_passed_over_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path / "photos" / "dog")
    (tmp_path / "photos" / 'a "b".tar').write_bytes(b"")
    out = tmp_path / "c.yaml"
    code, text, _ = call_infineg(
        capsys, "init", tmp_path / "photos", "--target", "dog", "--out", out
    )
    assert (code, "not looked into: 1 tars" in text) == (0, True)
    out.write_text(out.read_text().replace("  # - {name: tars", "  - {name: tars"))
    urls = [entry.params["urls"] for entry in load_config(out).sources if entry.name == "tars"]
    assert urls == [[f'{tmp_path}/photos/a "b".tar']]
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "a.tar").write_bytes(b"")
    with pytest.raises(ConfigError, match="kind webdataset"):
        look(str(tmp_path / "tars"), "dog")


def test_name_of_the_config_stays_in_its_comment(tmp_path: Path) -> None:
    fill(tmp_path / "photos")
    config = written(tmp_path / "photos", "dog", tmp_path / "a\nsources: [].yaml")
    assert len(config.sources) == 2


def test_what_it_cannot_tell_is_an_error_that_lists_the_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fill(tmp_path / "photos" / name)
    with pytest.raises(ConfigError, match=r"no folder in it is called dog; there are a \(12\), b"):
        look(str(tmp_path / "photos"), "dog")
    assert look(str(tmp_path / "photos"), "dog", is_all=True).num_positives == 24


def test_too_few_none_and_no_folder_are_errors(tmp_path: Path) -> None:
    fill(tmp_path / "few", 9)
    with pytest.raises(ConfigError, match="9 pictures of dog; a detector needs 10"):
        look(str(tmp_path / "few"), "dog")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match="PHOTOS"):
        look(str(tmp_path / "none"), "dog")
    with pytest.raises(ConfigError, match="no such folder"):
        look(str(tmp_path / "gone"), "dog")
    with pytest.raises(ConfigError, match="letters and digits"):
        target_name("猫")


@pytest.mark.parametrize(
    "name", ['a "quoted" name', "#no comment", "a: b", "line\nbreak", "日本", "[x]", "'", "-", "{}"]
)
def test_any_name_of_a_folder_is_read_back(tmp_path: Path, name: str) -> None:
    fill(tmp_path / name / "dog")
    fill(tmp_path / name / name)
    config = written(tmp_path / name, "dog", tmp_path / "c.yaml")
    assert paths_of(config.positives) == [str(tmp_path / name / "dog")]
    assert paths_of(config.sources) == [str(tmp_path / name / name)]


def test_a_variable_in_a_name_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "${HOME}")
    with pytest.raises(ConfigError, match="rename the folder"):
        written(tmp_path / "${HOME}", "dog", tmp_path / "c.yaml")
    assert not (tmp_path / "c.yaml").exists()


@pytest.mark.parametrize("target", ["cat", "red_panda"])
def test_sources_in_comments_are_right_once_the_sign_is_gone(tmp_path: Path, target: str) -> None:
    fill(tmp_path / "photos")
    path = tmp_path / "c.yaml"
    written(tmp_path / "photos", target, path)
    lines = path.read_text().replace("  # - {", "  - {").replace("  #    ", "     ")
    path.write_text(lines)
    config = load_config(path)
    kinds = [entry.kind for entry in config.sources]
    assert {"imagenet", "open_images", "huggingface", "image_folder"} <= set(kinds)
    for entry in config.sources:
        module = load_source_module(entry.kind)
        module.Params.model_validate(entry.params)


def test_build_of_a_folder_says_how_to_begin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call_infineg(capsys, "build", tmp_path)
    assert code == 2
    assert f"infineg init {tmp_path} --target NAME" in err
