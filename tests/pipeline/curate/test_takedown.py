"""Takedown means gone: in every order of events, and wherever a purge is interrupted."""

import itertools
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

import pipeline.mine.driver
from pipeline import storage
from pipeline.curate.takedown import take_down
from pipeline.curate.verify import verify_dataset
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import NO_GENERATION, TakenDown
from pipeline.errors import ConfigError
from support.builds import build_inline, config_of, sidecar_rows
from support.crashes import crash_purge
from support.damage import rewrite_generation
from support.mined_world import BUDGET, World, at, ledger_rows, mine_inline
from support.processes import call_infineg
from support.takedowns import EVENTS, Inputs, Life, Picture, make_inputs, picture_of, traces_of


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


# Each ends with a build and a purge of what is still to be purged.
ORDERS = {
    "plain": "build, purge selected",
    "purge later": "build, take down selected, purge selected",
    "a neighbour before": "build, take down neighbour, purge selected, purge neighbour",
    "a neighbour purged in between": (
        "build, take down passed over, take down selected, purge neighbour, purge selected, "
        "purge passed over"
    ),
    "drawn anew before": "build, reweigh, build, purge selected",
    "source dropped before": "build, drop, build, purge selected",
    "mirror killed, then taken down": (
        "build, mirror, kill at ledger, take down selected, build, purge selected"
    ),
    "mirror killed, then purged": "build, mirror, kill at ledger, purge selected, build",
    "killed in its first build": "kill at ledger, purge selected, build",
    "killed while packing": "build, mirror, kill at sidecar, purge suspect, build",
    "killed before its commit": "kill at generation, purge selected, build",
    "dropped while open": "build, mirror, kill at ledger, drop, purge selected, build",
    "known of a killed build only": "kill at ledger, take down selected, purge selected, build all",
    "added again": "build, purge selected, drop, build, add, build",
    "dropped from the review": "build, review, mirror, build, purge suspect",
    "dropped from the review while open": "build, mirror, kill at ledger, review, build",
    "a positive": "build, purge positive, mirror, build, review",
    "a positive before its build": "kill at ledger, purge positive, build",
}


@pytest.mark.parametrize("name", ORDERS)
def test_what_is_taken_down_is_gone_in_this_order(
    inputs: Inputs, tmp_path: Path, name: str
) -> None:
    life = Life(tmp_path / "data", inputs)
    for text in ORDERS[name].split(", "):
        event = max((each for each in EVENTS if text.startswith(each)), key=len)
        victim = text.removeprefix(event).strip() or "selected"
        life.happen(event, inputs.victims[victim])
        life.check()
    assert life.refused, "nothing was taken down"


