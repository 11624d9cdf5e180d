"""The config files that users start from, each run on stand-ins of the same formats."""

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli.commands import app
from pipeline.config.loading import load_config
from pipeline.config.schema import Config
from pipeline.curate.verify import verify_dataset
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import Generation
from support.builds import build_inline, file_hashes, sidecar_rows
from support.inputs import (
    CAT_WNIDS,
    TIGER_MID,
    TIGER_WNID,
    things,
    write_cats_and_dogs,
    write_crawl,
    write_folder,
    write_hub_file,
    write_ilsvrc_train,
    write_open_images,
    write_photos,
)
from support.servers import S3Server
from train.config import load_train_config

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
PUBLIC_BUCKET = "open-images-dataset"


def load_small(name: str, *overrides: str, **variables: object) -> Config:
    """The very file, with all that decides how long it takes made small."""
    path = ROOT / "configs" / f"{name}.yaml"
    named = [f"variables.{key}={value}" for key, value in variables.items()]
    # The encoder that the file means, whose weights know a drawn cat from a thing.
    encoder = ["encoder.image_size=96", "encoder.batch_size=16", "encoder.runtime=torch"]
    of_generators = [
        f"sources.{source.name}.params.{field}"
        for field in ("pictures_per_partition=16", "image_size=64")
        for source in load_config(path, named).sources
        if "path" not in source.params and "urls" not in source.params
    ]
    sizes = ["selection.pilot=20", "output.image_size=64", "output.samples_per_shard=500"]
    return load_config(path, [*named, *encoder, *of_generators, *sizes, *overrides])


def build_and_verify(config: Config) -> Generation:
    generation = build_inline(config)
    assert verify_dataset(config.output.path).problems == []
    selected = {source.name: source.counts.selected for source in generation.sources}
    assert selected.keys() == {entry.name for entry in config.entries}
    assert min(selected.values()) > 0, generation.sources
    return generation


def rows_of(config: Config, source: str) -> list[dict[str, Any]]:
    columns = ["source", "label", "class_name", "stratum", "label_state", "author"]
    rows = sidecar_rows(config.output.path).select(columns).to_pylist()
    return [row for row in rows if row["source"] == source]


def quarantined(config: Config, generation: Generation) -> Counter[str]:
    return Counter(
        name
        for file in generation.quarantine
        for name in Dataset(config.output.path).read_table(file.sidecar_path)["source"].to_pylist()
    )


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values for the variables that a user has to set; nothing lies there yet."""
    for name in ("PHOTOS", "INBOX", "IMAGENET", "LABELS", "OUT"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    # Joined labels are kept there.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_whole_and_opens_with_its_command_time_and_yield(path: Path) -> None:
    config, train_config, _ = load_train_config(path)
    assert config.sources
    assert train_config.run
    head = " ".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    for pattern in (r"infineg build", r"\d (minutes|hours|s)\b", "Yields", r"measured|2 CPU cores"):
        assert re.search(pattern, head), f"{path.name}: its opening comment lacks {pattern!r}"


def test_photos(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    config = load_small("photos", "selection.budget=100", OUT=tmp_path / "data")
    build_and_verify(config)
    assert len(rows_of(config, "cats")) == 40
    wnids = {row["class_name"] for row in rows_of(config, "imagenet")}
    assert TIGER_WNID in wnids
    assert wnids.isdisjoint(CAT_WNIDS)
    assert {row["stratum"] for row in rows_of(config, "near")} == {"near"}
    assert {row["stratum"] for row in rows_of(config, "random")} == {"far"}
    assert {row["stratum"] for row in rows_of(config, "screens")} == {"generated"}


@pytest.fixture
def buckets(tmp_path: Path, s3_server: S3Server, s3_root: str) -> str:
    """ImageNet and labels below a folder of one's own, Open Images in the public bucket."""
    folder = tmp_path / "upload"
    folder.mkdir()
    write_ilsvrc_train(folder)
    write_open_images(folder / "tar", folder / "labels")
    client = s3_server.client()
    client.create_bucket(Bucket=PUBLIC_BUCKET)
    bucket, _, prefix = s3_root.removeprefix("s3://").partition("/")
    for file in folder.rglob("*.*"):
        name = str(file.relative_to(folder))
        if name.startswith("tar/"):
            client.upload_file(str(file), PUBLIC_BUCKET, name, ExtraArgs={"ACL": "public-read"})
        else:
            client.upload_file(str(file), bucket, f"{prefix}/{name}")
    return s3_root


