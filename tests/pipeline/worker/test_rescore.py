"""Kept embeddings, scored and selected again for other probabilities."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.schema import Config
from pipeline.curate.verify import verify_dataset
from pipeline.dataset import Dataset
from pipeline.errors import ConfigError, InfinegError
from pipeline.worker.steps import embed
from support.builds import CATS, Built, build_inline, config_of, file_hashes, folder_entry

FILES = ("shards/", "quarantine/", "ledger/", "hashes/", "reference")
CHANGED = {"selection": {"seed": 3, "beta": 2.0}}


def rescored(built: Built, out: Path, **build: Any) -> Config:
    build = {"embeddings_from": str(built.root), **build}
    return config_of(out, built.entries, build=build, **CHANGED)


@pytest.fixture(scope="module")
def root(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`built` selected again from all of its embeddings. Not to be changed."""
    root = tmp_path_factory.mktemp("rescored") / "data"
    build_inline(rescored(built, root))
    return root


def test_rescored_dataset_is_byte_for_byte_a_new_build(
    built: Built, root: Path, tmp_path: Path
) -> None:
    build_inline(config_of(tmp_path / "anew", built.entries, **CHANGED))
    assert file_hashes(root, FILES) == file_hashes(tmp_path / "anew", FILES)
    assert file_hashes(root, FILES) != file_hashes(built.root, FILES)
    assert verify_dataset(str(root)).problems == []
    for name in file_hashes(built.root, ("embeddings/",)):
        if name.endswith(".parquet"):
            then = Dataset(str(built.root)).read_table(name)
            assert Dataset(str(root)).read_table(name).equals(then), "kept on"


def test_rescoring_embeds_no_candidate_but_those_of_pilot_and_positives(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crop, num_cropped = embed.crop_pixels, 0

    def count(*arguments: Any) -> Any:
        nonlocal num_cropped
        num_cropped += 1
        return crop(*arguments)

    monkeypatch.setattr(embed, "crop_pixels", count)
    build_inline(rescored(built, tmp_path / "rescored"))
    num_first_pilot = 48 + 100 + 100 + 40 + 32
    plans = [Dataset(str(tmp_path / "rescored")).read_plan(e["name"]) for e in built.entries]
    num_second_pilot = sum(plan.num_pilot for plan in plans if plan and plan.num_pilot > 100)
    assert 0 < num_cropped <= 48 + num_first_pilot + num_second_pilot
    assert built.generation.counts.read > 4 * num_cropped


def test_part_without_kept_embeddings_is_embedded(built: Built, root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(built.root / "embeddings", cache / "embeddings")
    for path in sorted(cache.glob("embeddings/squares/*/*.parquet"))[::2]:
        path.unlink()
    build_inline(rescored(built, tmp_path / "some", embeddings_from=str(cache)))
    assert file_hashes(tmp_path / "some", FILES) == file_hashes(root, FILES)


def test_source_that_has_changed_since_is_refused(built: Built, tmp_path: Path) -> None:
    entries = [dict(entry) for entry in built.entries]
    entries[0] = {**entries[0], "params": {**entries[0]["params"], "seed": 99}}
    config = config_of(tmp_path / "data", entries, build={"embeddings_from": str(built.root)})
    with pytest.raises(InfinegError, match=r"around squares://99/\d+ the source is not"):
        build_inline(config)


def test_embeddings_of_another_encoder_are_refused(built: Built, tmp_path: Path) -> None:
    config = rescored(built, tmp_path / "data")
    other = config.model_copy(
        update={"encoder": config.encoder.model_copy(update={"image_size": 96})}
    )
    with pytest.raises(ConfigError, match=r"build\.embeddings_from: .*64px.*needs.*96px"):
        build_inline(other)


def test_dataset_without_embeddings_is_refused(built: Built, tmp_path: Path) -> None:
    config = rescored(built, tmp_path / "data", embeddings_from=str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="is not there: no data set, or one built with"):
        build_inline(config)


def test_refusal_of_other_positives_says_how_to_rescore(built: Built, tmp_path: Path) -> None:
    more = {**CATS, "params": {**CATS["params"], "num_pictures": 64}}
    with pytest.raises(ConfigError, match=r"positives\.0") as caught:
        build_inline(config_of(built.root, built.entries, positives=[more]))
    assert f"--set build.embeddings_from={built.root}" in str(caught.value)
    with pytest.raises(ConfigError, match=r"output\.image_size: 64 .*, 96 in") as caught:
        build_inline(config_of(built.root, built.entries, output={"image_size": 96}))
    assert "embeddings_from" not in str(caught.value), "they would be of other images"
    config = config_of(
        tmp_path / "data",
        [folder_entry("strays", Path(built.entries[3]["params"]["path"]))],
        positives=[more],
        build={"embeddings_from": str(built.root)},
    )
    with pytest.raises(InfinegError, match=r"around .* the source is not what it was"):
        build_inline(config)
