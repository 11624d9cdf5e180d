"""Every file of a data set is covered by a checksum: a flipped bit is found, and not used."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config.schema import Config
from pipeline.curate.takedown import take_down
from pipeline.curate.verify import verify_dataset
from pipeline.dataset import Dataset
from pipeline.dataset.dataset import generation_path
from pipeline.dataset.metadata import SourcePlan, TakenDown
from pipeline.dataset.records import encode_record
from pipeline.errors import InfinegError
from support.builds import Built, build_inline, config_of, copy_dataset, file_hashes, squares
from support.crashes import crash_build
from support.damage import flip


@pytest.fixture(scope="module")
def finished(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two generations."""
    root = copy_dataset(built.root, tmp_path_factory.mktemp("finished") / "data")
    shard = next(s for s in built.generation.shards if s.source == "drawn" and s.split == "train")
    key = Dataset(str(root)).read_sidecar(shard, ["key"])["key"][0].as_py()
    take_down(str(root), TakenDown(keys=frozenset([key])))
    assert verify_dataset(str(root)).problems == []
    assert verify_dataset(str(root)).unchecked == []
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return copy_dataset(finished, tmp_path / "data")


def findings(root: Path) -> str:
    """What `infineg verify` prints, besides that all is good."""
    try:
        return "\n".join(verify_dataset(str(root)).problems)
    except InfinegError as error:
        return str(error)


def one_of_each_kind(root: Path) -> Iterator[str]:
    """Paths of files of a data set: of those in a folder of shards or embeddings the last."""
    kinds: dict[tuple[str, str], str] = {}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            name = path.relative_to(root)
            is_one_of_many = name.parts[0] in ("shards", "embeddings")
            kind = str(name.parent) if is_one_of_many else str(name)
            kinds[kind, name.suffix] = str(name)
    yield from kinds.values()


@pytest.mark.timeout(240)
def test_flipped_bit_is_found_in_a_file_of_every_kind(root: Path) -> None:
    names = list(one_of_each_kind(root))
    folders = {name.split("/")[0] for name in names}
    assert folders >= {
        "dataset.json", "_info.json", "reference.json", "reference.parquet", "plans", "generations",
        "shards", "quarantine", "ledger", "hashes", "embeddings",
    }  # fmt: skip
    for number, name in enumerate(names):
        before = (root / name).read_bytes()
        flip(root / name, (0.01, 0.5, 1)[number % 3])
        assert name in findings(root), f"{name} is not named"
        (root / name).write_bytes(before)
    assert findings(root) == ""


@pytest.mark.parametrize("position", [0, 0.2, 0.5, 0.9, 0.97, 1])
@pytest.mark.parametrize(
    "name",
    ["dataset.json", "reference.json", "plans/squares.json", "generations/000001.json"],
)
def test_flipped_bit_in_a_record_is_found_wherever_it_is(
    root: Path, name: str, position: float
) -> None:
    flip(root / name, position)
    with pytest.raises(InfinegError, match=rf"{name}: (damaged|broken|not a )"):
        read_all_records(Dataset(str(root)))


def read_all_records(dataset: Dataset) -> None:
    dataset.read_info()
    dataset.read_reference()
    for number in (1, 2):
        dataset.read_generation(number)
    for path in sorted(Path(dataset.root).glob("plans/*.json")):
        dataset.read_plan(path.stem)


def build_more(root: Path, built: Built, *, seed: int = 3) -> None:
    """One more source."""
    more = squares("more", num_pictures=60, per_partition=60, seed=seed)
    build_inline(config_of(root, [*built.entries, more]))


@pytest.mark.parametrize(
    "name",
    ["dataset.json", "reference.json", "reference.parquet", "plans/squares.json", "hashes",
     "generations/000002.json"],
)  # fmt: skip
def test_build_refuses_what_is_damaged(root: Path, built: Built, name: str) -> None:
    path = root / name
    if path.is_dir():
        path = sorted(path.iterdir())[0]
    flip(path, 0.5)
    with pytest.raises(InfinegError, match=rf"{name}.*damaged"):
        build_more(root, built)
    assert Dataset(str(root)).read_if_there(generation_path(3)) is None


def test_swapped_plan_is_refused_and_found(root: Path, built: Built) -> None:
    plans = root / "plans"
    (plans / "squares.json").rename(plans / "was.json")
    (plans / "drawn.json").rename(plans / "squares.json")
    (plans / "was.json").rename(plans / "drawn.json")
    with pytest.raises(InfinegError, match=r"plans/squares\.json: the plan of 'drawn'"):
        build_more(root, built)
    assert "plans/squares.json: the plan of 'drawn'" in findings(root)


def test_plan_of_another_time_is_refused_and_found(root: Path, built: Built) -> None:
    path = root / "plans/squares.json"
    plan = Dataset(str(root)).read_plan("squares")
    assert plan is not None
    other = SourcePlan.model_validate(plan.model_dump() | {"scale": plan.scale / 2})
    path.write_bytes(encode_record(other))
    with pytest.raises(InfinegError, match=r"squares\.json: not the plan by which"):
        build_more(root, built)
    assert "plans/squares.json: not the plan by which" in findings(root)