def test_object_storage(buckets: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # only the config says where
    endpoints = [
        f"storage.{prefix}.endpoint_url={s3_server.endpoint_url}"
        for prefix in ("s3://", f"s3://{PUBLIC_BUCKET}")
    ]
    config = load_small(
        "object_storage",
        *("selection.budget=100", "selection.candidates_per_selected=2"),
        *endpoints,
        IMAGENET=buckets,
        LABELS=f"{buckets}/labels",
        OUT=f"{buckets}/cats",
    )
    generation = build_and_verify(config)

    cats = rows_of(config, "imagenet_cats")
    assert Counter(row["class_name"] for row in cats) == dict.fromkeys(CAT_WNIDS, 8)
    assert {row["label"] for row in cats} == {"cat"}
    negatives = rows_of(config, "imagenet")
    assert {row["stratum"] for row in negatives if row["class_name"] == TIGER_WNID} == {"near"}
    assert {row["class_name"] for row in negatives}.isdisjoint(CAT_WNIDS)

    of_open_images = rows_of(config, "open_images")
    assert sum(row["label"] == "cat" for row in of_open_images) == 16, "one verified a tar"
    tigers = [row for row in of_open_images if row["class_name"] == TIGER_MID]
    assert {(row["label"], row["stratum"], row["label_state"]) for row in tigers} == {
        ("", "near", "verified_absent")
    }
    assert {row["author"] for row in of_open_images} == {'Ada "A", L.'}
    assert quarantined(config, generation)["open_images"] >= 16, "one suspected a tar"

    output = CliRunner().invoke(app, ["status", config.output.path, "--json"])
    assert json.loads(output.stdout)["sources"]["open_images"]["read"] == 16 * 6


def test_hub(tmp_path: Path) -> None:
    write_cats_and_dogs(tmp_path / "cats_vs_dogs")
    write_hub_file(
        tmp_path / "food101",
        things(30, seed=8),
        [n % 3 for n in range(30)],
        names=["apple_pie", "baby_back_ribs", "baklava"],
    )
    write_crawl(tmp_path / "crawl")
    config = load_small(
        "hub",
        "selection.budget=100",
        CATS_AND_DOGS=tmp_path / "cats_vs_dogs",
        DISHES=tmp_path / "food101",
        CRAWL=str(tmp_path / "crawl/cc3m-train-{0000..0001}.tar"),
        OUT=tmp_path / "data",
    )
    generation = build_and_verify(config)
    cats, dogs = rows_of(config, "cats"), rows_of(config, "dogs")
    assert [(row["label"], row["class_name"]) for row in cats] == [("cat", "cat")] * 40
    assert {(row["label"], row["class_name"]) for row in dogs} == {("", "dog")}
    assert {row["label_state"] for row in rows_of(config, "dishes")} == {"verified_absent"}
    suspects = quarantined(config, generation)
    assert suspects["crawl"] >= 16, "of 20 cats that nobody labelled"
    assert suspects.keys() <= {"crawl", "dogs"}, "the others are verified to show none"


def spoil(folder: Path) -> None:
    """Other files of the same names, sizes and times."""
    for path in folder.rglob("*.*"):
        stat = path.stat()
        path.write_bytes(bytes(stat.st_size))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_nightly(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos")
    config = load_small("nightly", "selection.budget.candidates=400", OUT=tmp_path / "data")
    *in_use, inbox, fractals = config.sources
    names = [entry.name for entry in (*config.positives, *in_use)]
    before = build_inline(config, only=names)
    files = file_hashes(tmp_path / "data", ("shards/", "ledger/", "quarantine/", "generations/"))

    write_folder(tmp_path / "inbox/2026_11", things(20, seed=9))
    for name in ("cats", "near", "random"):  # nothing of these is read again
        spoil(tmp_path / "photos" / name)
    after = build_and_verify(config)

    assert (before.number, after.number, after.parent) == (1, 2, 1)
    assert [source.name for source in after.sources] == [*names, inbox.name, fractals.name]
    assert after.sources[: len(names)] == before.sources
    assert after.shards[: len(before.shards)] == before.shards
    assert len(rows_of(config, inbox.name)) > 0
    fewer = build_inline(config.model_copy(update={"sources": (*in_use, fractals)}))
    assert [source.name for source in fewer.sources] == [*names, fractals.name]
    now = file_hashes(tmp_path / "data", ("shards/", "ledger/", "quarantine/", "generations/"))
    assert {name: now.get(name) for name in files} == files, "an old file is gone or changed"
