"""Builds on a pool: the same bytes as without one, and no image read that is not selected."""

import io
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline import storage
from pipeline.config.schema import Config
from pipeline.curate.verify import verify_dataset
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import Generation
from pipeline.errors import ConfigError, InfinegError
from pipeline.pool import Pool
from pipeline.pool.pool import folder_of
from pipeline.sources.generated import squares
from pipeline.sources.kinds import image_folder
from support.builds import (
    CATS,
    build_inline,
    config_of,
    file_hashes,
    fill_pool_inline,
    folder_entry,
    write_config,
    write_inputs,
)
from support.crashes import crash_build, crash_pool
from support.processes import call_infineg

FILES = ("shards/", "quarantine/", "ledger/", "hashes/", "reference")
OWLS = {"name": "owls", "kind": "shapes", "params": {**CATS["params"], "content": ["owl"]}}
# A steep curve, which needs a second pilot.
STEEP = {"mode": "similarity", "pilot": 64, "beta": 20.0}


class World(NamedTuple):
    """Sources, and a pool of them that nobody has built from. Not to be changed."""

    entries: list[dict[str, Any]]
    pool: Path
    num_rows: int


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("pooled")
    entries = write_inputs(folder / "inputs")
    config = config_of(folder / "unused", entries, pool=str(folder / "pool"))
    counts = fill_pool_inline(config)
    assert all(each.num_new == each.num_rows for each in counts)
    assert not (folder / "unused").exists()
    return World(entries, folder / "pool", sum(each.num_rows for each in counts))


def of_owls(out: Path | str, entries: list[dict[str, Any]], **sections: Any) -> Config:
    given = {"target": {"name": "owl"}, "positives": [OWLS], **sections}
    return config_of(out, entries, **given)