def test_reference_of_another_bank_is_found(root: Path) -> None:
    dataset = Dataset(str(root))
    reference = dataset.read_reference()
    assert reference is not None
    dataset.write_reference(reference.model_copy(update={"bank_sha256": "0" * 64}))
    assert findings(root) == "reference.parquet: sha256 differs from the record"


def all_hashes(root: Path) -> dict[str, str]:
    return file_hashes(root, ("",))


@pytest.mark.parametrize("lost", [(2,), (1, 2)])
def test_lost_generation_stops_a_build_before_anything_is_removed(
    root: Path, built: Built, lost: tuple[int, ...]
) -> None:
    for number in lost:
        (root / generation_path(number)).unlink()
    before = all_hashes(root)
    with pytest.raises(InfinegError, match=r"generations/000002\.json is missing: dataset\.json"):
        build_more(root, built)
    assert all_hashes(root) == before
    with pytest.raises(InfinegError, match="Restore it from a copy"):
        take_down(str(root), TakenDown(keys=frozenset(["any"])))
    assert all_hashes(root) == before
    assert "generations/000002.json is missing" in findings(root)


def test_older_generation_of_a_backup_stops_a_build(
    root: Path, built: Built, tmp_path: Path
) -> None:
    # Another second generation: what was committed before the folder was restored once.
    other = copy_dataset(built.root, tmp_path / "other")
    build_more(other, built, seed=4)
    shutil.copy(other / generation_path(2), root / generation_path(2))
    before = all_hashes(root)
    with pytest.raises(InfinegError, match=r"000002\.json: not the generation that dataset\.json"):
        build_more(root, built)
    assert all_hashes(root) == before
    shutil.copy(built.root / "dataset.json", root / "dataset.json")
    assert findings(root), "its files are not there"


def test_earlier_generation_that_was_replaced_is_found(root: Path) -> None:
    dataset = Dataset(str(root))
    earlier = dataset.read_generation(1).model_copy(update={"quarantine": ()})
    (root / generation_path(1)).write_bytes(encode_record(earlier))
    message = "generations/000001.json: not the generation that the next one followed"
    assert findings(root) == message
    (root / generation_path(1)).unlink()
    assert findings(root) == "generations/000001.json: missing"


def test_lost_dataset_json_is_not_taken_for_a_new_data_set(root: Path, built: Built) -> None:
    (root / "dataset.json").unlink()
    before = all_hashes(root)
    with pytest.raises(InfinegError, match=r"dataset\.json is missing, but there are generations"):
        build_more(root, built)
    assert all_hashes(root) == before


def test_files_of_an_older_version_are_read_and_named(root: Path, built: Built) -> None:
    dataset = Dataset(str(root))
    for path in (root / "dataset.json", *(root / "plans").glob("*.json")):
        content = path.read_text().splitlines()
        path.write_text("\n".join([*content[:-3], content[-3].rstrip(","), "}"]) + "\n")
    for path in (root / "embeddings").glob("*/*.json"):
        path.unlink()
    result = verify_dataset(str(root))
    assert result.problems == []
    assert {"dataset.json", "plans/squares.json"} <= set(result.unchecked)
    assert any(name.startswith("embeddings/squares/") for name in result.unchecked)
    build_more(root, built)
    assert dataset.read_latest().number == 3


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with parts and no generation."""
    root = tmp_path_factory.mktemp("interrupted") / "data"
    assert crash_build(few_squares(root), "ledger", before=True)
    return root


def few_squares(root: Path, **build: object) -> Config:
    return config_of(root, [squares(num_pictures=100, per_partition=100)], build=build)


@pytest.mark.parametrize("suffix", [".parquet", ".json"])
@pytest.mark.parametrize("position", [0, 0.3, 0.5, 0.8, 1])
def test_damaged_part_is_not_packed(
    interrupted: Path, tmp_path: Path, suffix: str, position: float
) -> None:
    root = copy_dataset(interrupted, tmp_path / "data")
    path = sorted((root / "parts/squares").rglob(f"*{suffix}"))[0]
    flip(path, position)
    with pytest.raises(InfinegError, match=rf"{path.name}: (damaged|broken|not a )"):
        build_inline(few_squares(root))
    assert list((root / "generations").glob("*.json")) == []


def test_damaged_embeddings_are_not_used(interrupted: Path, tmp_path: Path) -> None:
    source = copy_dataset(interrupted, tmp_path / "source")
    build_inline(few_squares(source))
    again = few_squares(tmp_path / "again", embeddings_from=str(source))
    path = sorted((source / "embeddings/squares").rglob("*.parquet"))[0]
    flip(path, 0.5)
    with pytest.raises(InfinegError, match=rf"embeddings/squares/.*/{path.name}: damaged"):
        build_inline(again)
    flip(path, 0.5)
    assert build_inline(again).number == 1
