"""A build that was stopped for longer than its lease changes nothing of what another committed."""

import shutil
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.config.schema import Config
from pipeline.curate.takedown import take_down
from pipeline.curate.verify import verify_dataset
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import TakenDown
from support.builds import build_inline, config_of, file_hashes, squares
from support.kills import MOMENTS
from support.stops import stopped_build

ALL = ("",)  # the prefixes of all files
# Read by both builds anew, which choose other rows of it: they give the same names.
NUM_PICTURES = 150


def config_with(root: str, *, weight: float, seed: int = 0) -> Config:
    entry = squares("first", num_pictures=NUM_PICTURES, per_partition=50, seed=seed)
    return config_of(root, [{**entry, "weight": weight}], selection={"budget": 30, "pilot": 30})


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both builds begin with."""
    root = tmp_path_factory.mktemp("before") / "data"
    generation = build_inline(config_with(str(root), weight=1.0))
    # Of an interrupted run, with names that the next build or takedown gives.
    for folder, suffix in (("shards/train", "tar"), ("ledger", "parquet")):
        number = generation.next_numbers[f"{folder}/first"]
        name = f"{folder}/first-{number:06d}.{suffix}"
        assert not (root / name).exists()
        (root / name).write_bytes(b"left by an interrupted run")
    return root


def commit_meanwhile(root: str, *, is_takedown: bool) -> None:
    """Takes a sample down, or builds with other settings: both give names that the other gave."""
    if is_takedown:
        generation = Dataset(root).read_generation()
        shard = next(s for s in generation.shards if s.source == "first" and s.split == "train")
        key = Dataset(root).read_sidecar(shard, ["key"])["key"][0].as_py()
        take_down(root, TakenDown(keys=frozenset([key])))
    else:
        build_inline(config_with(root, weight=3.0, seed=9))


def whole_files(root: str) -> dict[str, str]:
    """Temporary files of the stopped build are swept by the next one."""
    return {n: h for n, h in file_hashes(root, ALL).items() if ".tmp-" not in n}


def check_stop(
    root: str, moment: str, log: Path, *, before: bool, is_takedown: bool | None = None
) -> None:
    if is_takedown is None:
        is_takedown = moment in ("generation", "removal", "sidecar")
    changed = config_with(root, weight=2.0, seed=5)
    with stopped_build(changed, moment, log, before=before) as stopped:
        commit_meanwhile(root, is_takedown=is_takedown)
        assert verify_dataset(root).problems == []
        committed = whole_files(root)
        error = stopped.go_on()
    assert "lease.json was lost" in error
    # On S3 the request that was to be sent is sent. What it writes has no name that is listed.
    assert committed.items() <= whole_files(root).items()
    assert verify_dataset(root).problems == []


@pytest.mark.timeout(240)
@pytest.mark.parametrize("moment", sorted(set(MOMENTS) - {"reference", "half a file"}))
def test_build_stopped_before_a_write_changes_nothing_committed(
    before: Path, moment: str, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(before, tmp_path / "data"))
    check_stop(str(root), moment, tmp_path / "log", before=True)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("moment", ["shard", "removal", "reference"])
def test_build_stopped_after_a_write_changes_nothing_committed(
    before: Path, moment: str, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    if moment != "reference":  # which is written once
        shutil.copytree(before, root)
    check_stop(str(root), moment, tmp_path / "log", before=False)


def copy_to_s3(folder: Path, root: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            uri = storage.join(root, path.relative_to(folder).as_posix())
            storage.write_atomic(uri, path.read_bytes())


ON_S3 = sorted(set(MOMENTS) - {"half a file", "reference"})


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "moment",
    [
        each if each in ("shard", "generation") else pytest.param(each, marks=pytest.mark.slow)
        for each in ON_S3
    ],
)
def test_build_on_s3_stopped_before_a_request_changes_nothing_committed(
    before: Path, s3_root: str, moment: str, tmp_path: Path
) -> None:
    copy_to_s3(before, s3_root)
    check_stop(s3_root, moment, tmp_path / "log", before=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("moment", ON_S3)
@pytest.mark.parametrize("is_takedown", [True, False])
def test_build_stopped_after_any_write(
    before: Path, moment: str, is_takedown: bool, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(before, tmp_path / "data"))
    check_stop(str(root), moment, tmp_path / "log", before=False, is_takedown=is_takedown)