@pytest.fixture(scope="module")
def alone(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Owls, built without the pool. Not to be changed."""
    root = tmp_path_factory.mktemp("alone") / "data"
    build_inline(of_owls(root, world.entries))
    return root


@pytest.fixture
def num_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """URIs of the negatives that are read or drawn."""
    read: list[str] = []

    def count(owner: Any, name: str, uri_of: Any) -> None:
        real = getattr(owner, name)

        def counting(*arguments: Any) -> Any:
            read.append(uri_of(*arguments))
            return real(*arguments)

        monkeypatch.setattr(owner, name, counting)

    count(squares.Source, "sample", lambda _, index: f"squares://0/{index}")
    count(image_folder, "read_image", lambda uri: uri)
    return read


def kept_uris(root: Path, generation: Generation) -> set[str]:
    """Of the images in shards and in quarantine."""
    found: set[str] = set()
    for shard in (*generation.shards, *generation.quarantine):
        found |= set(Dataset(str(root)).read_table(shard.sidecar_path)["uri"].to_pylist())
    return found


def test_build_on_a_pool_is_byte_for_byte_one_without(
    world: World, alone: Path, tmp_path: Path, num_read: list[str]
) -> None:
    config = of_owls(tmp_path / "data", world.entries, pool=str(world.pool))
    before = file_hashes(world.pool, ("",))
    generation = build_inline(config)
    assert file_hashes(tmp_path / "data", FILES) == file_hashes(alone, FILES)
    for name in file_hashes(alone, ("embeddings/",)):
        if name.endswith(".parquet"):
            then = Dataset(str(alone)).read_table(name)
            assert Dataset(str(tmp_path / "data")).read_table(name).equals(then), "kept on"
    assert file_hashes(world.pool, ("",)) == before, "nothing was missing in it"
    assert verify_dataset(str(tmp_path / "data")).problems == []
    counts = generation.counts
    assert counts.rejected["suspected_positive"] > 0
    assert counts.rejected["unreadable"] > 0
    refused_later = {"duplicate", "in_eval_set"}  # when packing, after they were read
    num_refused = sum(counts.rejected.get(reason, 0) for reason in refused_later)
    extra = set(num_read) - kept_uris(tmp_path / "data", generation)
    assert len(extra) <= num_refused, sorted(extra)[:5]
    assert len(num_read) < world.num_rows / 3


def test_draws_by_similarity_alone_are_the_same(world: World, tmp_path: Path) -> None:
    pool = {"pool": str(world.pool)}
    for name, given in {"alone": {}, "pooled": pool}.items():
        build_inline(of_owls(tmp_path / name, world.entries, selection=STEEP, **given))
    assert file_hashes(tmp_path / "pooled", FILES) == file_hashes(tmp_path / "alone", FILES)
    plan = Dataset(str(tmp_path / "pooled")).read_plan("squares")
    assert plan is not None
    assert plan.num_pilot > 64, "there was a second pilot"


def test_first_build_fills_the_pool_of_the_second(
    world: World, alone: Path, tmp_path: Path, num_read: list[str]
) -> None:
    pool = str(tmp_path / "pool")
    build_inline(config_of(tmp_path / "cats", world.entries, pool=pool))
    num_first = len(num_read)
    filled = file_hashes(pool, ("",))
    as_pooled_alone = file_hashes(world.pool, ("",))
    assert filled == as_pooled_alone, "whoever fills it"
    build_inline(of_owls(tmp_path / "owls", world.entries, pool=pool))
    assert file_hashes(tmp_path / "owls", FILES) == file_hashes(alone, FILES)
    assert len(num_read) - num_first < num_first / 3


def test_pool_without_some_parts_is_filled_by_a_build(
    world: World, alone: Path, tmp_path: Path
) -> None:
    pool = Path(shutil.copytree(world.pool, tmp_path / "pool"))
    whole = file_hashes(pool, ("",))
    for path in sorted(pool.glob("*/*-00000*.parquet"))[::2]:
        path.unlink()
    build_inline(of_owls(tmp_path / "data", world.entries, pool=str(pool)))
    assert file_hashes(tmp_path / "data", FILES) == file_hashes(alone, FILES)
    assert file_hashes(pool, ("",)) == whole


def test_killed_at_any_file_it_resumes_to_the_same_pool(world: World, tmp_path: Path) -> None:
    config = config_of(tmp_path / "unused", world.entries, pool=str(tmp_path / "pool"))
    num_killed = 0
    while crash_pool(config, num_killed + 1):  # a little further each time
        num_killed += 1
    assert num_killed > 3
    garbage = [name for name in storage.list_files(str(tmp_path / "pool")) if ".tmp-" in name]
    found = file_hashes(tmp_path / "pool", ("",))
    assert {name: found[name] for name in found if name not in garbage} == file_hashes(
        world.pool, ("",)
    )


@pytest.mark.parametrize("moment", ["plan", "half a file", "part", "hardest read", "shard"])
def test_killed_build_resumes_on_the_pool(
    world: World, alone: Path, tmp_path: Path, moment: str
) -> None:
    config = of_owls(tmp_path / "data", world.entries, pool=str(world.pool))
    assert crash_build(config, moment, before=False)
    build_inline(config)
    assert file_hashes(tmp_path / "data", FILES) == file_hashes(alone, FILES)


def test_commands_in_real_processes_do_the_same(
    world: World, alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = of_owls(tmp_path / "data", world.entries, build={"workers": 2})
    path = str(write_config(tmp_path / "config.yaml", config))
    code, *output = call_infineg(capsys, "pool", "build", path)
    assert code == 2
    assert "pool: not set" in "".join(output)
    given = ("--set", f"pool={tmp_path / 'pool'}")
    code, *output = call_infineg(capsys, "pool", "build", path, *given)
    assert code == 0
    assert "squares" in output[0]
    assert file_hashes(tmp_path / "pool", ("",)) == file_hashes(world.pool, ("",))
    code, *_ = call_infineg(capsys, "build", path, *given)
    assert code == 0
    assert file_hashes(tmp_path / "data", FILES) == file_hashes(alone, FILES)


def test_pool_is_filled_source_by_source(world: World, tmp_path: Path) -> None:
    pool = str(tmp_path / "pool")
    config = config_of(tmp_path / "unused", world.entries, pool=pool)
    (first,) = fill_pool_inline(config, only=["strays"])
    assert first.num_new == first.num_rows > 0
    counts = {each.source: each for each in fill_pool_inline(config)}
    assert counts["strays"].num_new == 0
    assert counts["odd"].num_new == counts["odd"].num_rows > 0
    with pytest.raises(ConfigError, match="--source nothing"):
        fill_pool_inline(config, only=["nothing"])


def test_another_name_or_budget_of_a_source_is_the_same_source(
    world: World, tmp_path: Path
) -> None:
    entries = [{**world.entries[3], "name": "renamed", "weight": 2.0}]
    config = config_of(tmp_path / "unused", entries, pool=str(world.pool))
    (counts,) = fill_pool_inline(config)
    assert counts.num_new == 0


@pytest.fixture
def photos(tmp_path: Path, world: World) -> tuple[list[dict[str, Any]], Path, str]:
    """An entry of a folder that may be changed, the folder, and a pool of it."""
    folder = tmp_path / "photos"
    shutil.copytree(world.entries[3]["params"]["path"], folder)
    entries = [folder_entry("photos", folder)]
    fill_pool_inline(config_of(tmp_path / "unused", entries, pool=str(tmp_path / "pool")))
    return entries, folder, str(tmp_path / "pool")


def test_changed_source_is_refused_until_it_is_pooled_again(
    photos: tuple[list[dict[str, Any]], Path, str], tmp_path: Path
) -> None:
    entries, folder, pool = photos
    (folder / "000.jpg").write_bytes((folder / "020.jpg").read_bytes())
    config = of_owls(tmp_path / "data", entries, pool=pool)
    with pytest.raises(InfinegError, match=r"photos.* has changed: 1 .*such as .*000\.jpg") as got:
        build_inline(config)
    assert "infineg pool build" in str(got.value)
    (counts,) = fill_pool_inline(config)
    assert counts.num_new == counts.num_rows == 32
    build_inline(config)
    build_inline(of_owls(tmp_path / "alone", entries))
    assert file_hashes(tmp_path / "data", FILES) == file_hashes(tmp_path / "alone", FILES)


def test_changed_image_that_the_listing_does_not_show_is_refused(
    photos: tuple[list[dict[str, Any]], Path, str], tmp_path: Path
) -> None:
    entries, folder, pool = photos
    for path in folder.iterdir():
        content, times = bytearray(path.read_bytes()), path.stat()
        content[-3] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(InfinegError, match=r"source 'photos': .*\.jpg has changed since"):
        build_inline(of_owls(tmp_path / "data", entries, pool=pool))


def test_pool_of_another_encoder_or_size_is_refused(world: World, tmp_path: Path) -> None:
    pool = str(world.pool)
    with pytest.raises(ConfigError, match=r"pool: .*64px.* needs .*96px"):
        build_inline(
            of_owls(tmp_path / "data", world.entries, pool=pool, encoder={"image_size": 96})
        )
    config = of_owls(tmp_path / "data", world.entries, pool=pool, output={"image_size": 96})
    with pytest.raises(ConfigError, match=r"pool: .*image_size=64.* needs .*image_size=96"):
        fill_pool_inline(config)


def test_damaged_part_is_refused_by_name(world: World, tmp_path: Path) -> None:
    pool = Path(shutil.copytree(world.pool, tmp_path / "pool"))
    config = of_owls(tmp_path / "data", world.entries, pool=str(pool))
    (path,) = (pool / folder_of(config.sources[3])).glob("*.parquet")
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 255
    path.write_bytes(content)
    with pytest.raises(InfinegError, match=rf"{path.name}.*remove it, and it is read"):
        build_inline(config)


def test_labelled_tars_of_unknown_length_are_the_same(tmp_path: Path) -> None:
    entries = [write_tars(tmp_path / "tars")]
    pool = str(tmp_path / "pool")
    fill_pool_inline(config_of(tmp_path / "unused", entries, pool=pool))
    filled = file_hashes(pool, ("",))
    for name, given in {"alone": {}, "pooled": {"pool": pool}}.items():
        build_inline(of_owls(tmp_path / name, entries, **given))
    assert file_hashes(tmp_path / "pooled", FILES) == file_hashes(tmp_path / "alone", FILES)
    assert file_hashes(pool, ("",)) == filled
    parts = Dataset(str(tmp_path / "pooled")).iterate_parts("tars", 1)
    left_out = [part.left_out for part in parts]
    assert left_out == [
        part.left_out for part in Dataset(str(tmp_path / "alone")).iterate_parts("tars", 1)
    ]


def write_tars(folder: Path) -> dict[str, Any]:
    """Eight tars of 40 squares, a quarter of which are of a class that is left out."""
    folder.mkdir()
    source = squares.Source(squares.Params(image_size=32))
    for number in range(8):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for index in range(40 * number, 40 * number + 40):
                image = source.sample(index).image
                add_member(tar, f"{index:06d}.jpg", image)
                add_member(tar, f"{index:06d}.cls", b"owl" if index % 4 == 0 else b"other")
    params = {
        "urls": [str(folder / "{00000..00007}.tar")], "class_field": "cls", "target_labels": ["owl"]
    }  # fmt: skip
    return {"name": "tars", "kind": "webdataset", "params": params}


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def test_previews_are_small_and_of_every_usable_candidate(world: World) -> None:
    pool = Pool(str(world.pool))
    paths = [name for name in storage.list_files(str(world.pool), (".parquet",)) if "-0000" in name]
    assert paths
    for path in paths:
        rows = pool.files.read_table(path, ["preview", "reject_reason"])
        assert rows["preview"].is_null().equals(rows["reject_reason"].is_valid())
        sizes = [len(preview.as_buffer()) for preview in rows["preview"] if preview.is_valid]
        assert max(sizes) < 8192


def test_pool_and_data_set_on_s3(world: World, s3_root: str, alone: Path) -> None:
    pool = f"{s3_root}/pool"
    fill_pool_inline(config_of(f"{s3_root}/unused", world.entries, pool=pool))
    assert file_hashes(pool, ("",)) == file_hashes(world.pool, ("",))
    build_inline(of_owls(f"{s3_root}/data", world.entries, pool=pool))
    assert file_hashes(f"{s3_root}/data", FILES) == file_hashes(alone, FILES)


def test_pool_and_embeddings_of_a_data_set_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"give either `pool` or `build\.embeddings_from`"):
        config_of(tmp_path, [], pool="pool", build={"embeddings_from": "data"})
