"""A source whose files change after they were read stops the build; it is drawn anew if asked."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import pipeline.build.driver
from pipeline.build.changes import finished_generation
from pipeline.build.file_tables import compare_files, list_files, write_files
from pipeline.config.schema import Config
from pipeline.curate.takedown import take_down
from pipeline.curate.verify import verify_dataset
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import TakenDown
from pipeline.errors import ConfigError, InfinegError
from pipeline.mine.driver import mine
from pipeline.sources import Source, StoredSource, load_source_module, open_source, source_kinds
from support.builds import (
    CATS,
    build_inline,
    config_of,
    file_hashes,
    first_samples,
    folder_entry,
    open_inline,
    squares,
    write_config,
)
from support.corpus import write_tar
from support.crashes import crash_build
from support.inputs import write_folder
from support.processes import call_infineg
from support.servers import BUCKET, S3Server

SHARDS = ("shards/", "quarantine/", "ledger/", "hashes/")
MODULES = {kind: load_source_module(kind) for kind in source_kinds()}
KINDS = [k for k, module in MODULES.items() if module.__name__.startswith("pipeline.sources.kinds")]


def pictures(number: int, *, seed: int = 0, entry: dict[str, Any] | None = None) -> list[bytes]:
    drawn = entry or squares(num_pictures=number, seed=seed)
    return [sample.image for sample in first_samples(drawn, number)]


def of_one_size(images: list[bytes]) -> list[bytes]:
    """The same JPEGs with zeros behind their end, which a decoder does not read."""
    size = max(map(len, images))
    return [image.ljust(size, b"\0") for image in images]


def write_pictures(path: Path, images: list[bytes]) -> None:
    write_tar(path, [(f"{number:05d}.jpg", image) for number, image in enumerate(images)])


def safe_folder(path: Path) -> dict[str, Any]:
    return folder_entry("folder", path, label_state="verified_absent")


def tar_entry(path: Path | str, name: str = "tars") -> dict[str, Any]:
    params = {"urls": [str(path)]}
    return {"name": name, "kind": "webdataset", "params": params, "label_state": "verified_absent"}


def touch(path: Path) -> None:
    """Another time, as after a copy."""
    before = path.stat().st_mtime_ns
    os.utime(path, ns=(before, before + 7_000_000_000))


def hashes_in_ledger(root: Path | str, source: str) -> list[str]:
    dataset = Dataset(str(root))
    record = next(each for each in dataset.read_generation().sources if each.name == source)
    tables = [dataset.read_table(table.path, ["content_hash"]) for table in record.ledger]
    return list(pa.concat_tables(tables)["content_hash"].to_pylist())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "folder", of_one_size(pictures(40)))
    return tmp_path / "folder"


@pytest.fixture
def config(tmp_path: Path, folder: Path) -> Config:
    """A folder and a generator against cats, with nothing built."""
    entries = [safe_folder(folder), squares(num_pictures=60, seed=9)]
    return config_of(tmp_path / "data", entries)


def test_every_kind_lists_its_files_and_no_generator_has_any_of_its_own() -> None:
    filed = {kind for kind, module in MODULES.items() if hasattr(module.Source, "files")}
    assert filed == {*KINDS, "collage"}, "which is cut from other sources"


@pytest.fixture(params=KINDS)
def toy(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Source]:
    """Opens the toy of a kind, which lies in `toy`."""
    params = MODULES[request.param].toy(tmp_path / "toy").model_dump(mode="json")
    return lambda: open_source(request.param, params)


def test_a_change_of_any_file_shows_in_the_listing(
    toy: Callable[[], Source], tmp_path: Path
) -> None:
    before = list_files(toy())
    assert before is not None
    assert before.num_rows
    assert compare_files(before, list_files(toy())) == compare_files(before, before)
    for path in sorted(each for each in (tmp_path / "toy").rglob("*") if each.is_file()):
        listed = compare_files(before, list_files(toy()))
        touch(path)
        then = compare_files(before, list_files(toy()))
        assert len(then.touched) == len(listed.touched) + 1, path
        assert str(path) in then.touched
        assert str(then) == "", "the content is the same, as far as a listing tells"


def test_collage_lists_the_files_that_it_is_cut_from(folder: Path) -> None:
    origin = {"kind": "image_folder", "params": {"path": str(folder)}, "allow_unknown": True}
    source = open_source("collage", {"sources": [origin, {"kind": "squares"}]})
    assert isinstance(source, StoredSource)
    assert list_files(source).num_rows == 40
    assert list_files(open_source("squares", {})) is None


def test_folder_that_has_changed_is_told_with_both_ways_on(
    config: Config, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = build_inline(config)
    before = file_hashes(config.output.path)
    write_folder(tmp_path / "more", pictures(1, seed=5))
    shutil.copy(next((tmp_path / "more").iterdir()), folder / "new.jpg")
    names = sorted(path.name for path in folder.iterdir())
    (folder / names[2]).unlink()
    (folder / names[3]).write_bytes(pictures(1, seed=6)[0])
    for options in ([], ["--source", "folder"]):
        path = write_config(tmp_path / "config.yaml", config)
        code, _, error = call_infineg(capsys, "build", path, *options)
        assert code == 1
        assert "source 'folder' has changed: 1 added, 1 removed, 1 changed, such as" in error
        assert all(name in error for name in ("new.jpg", names[2], names[3], "--accept-changes"))
        assert "an entry of their own" in error
    code, _, error = call_infineg(capsys, "plan", path)
    assert (code, "source 'folder' has changed" in error) == (1, True)
    code, output, _ = call_infineg(capsys, "build", path, "--source", "squares")
    assert (code, "nothing to do" in output) == (0, True)
    assert file_hashes(config.output.path) == before
    assert Dataset(config.output.path).read_latest() == first


def test_accepted_changes_are_drawn_anew_as_a_build_of_the_new_files_would(
    config: Config, folder: Path, tmp_path: Path
) -> None:
    root = config.output.path
    first = build_inline(config)
    before = file_hashes(root)
    for number, image in enumerate(pictures(30, seed=5)):
        (folder / f"new{number}.jpg").write_bytes(image)
    (folder / "IMG_0003.JPG").unlink()
    second = build_inline(config, accept_changes=True)
    assert (second.number, second.parent) == (2, 1)
    fresh = build_inline(config_of(tmp_path / "fresh", list(config.model_dump()["sources"])))
    assert second.counts == fresh.counts
    assert hashes_in_ledger(root, "folder") == hashes_in_ledger(tmp_path / "fresh", "folder")
    assert {s.sha256 for s in second.shards} == {s.sha256 for s in fresh.shards}
    after = file_hashes(root)
    assert {name: after[name] for name in before if name != "_info.json"} == {
        name: digest for name, digest in before.items() if name != "_info.json"
    }, "the first generation stays as it was"
    assert [s for s in second.shards if s.source == "squares"] == [
        s for s in first.shards if s.source == "squares"
    ]
    assert verify_dataset(root).problems == []
    assert finished_generation(config) == second
    assert build_inline(config, accept_changes=True) == second, "there is nothing left to accept"


def test_same_size_and_another_content_is_told(config: Config, folder: Path) -> None:
    build_inline(config)
    path = min(folder.iterdir())
    size = path.stat().st_size
    path.write_bytes(pictures(1, seed=5)[0].ljust(size, b"\0")[:size])
    touch(path)
    with pytest.raises(InfinegError, match=rf"'folder' has changed: 1 changed, such as {path}\n"):
        build_inline(config)


def test_copy_with_other_times_is_taken_for_what_it_is_and_read_once(
    config: Config, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = build_inline(config)
    for path in folder.iterdir():
        touch(path)
    caplog.set_level(logging.INFO)
    assert finished_generation(config) is None, "a listing cannot tell"
    assert build_inline(config) == first
    assert "40 files have the sizes that they had" in caplog.text
    caplog.clear()
    assert finished_generation(config) == first
    assert build_inline(config) == first
    assert "reading them again" not in caplog.text
    plans = {path.name for path in (Path(config.output.path) / "plans").iterdir()}
    assert len([name for name in plans if name.startswith("folder-")]) == 1


def test_member_of_a_tar_that_is_replaced_in_place_is_told(tmp_path: Path) -> None:
    """Size, head and tail are the same."""
    images = of_one_size(pictures(41))
    tars = [tmp_path / f"{number}.tar" for number in range(2)]
    write_pictures(tars[0], images[:20])
    write_pictures(tars[1], images[20:40])
    config = config_of(tmp_path / "data", [tar_entry(tmp_path / "{0..1}.tar")])
    build_inline(config)
    touch(tars[0])
    write_pictures(tars[1], [*images[20:29], images[40], *images[30:40]])
    touch(tars[1])
    with pytest.raises(InfinegError, match=rf"has changed: 1 changed, such as {tars[1]}\n"):
        build_inline(config)


def test_tar_that_is_broken_now_has_changed(tmp_path: Path) -> None:
    tar = tmp_path / "a.tar"
    write_pictures(tar, pictures(20))
    config = config_of(tmp_path / "data", [tar_entry(tar)])
    build_inline(config)
    content = tar.read_bytes()
    middle = content.index(b"00010.jpg")
    tar.write_bytes(content[:middle] + b"\xff" * 300 + content[middle + 300 :])
    touch(tar)
    with pytest.raises(InfinegError, match=rf"'tars' has changed: 1 changed, such as {tar}\n"):
        build_inline(config)


def test_file_of_class_names_is_one_of_the_files(tmp_path: Path) -> None:
    """It has no sample, and every partition is read again to see what it says of them."""
    names, tar = tmp_path / "names.txt", tmp_path / "a.tar"
    names.write_text("cat\ndog\n")
    images = pictures(12)
    members = [
        member
        for number, image in enumerate(images)
        for member in ((f"{number}.jpg", image), (f"{number}.cls", b"%d" % (number % 2)))
    ]
    write_tar(tar, members)
    entry = tar_entry(tar)
    more = {"class_field": "cls", "label_names": str(names), "target_labels": ["cat"]}
    entry["params"] |= more | {"target_policy": "positive"}
    config = config_of(tmp_path / "data", [entry])
    first = build_inline(config)
    touch(names)
    assert build_inline(config) == first
    names.write_text("dog\ncat\n")
    touch(names)
    with pytest.raises(InfinegError, match=rf"has changed: 1 changed, such as {names}\n"):
        build_inline(config)


def test_labels_that_have_changed_are_told_though_no_image_has(tmp_path: Path) -> None:
    params = MODULES["open_images"].toy(tmp_path / "toy").model_dump(mode="json")
    params["target_policy"] = "positive"
    entry = {"name": "labelled", "kind": "open_images", "params": params}
    config = config_of(tmp_path / "data", [entry])
    build_inline(config)
    labels = next((tmp_path / "toy").glob("*human*"))
    text = labels.read_text()
    labels.write_text(text.replace("/m/01yrx,0", "/m/01yrx,1"))
    assert labels.stat().st_size == len(text)
    touch(labels)
    with pytest.raises(InfinegError, match=rf"'labelled' has changed: 1 changed, such as {labels}"):
        build_inline(config)


@pytest.mark.parametrize("moment", ["part", "ledger"])
def test_tar_replaced_between_a_kill_and_a_resume_is_refused(tmp_path: Path, moment: str) -> None:
    images = pictures(700)
    tar = tmp_path / "a.tar"
    write_pictures(tar, images)
    sections = {
        "selection": {"budget": 10**6, "pilot": 50}, "output": {"samples_per_shard": 1000}
    }  # fmt: skip
    config = config_of(tmp_path / "data", [tar_entry(tar)], **sections)
    assert crash_build(config, moment, before=False)
    write_pictures(tar, images[::-1])
    touch(tar)
    with pytest.raises(InfinegError, match=rf"'tars' has changed: 1 changed, such as {tar}\n"):
        build_inline(config)
    build_inline(config, accept_changes=True)
    expected = config_of(tmp_path / "expected", [tar_entry(tar)], **sections)
    build_inline(expected)
    assert file_hashes(config.output.path, SHARDS) == file_hashes(expected.output.path, SHARDS)
    assert verify_dataset(config.output.path).problems == []


def test_tar_that_was_copied_between_a_kill_and_a_resume_is_read_on(tmp_path: Path) -> None:
    tar = tmp_path / "a.tar"
    write_pictures(tar, pictures(700))
    config = config_of(tmp_path / "data", [tar_entry(tar)])
    assert crash_build(config, "part", before=False)
    touch(tar)
    build_inline(config)
    expected = config_of(tmp_path / "expected", [tar_entry(tar)])
    build_inline(expected)
    assert file_hashes(config.output.path) == file_hashes(expected.output.path)


@pytest.mark.parametrize("moment", ["plan", "part", "shard", "generation", "removal"])
@pytest.mark.parametrize("before", [True, False])
def test_drawing_anew_that_is_killed_goes_on_by_itself(
    tmp_path: Path, moment: str, before: bool
) -> None:
    """Exactly once, to the bytes of one that nobody killed."""
    roots = [tmp_path / name for name in ("data", "expected")]
    configs = [config_of(r, [safe_folder(tmp_path / "folder")]) for r in roots]
    write_folder(tmp_path / "folder", pictures(30))
    for config in configs:
        build_inline(config)
    shutil.rmtree(tmp_path / "folder")
    write_folder(tmp_path / "folder", pictures(40, seed=5))
    assert crash_build(configs[0], moment, before=before, accept_changes=True)
    assert verify_dataset(str(roots[0])).problems == []
    has_accepted = Dataset(str(roots[0])).read_plan("folder").draw == 1
    if not has_accepted:
        assert moment == "plan", "the write that accepts"
        with pytest.raises(InfinegError, match="has changed"):
            build_inline(configs[0])
    resumed = build_inline(configs[0], accept_changes=not has_accepted)
    expected = build_inline(configs[1], accept_changes=True)
    assert resumed == expected
    assert file_hashes(roots[0]) == file_hashes(roots[1])
    assert verify_dataset(str(roots[0])).problems == []


@pytest.mark.parametrize("moment", [None, "reference", "plan", "generation"])
def test_changed_positives_are_told_and_accepted_for_all_sources(
    tmp_path: Path, moment: str | None
) -> None:
    cats = tmp_path / "cats"
    write_folder(cats, pictures(48, entry=CATS))
    sections = {"positives": [folder_entry("cats", cats)]}
    entries = [squares(num_pictures=200), squares("more", num_pictures=50, seed=3)]
    config = config_of(tmp_path / "data", entries, **sections)
    first = build_inline(config)
    before = file_hashes(config.output.path, SHARDS)
    others = {**CATS, "params": {**CATS["params"], "seed": 8}}
    for number, image in enumerate(pictures(20, entry=others)):
        (cats / f"new{number}.jpg").write_bytes(image)
    with pytest.raises(InfinegError, match=r"'cats' has changed: 20 added.*(?s:.*)reference bank"):
        build_inline(config)
    with pytest.raises(InfinegError, match="reference bank"):
        build_inline(config, only=["more"])
    with pytest.raises(ConfigError, match="without --source"):
        build_inline(config, only=["more"], accept_changes=True)
    assert Dataset(config.output.path).read_latest() == first
    if moment is not None:
        assert crash_build(config, moment, before=False, accept_changes=True)
    if moment in ("reference", "plan"):
        with pytest.raises(ConfigError, match="without --source"):
            build_inline(config, only=["more"])
    second = build_inline(config, accept_changes=moment is None)
    fresh = config_of(tmp_path / "fresh", entries, **sections)
    expected = build_inline(fresh)
    assert {s.sha256 for s in second.shards} == {s.sha256 for s in expected.shards}
    assert second.counts == expected.counts
    banks = [Dataset(str(tmp_path / name)).read_reference() for name in ("data", "fresh")]
    assert [b.fingerprint for b in banks] == [banks[1].fingerprint] * 2
    assert before.items() <= file_hashes(config.output.path, SHARDS).items()
    assert Dataset(config.output.path).read_generation(1) == first
    assert verify_dataset(config.output.path).problems == []
    assert finished_generation(config) == second


@pytest.mark.parametrize("is_accepted", [False, True])
def test_purge_of_a_positive_does_not_hide_a_change_of_another(
    tmp_path: Path, is_accepted: bool
) -> None:
    """Nor that one was accepted, by a build that was killed."""
    cats = tmp_path / "cats"
    write_folder(cats, pictures(48, entry=CATS))
    config = config_of(
        tmp_path / "data", [squares(num_pictures=60)], positives=[folder_entry("cats", cats)]
    )
    first = build_inline(config)
    dataset = Dataset(config.output.path)
    positives = next(source for source in first.sources if source.name == "cats")
    key = dataset.read_table(positives.ledger[0].path)["key"][10].as_py()
    other = {**CATS, "params": {**CATS["params"], "seed": 8}}
    (cats / "new.jpg").write_bytes(pictures(1, entry=other)[0])
    if is_accepted:
        assert crash_build(config, "reference", before=False, accept_changes=True)
    take_down(config.output.path, TakenDown(keys=frozenset([key])), purge=True)
    if not is_accepted:
        with pytest.raises(InfinegError, match="'cats' has changed: 1 added"):
            build_inline(config)
    build_inline(config, accept_changes=not is_accepted)
    reference = dataset.read_reference()
    assert (reference.draw, reference.num_positives) == (1, 48)
    assert {source.name for source in dataset.read_latest().sources} == {"cats", "squares"}
    assert all(dataset.read_plan(name).draw == 1 for name in ("cats", "squares"))
    assert verify_dataset(config.output.path).problems == []


def test_positives_that_no_ledger_has_yet_are_not_taken_for_a_copy(tmp_path: Path) -> None:
    """The bank was made of them, and keeps no row of each."""
    cats = tmp_path / "cats"
    write_folder(cats, pictures(48, entry=CATS))
    sections = {"positives": [folder_entry("cats", cats)]}
    config = config_of(tmp_path / "data", [squares(num_pictures=20)], **sections)
    assert crash_build(config, "part", before=True)
    assert Dataset(config.output.path).read_plan("cats") is not None
    touch(cats / "IMG_0000.JPG")
    with pytest.raises(InfinegError, match=r"'cats' has changed: 1 changed, such as \S+_0000"):
        build_inline(config)


def test_table_of_files_that_is_lost_is_missed(config: Config) -> None:
    build_inline(config)
    (path,) = (Path(config.output.path) / "plans").glob("folder-*.parquet")
    path.unlink()
    with pytest.raises(InfinegError, match=rf"{path}: no such file.*Restore it"):
        build_inline(config)


def forget_files(root: Path | str) -> None:
    """As an older version left a data set."""
    dataset = Dataset(str(root))
    for path in (Path(root) / "plans").glob("*.json"):
        plan = dataset.read_plan(path.stem)
        dataset.write_plan(plan.model_copy(update={"files": ""}))
    dataset.write_reference(dataset.read_reference().model_copy(update={"files": {}}))
    for path in (Path(root) / "plans").glob("*.parquet"):
        path.unlink()


def test_older_data_set_takes_its_files_for_unchanged_once(
    config: Config, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = build_inline(config)
    forget_files(config.output.path)
    caplog.set_level(logging.INFO)
    assert build_inline(config) == first
    assert "'folder' was planned by an older version" in caplog.text
    assert finished_generation(config) == first
    (folder / "new.jpg").write_bytes(pictures(1, seed=5)[0])
    with pytest.raises(InfinegError, match="1 added"):
        build_inline(config)


def test_older_data_set_is_compared_by_its_partitions(config: Config, folder: Path) -> None:
    build_inline(config)
    forget_files(config.output.path)
    (folder / "new.jpg").write_bytes(pictures(1, seed=5)[0])
    with pytest.raises(InfinegError, match="changed: 1 removed, such as partition 000000-"):
        build_inline(config)
    assert build_inline(config, accept_changes=True).number == 2


def test_source_that_was_only_planned_is_planned_anew(
    config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.build.driver, "open_cluster", open_inline)
    pipeline.build.driver.plan(config)
    (folder / "new.jpg").write_bytes(pictures(1, seed=5)[0])
    (plan, *_), _ = pipeline.build.driver.plan(config, only=["folder"])
    assert plan.num_candidates == 41
    build_inline(config)
    assert len(hashes_in_ledger(config.output.path, "folder")) == 41


def test_mining_refuses_a_source_that_has_changed(config: Config, folder: Path) -> None:
    build_inline(config)
    (folder / "new.jpg").write_bytes(pictures(1, seed=5)[0])
    scorer: Any = SimpleNamespace(fingerprint="never asked")
    with pytest.raises(InfinegError, match="'folder' has changed: 1 added"):
        mine(config, scorer, budget=5)


def put_in_parts(client: Any, key: str, content: bytes) -> None:
    of = {"Bucket": BUCKET, "Key": key}
    upload = client.create_multipart_upload(**of)["UploadId"]
    etag = client.upload_part(**of, UploadId=upload, PartNumber=1, Body=content)["ETag"]
    parts = {"Parts": [{"PartNumber": 1, "ETag": etag}]}
    client.complete_multipart_upload(**of, UploadId=upload, MultipartUpload=parts)


def test_objects_on_s3_are_compared_by_their_etags(
    tmp_path: Path, s3_root: str, s3_server: S3Server
) -> None:
    client, prefix = s3_server.client(), s3_root.removeprefix(f"s3://{BUCKET}/")
    images = of_one_size(pictures(60))

    def put(name: str, content: bytes) -> None:
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=content)

    for number, image in enumerate(images[:40]):
        put(f"folder/{number:05d}.jpg", image)
    write_pictures(tmp_path / "a.tar", images[40:])
    put("a.tar", (tmp_path / "a.tar").read_bytes())
    entries = [
        {"name": "folder", "kind": "image_folder", "params": {"path": f"{s3_root}/folder"}},
        tar_entry(f"{s3_root}/a.tar"),
    ]
    config = config_of(tmp_path / "data", entries)
    first = build_inline(config)
    put("folder/00007.jpg", images[7])  # the same bytes at another time
    s3_server.reads.clear()
    assert finished_generation(config) == first
    assert [r for r in s3_server.reads if r.endswith((".jpg", ".tar")) and "GET" in r] == []
    etag = client.head_object(Bucket=BUCKET, Key=f"{prefix}/a.tar")["ETag"]
    put_in_parts(client, f"{prefix}/a.tar", (tmp_path / "a.tar").read_bytes())
    assert client.head_object(Bucket=BUCKET, Key=f"{prefix}/a.tar")["ETag"] != etag
    assert finished_generation(config) is None
    assert build_inline(config) == first, "the same bytes, in other pieces"
    assert finished_generation(config) == first
    put("folder/00007.jpg", images[0])
    write_pictures(tmp_path / "b.tar", images[39:59])
    put("a.tar", (tmp_path / "b.tar").read_bytes())
    with pytest.raises(InfinegError) as caught:
        build_inline(config)
    assert f"'folder' has changed: 1 changed, such as {s3_root}/folder/00007.jpg" in str(
        caught.value
    )
    assert f"'tars' has changed: 1 changed, such as {s3_root}/a.tar" in str(caught.value)


def test_table_of_files_is_small(tmp_path: Path) -> None:
    number = 100_000
    rng = np.random.default_rng(0)
    files = pa.table(
        {
            "name": [f"s3://bucket/train/n{n // 1300:08d}/{n:08d}.JPEG" for n in range(number)],
            "size": pa.array(rng.integers(10**4, 10**6, number), pa.int64()),
            "stamp": pa.array(rng.integers(0, 2**63, number), pa.uint64()),
        }
    )
    dataset = Dataset(str(tmp_path))
    path = write_files(dataset, "many", files)
    assert (tmp_path / path).stat().st_size < 20 * number
    assert dataset.read_table(path).equals(files)