@pytest.mark.parametrize("seed", range(2))
def test_what_is_taken_down_is_gone_in_any_order(inputs: Inputs, tmp_path: Path, seed: int) -> None:
    live_through_anything(Life(tmp_path / "data", inputs), seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_what_is_taken_down_is_gone_in_a_hundred_orders(inputs: Inputs, tmp_path: Path) -> None:
    for seed in range(100, 200):
        live_through_anything(Life(tmp_path / f"data-{seed}", inputs), seed)


def live_through_anything(life: Life, seed: int) -> None:
    draw = random.Random(seed)
    victims = list(life.inputs.victims.values())
    happened = []
    for event in [*(draw.choice(EVENTS) for _ in range(6)), "purge", "build all", "purge"]:
        victim = draw.choice(victims)
        happened.append(f"{event} {victim.key}")
        life.happen(event, victim)
        try:
            life.check()
        except AssertionError as error:
            raise AssertionError(f"after {', '.join(happened)}: {error}") from error


def test_the_order_of_takedown_and_build_does_not_show(inputs: Inputs, tmp_path: Path) -> None:
    """Refused when its part is packed or when it is read: the same row, and the same decisions."""
    picture = inputs.victims["selected"]
    tables = []
    for moment in ("ledger", "data of a part"):  # with the same plan
        life = Life(tmp_path / moment, inputs)
        for event in ("build", "mirror", f"kill at {moment}", "purge", "build"):
            life.happen(event, picture)
        tables.append(ledger_rows(life.root, Dataset(str(life.root)).read_generation()))
    columns = ["key", "selected", "reject_reason", "content_hash", "perceptual_hash"]
    first, second = (rows.select(columns) for rows in tables)
    assert first.to_pylist() == second.to_pylist()
    packed, read = (rows.filter(rows["content_hash"].is_null()).to_pylist() for rows in tables)
    assert packed == read
    assert [row["source"] for row in read] == ["first", "mirror"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_a_purge_that_dies_at_any_change_is_finished_by_the_next(
    inputs: Inputs, tmp_path: Path, every: int
) -> None:
    life = Life(tmp_path / "before", inputs)
    for event in ("build", "review", "mirror", "kill at sidecar"):
        life.happen(event, inputs.victims["selected"])
    victims = [inputs.victims[name] for name in ("selected", "positive")]
    wanted = TakenDown(keys=frozenset(each.key for each in victims))
    assert all(traces_of(life.root, each) for each in victims)
    write_run(tmp_path / "before-run", life.root, victims)
    for number in itertools.count(1, every):
        root, run = tmp_path / "data", tmp_path / "run"
        for folder, source in ((root, life.root), (run, tmp_path / "before-run")):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(source, folder)
        died = crash_purge(root, wanted, runs=[str(run)], number=number)
        take_down(str(root), wanted, purge=True, runs=[str(run)])
        assert traces_of(root, *victims) == traces_of(run, *victims) == [], number
        for picture in victims:
            assert f'alt="{picture.key}"' not in (run / "report.html").read_text()
            assert picture.key not in pq.read_table(run / "predictions.parquet")["key"].to_pylist()
        assert verify_dataset(str(root)).problems == []
        if not died:
            break
    assert number > 20
    build_inline(inputs.config(root, life.sources))
    assert traces_of(root, *victims) == []
    assert verify_dataset(str(root)).problems == []


def write_run(run: Path, root: Path, pictures: Sequence[Picture]) -> None:
    """As a training leaves it that has copied the shards into a cache of its own."""
    copies = run / "cache/copies"
    copies.mkdir(parents=True)
    for shard in Dataset(str(root)).read_generation().shards:
        shutil.copy(root / shard.path, copies / f"{shard.sha256[:32]}.tar")
    config = {"train": {"cache_dir": str(run.parent / "run/cache")}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    images = (f'<img src="data:x" alt="{each.key}" title="">' for each in pictures)
    (run / "report.html").write_text("".join(images))
    pq.write_table(pa.table({"key": [each.key for each in pictures]}), run / "predictions.parquet")


@pytest.fixture
def built(inputs: Inputs, tmp_path: Path) -> Life:
    life = Life(tmp_path / "data", inputs)
    life.happen("build", inputs.victims["selected"])
    return life


def test_verify_finds_what_is_taken_down_in_a_shard_and_in_a_ledger(built: Life) -> None:
    picture = built.inputs.victims["selected"]
    generation = Dataset(str(built.root)).read_generation()
    listed = TakenDown(content_hashes=frozenset([picture.content_hash]))
    rewrite_generation(built.root, generation.model_copy(update={"taken_down": listed}))
    problems = verify_dataset(str(built.root)).problems
    (shard,) = [
        each.path
        for each in generation.shards
        if picture.key in Dataset(str(built.root)).read_sidecar(each)["key"].to_pylist()
    ]
    assert problems == [
        f"{picture.key}: was taken down, is in {shard}",
        f"{picture.key}: was taken down, is not refused in ledger/first-000001.parquet",
    ]
    take_down(str(built.root), TakenDown(keys=frozenset([picture.key])))
    assert verify_dataset(str(built.root)).problems == []


def test_of_a_row_that_is_taken_down_only_its_place_is_left(built: Life) -> None:
    picture = built.inputs.victims["selected"]
    take_down(str(built.root), TakenDown(keys=frozenset([picture.key])))
    generation = Dataset(str(built.root)).read_generation()
    (row,) = [
        row for row in ledger_rows(built.root, generation).to_pylist() if row["key"] == picture.key
    ]
    left = {name for name, value in row.items() if value is not None}
    assert left == {
        "key", "source", "partition", "ordinal", "split", "label", "label_state", "selected",
        "reject_reason",
    }  # fmt: skip
    assert (row["selected"], row["reject_reason"]) == (False, "taken_down")


def test_the_bank_is_made_anew_without_a_positive(built: Life) -> None:
    picture = built.inputs.victims["positive"]
    dataset = Dataset(str(built.root))
    before = dataset.read_table("reference.parquet")
    take_down(str(built.root), TakenDown(uris=frozenset([picture.uri])), purge=True)
    after = dataset.read_table("reference.parquet")
    is_it = pc.equal(before["content_hash"], picture.content_hash)
    assert after.equals(before.filter(pc.invert(is_it)))
    info = dataset.read_reference()
    assert info is not None
    assert info.num_positives == before.num_rows - 1
    built.happen("mirror", picture)
    built.happen("build", picture)
    assert dataset.read_reference() == info


def test_embeddings_of_what_is_taken_down_are_neither_made_nor_taken_over(
    built: Life, tmp_path: Path
) -> None:
    """By a data set that reads the embeddings of another one, whichever of them has the list."""
    picture = built.inputs.victims["selected"]
    taken = TakenDown(keys=frozenset([picture.key]))
    other = Life(tmp_path / "other", built.inputs)
    other.happen("kill at ledger", picture)
    shutil.rmtree(other.root / "parts")
    shutil.rmtree(other.root / "ledger", ignore_errors=True)
    config = other.config.model_copy(
        update={"build": other.config.build.model_copy(update={"embeddings_from": str(built.root)})}
    )
    empty = NO_GENERATION.model_copy(update={"number": 1, "taken_down": taken})
    shutil.rmtree(other.root / "embeddings")
    Dataset(str(other.root)).commit_generation(empty)
    build_inline(config)
    assert traces_of(other.root, picture) == []
    assert verify_dataset(str(other.root)).problems == []
    # The other way round: purged there, not listed here.
    take_down(str(built.root), taken, purge=True)
    first = built.inputs.entries["first"]
    third = config_of(tmp_path / "third", [first], build={"embeddings_from": str(built.root)})
    generation = build_inline(third)
    assert generation.counts.rejected == {"taken_down": 1}
    assert verify_dataset(str(tmp_path / "third")).problems == []


def test_purge_without_names_purges_all_that_was_ever_taken_down(
    built: Life, capsys: pytest.CaptureFixture[str]
) -> None:
    victims = [built.inputs.victims[name] for name in ("selected", "passed over")]
    with pytest.raises(ConfigError, match="nothing is named, and nothing was taken down before"):
        take_down(str(built.root), TakenDown(), purge=True)
    for victim in victims:
        take_down(str(built.root), TakenDown(keys=frozenset([victim.key])))
        assert traces_of(built.root, victim)
    code, output, _ = call_infineg(capsys, "takedown", built.root, "--purge")
    assert code == 0
    assert "removed from embeddings/first/000001/" in output
    assert "removed ledger/first-000001.parquet" in output
    assert "not reached: the sources" in output
    assert traces_of(built.root, *victims) == []
    assert call_infineg(capsys, "takedown", built.root, "--run", "x", "--key", "y")[0] == 2


def test_what_a_killed_build_left_is_judged_by_what_is_in_it(built: Life) -> None:
    """A tar without a sidecar, one with that of other samples, and one that cannot be read."""
    picture = built.inputs.victims["selected"]
    shards = Dataset(str(built.root)).read_generation().shards
    tars = {each: (built.root / each.path).read_bytes() for each in shards}
    assert picture.stored is not None
    holds = next(each for each, tar in tars.items() if picture.stored in tar)
    other = next(each for each in shards if each != holds)
    folder = built.root / "shards/train"
    (folder / "first-000097.tar").write_bytes(tars[holds])
    (folder / "first-000098.tar").write_bytes(tars[holds])
    shutil.copy(built.root / other.sidecar_path, folder / "first-000098.parquet")
    (folder / "first-000099.tar").write_bytes(tars[holds][: len(tars[holds]) // 2])
    (folder / "first-000096.tar").write_bytes(tars[other])
    take_down(str(built.root), TakenDown(keys=frozenset([picture.key])), purge=True)
    assert traces_of(built.root, picture) == []
    assert (folder / "first-000096.tar").exists(), "it is not what a purge is about"


def test_verdicts_that_are_not_applied_yet_are_forgotten(built: Life) -> None:
    from pipeline.curate.review.session import ReviewSession

    session = ReviewSession(str(built.root), "cat")
    suspect = built.inputs.victims["suspect"]
    others = [key for key in session._snapshot.suspects.position if key != suspect.key]
    session.decide({suspect.key: "negative", others[0]: "positive"})
    take_down(str(built.root), TakenDown(keys=frozenset([suspect.key])), purge=True)
    assert traces_of(built.root, suspect) == []
    assert (built.root / "reviews/cat.csv").read_text().count("positive") == 1


def test_a_run_and_the_caches_lose_what_they_hold(
    world: World, world_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = Path(shutil.copytree(world.run, tmp_path / "run"))
    page = (run / "report.html").read_text()
    predictions = pq.read_table(run / "predictions.parquet")
    generation = Dataset(str(world_copy)).read_generation()
    rows = ledger_rows(world_copy, generation).to_pylist()
    tested = next(
        row for row in rows
        if row["split"] == "test" and row["selected"] and f'alt="{row["key"]}"' in page
    )  # fmt: skip
    near = next(
        row for row in rows
        if row["split"] == "train" and row["selected"] and f'alt="{row["key"]}"' in page
    )  # fmt: skip
    pictures = [picture_of(world_copy, row) for row in (tested, near)]
    copies = tmp_path / "cache/infineg/copies"
    copies.mkdir(parents=True)
    views = tmp_path / "cache/infineg/views"
    views.mkdir()
    for shard in generation.shards:
        for name in (f"{shard.sha256[:32]}.tar", f".part-{shard.sha256[:32]}.tar"):
            shutil.copy(world_copy / shard.path, copies / name)
        (copies / f"{shard.sidecar_sha256[:32]}.f16").write_bytes(
            b"".join(each.embedding for each in pictures)
        )
        (views / f"{shard.sha256[:32]}-0.npy").touch()
    (views / f"{'0' * 32}.npy").touch()  # of version 0.2, of any shard
    before = sorted(path.name for path in (tmp_path / "cache").rglob("*"))
    wanted = TakenDown(keys=frozenset(each.key for each in pictures))
    said: list[str] = []
    take_down(str(world_copy), wanted, purge=True, runs=[str(run)], tell=said.append)
    after = sorted(path.name for path in (tmp_path / "cache").rglob("*"))
    assert len(before) - len(after) == 4 * 2 + 1, "of two shards"
    for picture in pictures:
        for folder in (world_copy, run, tmp_path / "cache"):
            assert [x for x in traces_of(folder, picture) if "embedding" not in x] == []
    left = (run / "report.html").read_text()
    assert page.count("<img") - left.count("<img") >= 2
    for picture in pictures:
        assert f'alt="{picture.key}"' not in left
    kept = pq.read_table(run / "predictions.parquet")
    assert predictions.num_rows - kept.num_rows == 2
    assert f"removed from {run}/report.html" in said
    assert any(f"not reached: the weights in {run}" in line for line in said)
    with pytest.raises(ConfigError, match="no run there"):
        take_down(str(world_copy), wanted, purge=True, runs=[str(tmp_path)])


def test_what_an_interrupted_mining_holds_is_gone(
    world: World, world_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = at(world.config, world_copy)

    class Killed(Exception):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.mine.driver, "pack_generation", die)
        with pytest.raises(Killed):
            mine_inline(config, world.scorer, budget=BUDGET)
    (images, *_) = sorted(world_copy.glob("mining/*/images/*/*/*.parquet"))
    row = pq.read_table(images).to_pylist()[0]
    picture = picture_of(world_copy, row)
    assert any(trace.startswith("mining/") for trace in traces_of(world_copy, picture))
    take_down(str(world_copy), TakenDown(keys=frozenset([row["key"]])), purge=True)
    assert traces_of(world_copy, picture) == []
    mined = mine_inline(config, world.scorer, budget=BUDGET)
    assert mined.is_new
    assert traces_of(world_copy, picture) == []
    assert verify_dataset(str(world_copy)).problems == []
    assert row["key"] not in sidecar_rows(world_copy)["key"].to_pylist()


def test_a_takedown_does_not_cost_the_kept_embeddings(
    world: World, mined_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mining reads those that are kept, although the ledger no longer has the picture's hash."""
    row = next(r for r in sidecar_rows(mined_copy).to_pylist() if r["source"] == "drawn")
    take_down(str(mined_copy), TakenDown(keys=frozenset([row["key"]])))
    monkeypatch.setattr(pipeline.mine.driver, "_prepare_encoder", lambda _: pytest.fail("embeds"))
    mine_inline(at(world.config, mined_copy), world.scorer, budget=BUDGET)
    assert verify_dataset(str(mined_copy)).problems == []


@pytest.mark.timeout(180)
def test_purge_on_s3_tells_of_what_a_bucket_may_keep(inputs: Inputs, s3_root: str) -> None:
    build_inline(inputs.config(s3_root, ["first", "strays"]))
    picture = inputs.victims["selected"]
    said: list[str] = []
    take_down(s3_root, TakenDown(keys=frozenset([picture.key])), purge=True, tell=said.append)
    assert any("older versions of objects" in line for line in said)
    for name in storage.list_files(s3_root, (".tar",)):
        assert picture.stored is not None
        assert picture.stored not in storage.read_bytes(f"{s3_root}/{name}")
    assert verify_dataset(s3_root).problems == []
