"""What a build promises, on data sets that Ray built from drawings and from damaged files."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from builds import (
    CATS,
    NUM_STRAY_CATS,
    build_inline,
    config_of,
    copy_dataset,
    file_hashes,
    first_samples,
    folder_entry,
    run_infineg,
    sidecar_rows,
    squares,
    write_config,
)
from conftest import Built
from corpus import encode, odd_but_usable, quadrants, unusable

from pipeline import manifest, storage
from pipeline.build import build
from pipeline.errors import ConfigError
from pipeline.records import add_counts, unit_hash
from pipeline.shards import count_rows
from pipeline.verify import verify_dataset

BUGGY_SOURCE = """
from pipeline.records import Partition, RawSample
from pipeline.sources.generated.squares import Params, toy


class Source:
    is_endless = False

    def __init__(self, params):
        pass

    def partitions(self):
        yield Partition("only", None)

    def read(self, partition):
        yield RawSample(uri="a", image=b"")
        1 / 0
"""
# Python imports this module in every process, the workers of Ray included.
PLUG_IN = "import pipeline.sources\npipeline.sources.__path__.append({folder!r})\n"


def ledger_of(built: Built, name: str) -> list[dict[str, Any]]:
    source = next(s for s in built.generation.sources if s.name == name)
    (ledger,) = source.ledger
    rows: list[dict[str, Any]] = manifest.read_table(str(built.root), ledger.path).to_pylist()
    return rows


def stamps(root: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every file: a file written anew has others, were its bytes the same."""
    found = ((path, path.stat()) for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): (stat.st_ino, stat.st_mtime_ns) for path, stat in found}


def test_built_dataset_is_verified(built: Built) -> None:
    result = verify_dataset(str(built.root))
    assert result.problems == []
    assert result.num_rows == built.generation.counts.read


def test_counts_add_up_in_ledgers_sources_shards_and_generation(built: Built) -> None:
    generation = built.generation
    for source in generation.sources:
        (ledger,) = source.ledger
        rows = manifest.read_table(str(built.root), ledger.path)
        counts = count_rows(rows)
        assert counts.adds_up()
        assert counts == source.counts
        assert ledger.num_rows == counts.read == rows.num_rows
        shards = [s for s in generation.shards if s.source == source.name]
        assert sum(s.num_samples for s in shards) == counts.selected
        suspects = [s for s in generation.quarantine if s.source == source.name]
        num_suspected = counts.rejected.get("suspected_positive", 0)
        assert sum(s.num_samples for s in suspects) == num_suspected
    assert generation.counts == add_counts(s.counts for s in generation.sources)
    reads = {s.name: s.counts.read for s in generation.sources}
    num_odd = len(odd_but_usable()) + len(unusable()) + 1
    assert reads == {
        "cats": 48, "squares": 2400, "drawn": 160, "odd": num_odd, "strays": 2 * NUM_STRAY_CATS,
    }  # fmt: skip


def test_every_damaged_file_is_rejected_for_its_reason_and_every_odd_one_used(built: Built) -> None:
    by_name = {Path(row["uri"]).stem: row for row in ledger_of(built, "odd")}
    for name, (_, reason) in unusable().items():
        assert by_name[name]["reject_reason"] == reason, name
    for name in odd_but_usable():
        assert by_name[name]["reject_reason"] is None, name
    expected = Counter(reason for _, reason in unusable().values())
    expected["conflicting_labels"] = 1
    source = next(s for s in built.generation.sources if s.name == "odd")
    assert source.counts.rejected == dict(expected)


def test_each_sample_is_seen_once_and_each_selected_key_is_in_one_shard(built: Built) -> None:
    rows = [row for s in built.generation.sources for row in ledger_of(built, s.name)]
    places = Counter((row["source"], row["partition"], row["ordinal"]) for row in rows)
    assert set(places.values()) == {1}
    packed = Counter(sidecar_rows(built.root)["key"].to_pylist())
    assert packed == Counter(row["key"] for row in rows if row["selected"])


def test_shards_hold_one_source_split_and_label_at_most_so_many_samples(built: Built) -> None:
    for shard in built.generation.shards:
        rows = manifest.read_sidecar(str(built.root), shard)
        for column, value in (
            ("source", shard.source), ("split", shard.split), ("label", shard.label),
        ):  # fmt: skip
            assert set(rows[column].to_pylist()) == {value}
        places = list(zip(rows["partition"].to_pylist(), rows["ordinal"].to_pylist(), strict=True))
        assert places == sorted(places)
        assert 0 < shard.num_samples <= built.config.output.samples_per_shard


def test_inclusion_probability_follows_from_plan_and_similarity(built: Built) -> None:
    rows = sidecar_rows(built.root)
    reference = manifest.read_reference_info(str(built.root))
    assert reference is not None
    selection = built.config.selection
    seen = Counter[str]()
    for row in rows.drop_columns(["embedding"]).to_pylist():
        plan = manifest.read_plan(str(built.root), row["source"])
        assert plan is not None
        weight = pc.exp(selection.beta * (row["similarity"] - reference.median)).as_py()
        if row["label"]:
            kind, expected = "positive", 1.0
        elif row["split"] == "train":
            kind, expected = "train", min(max(plan.scale * weight, selection.min_probability), 1.0)
        else:
            kind, expected = "eval", plan.eval_probability
        seen[kind] += 1
        assert row["inclusion_probability"] == pytest.approx(expected, rel=1e-6), row["key"]
        assert unit_hash(selection.seed, row["content_hash"]) < row["inclusion_probability"]
    assert min(seen["positive"], seen["train"], seen["eval"]) >= 20, seen
    is_train = pc.and_(pc.equal(rows["split"], "train"), pc.equal(rows["label"], ""))
    assert len(pc.unique(rows.filter(is_train)["inclusion_probability"])) > 20


def test_the_very_bytes_of_a_positive_are_no_negative(built: Built) -> None:
    positive = next(r for r in ledger_of(built, "cats") if r["ordinal"] == 0)
    again = [r for r in ledger_of(built, "odd") if r["content_hash"] == positive["content_hash"]]
    assert [(r["reject_reason"], r["selected"]) for r in again] == [("conflicting_labels", False)]
    images = {encode(quadrants()), first_samples(CATS, 1)[0].image}
    for shard in built.generation.shards:
        if shard.source == "odd":
            content = storage.read_bytes(storage.join(str(built.root), shard.path))
            assert not any(image in content for image in images - {encode(quadrants())})


def test_unlabelled_lookalikes_are_in_quarantine_with_their_image_and_in_no_shard(
    built: Built,
) -> None:
    reference = manifest.read_reference_info(str(built.root))
    assert reference is not None
    rows = ledger_of(built, "strays")
    for row in rows:
        is_suspected = row["reject_reason"] == "suspected_positive"
        assert is_suspected == (row["similarity"] > reference.ceiling), row["uri"]
    suspects = {r["key"]: Path(r["uri"]) for r in rows if r["reject_reason"]}
    cats = [r for r in rows if int(Path(r["uri"]).stem) < NUM_STRAY_CATS]
    assert sum(r["key"] in suspects for r in cats) >= NUM_STRAY_CATS - 2
    assert not suspects.keys() & set(sidecar_rows(built.root)["key"].to_pylist())
    found = {}
    for file in built.generation.quarantine:
        assert file.source == "strays", "the others are verified to show no cat"
        tar = storage.read_bytes(storage.join(str(built.root), file.path))
        sidecar = manifest.read_table(str(built.root), file.sidecar_path)
        columns = (sidecar[name].to_pylist() for name in ("key", "tar_offset", "tar_size"))
        for key, offset, size in zip(*columns, strict=True):
            found[key] = tar[offset : offset + size]
    assert found == {key: path.read_bytes() for key, path in suspects.items()}


def test_nothing_but_the_dataset_is_left(built: Built) -> None:
    tops = {name.partition("/")[0] for name in storage.list_files(str(built.root))}
    assert tops == {
        "_info.json", "dataset.json", "generations", "ledger", "plans", "quarantine",
        "reference.json", "reference.parquet", "shards",
    }  # fmt: skip


def test_bytes_depend_neither_on_ray_nor_on_the_order_of_tasks(
    built: Built, tmp_path: Path
) -> None:
    build_inline(config_of(tmp_path / "data", built.entries))
    assert file_hashes(tmp_path / "data") == file_hashes(built.root)


def test_sources_added_one_by_one_by_other_workers_give_the_same_bytes(
    built: Built, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    first, _ = build(config_of(root, built.entries[:2], build={"workers": 1}))
    then = stamps(root)
    config = config_of(root, built.entries, build={"workers": 4})
    second, is_new = build(config)
    assert (first.number, second.number, second.parent, is_new) == (1, 2, 1, True)
    files = ("shards/", "quarantine/", "ledger/")
    assert file_hashes(root, files) == file_hashes(built.root, files)
    derived = {"dataset.json", "_info.json"}
    kept = {name: stamp for name, stamp in stamps(root).items() if name in then}
    assert {n for n, stamp in kept.items() if stamp != then[n]} == derived
    assert kept.keys() == then.keys(), "an old file is gone"
    assert second.shards[: len(first.shards)] == first.shards
    assert manifest.read_generation(str(root), 1) == first
    assert second.counts == built.generation.counts
    assert verify_dataset(str(root)).problems == []


def test_second_build_does_nothing(built: Built, tmp_path: Path) -> None:
    before = stamps(built.root)
    path = write_config(tmp_path / "config.yaml", built.config)
    code, output = run_infineg("build", path, log=tmp_path / "log")
    assert code == 0, output
    assert "nothing to do" in output
    assert stamps(built.root) == before


def test_second_build_repairs_what_a_crash_after_the_commit_left_behind(
    built: Built, tmp_path: Path
) -> None:
    root = copy_dataset(built.root, tmp_path / "data")
    info = manifest.require_info(str(root))
    manifest.write_info(str(root), info.model_copy(update={"latest_generation": 0}))
    (root / "_info.json").unlink()
    _, is_new = build(config_of(root, built.entries))
    assert not is_new
    assert manifest.require_info(str(root)).latest_generation == 1
    assert verify_dataset(str(root)).problems == []


def test_changed_settings_are_refused_by_name(built: Built) -> None:
    with pytest.raises(ConfigError, match=r"selection: .*'seed': 0.*'seed': 1") as caught:
        build(config_of(built.root, built.entries, selection={"seed": 1}))
    assert "split:" not in str(caught.value), "only what has changed is named"
    assert "--set output.path=" in str(caught.value)


def test_changed_entry_is_refused_by_name(built: Built) -> None:
    changed = [{**built.entries[0], "weight": 2.0}, *built.entries[1:]]
    with pytest.raises(ConfigError, match=r"source 'squares' is already in .*old settings"):
        build(config_of(built.root, changed))


def test_other_encoder_weights_are_refused(built: Built, tmp_path: Path) -> None:
    root = copy_dataset(built.root, tmp_path / "data")
    info = manifest.require_info(str(root))
    manifest.write_info(str(root), info.model_copy(update={"encoder": "other:0123:last:64px"}))
    more = [*built.entries, squares("more", num_pictures=10, seed=3)]
    with pytest.raises(ConfigError, match=r"embedded by other:0123.*this would be timm/test_eff"):
        build(config_of(root, more))


@pytest.mark.timeout(120)
def test_a_bug_in_a_source_stops_the_run_with_a_traceback(tmp_path: Path) -> None:
    plug_ins = tmp_path / "plug_ins"
    plug_ins.mkdir()
    (plug_ins / "buggy.py").write_text(BUGGY_SOURCE)
    (plug_ins / "sitecustomize.py").write_text(PLUG_IN.format(folder=str(plug_ins)))
    buggy = squares("broken", num_pictures=1) | {"kind": "buggy"}
    config = config_of(tmp_path / "data", [buggy])
    path = write_config(tmp_path / "config.yaml", config)
    code, output = run_infineg("build", path, log=tmp_path / "log", PYTHONPATH=str(plug_ins))
    assert code == 1, output
    assert "Traceback" in output
    assert "ZeroDivisionError" in output
    assert "buggy.py" in output
    assert manifest.latest_generation_number(config.output.path) == 0


@pytest.mark.timeout(120)
def test_too_many_rejects_stop_the_run_and_a_raised_limit_resumes_it(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    good = [s.image for s in first_samples(squares(num_pictures=90), 90)]
    for number, image in enumerate([*good, *[b"no picture"] * 20, *[good[0][:300]] * 15]):
        (folder / f"{number:03d}.jpg").write_bytes(image)
    entry = folder_entry("scraped", folder, label_state="verified_absent")
    config = config_of(tmp_path / "data", [entry], selection={"pilot": 40})
    path = write_config(tmp_path / "config.yaml", config)
    code, output = run_infineg("build", path, log=tmp_path / "log")
    assert code == 3, output
    assert "Traceback" not in output
    assert re.search(
        r"source 'scraped', partition 000000-\w+: 35 of 125 samples rejected "
        r"\(unreadable 20, truncated 15\), limit 20%\. Example: .*/pictures/\d+\.jpg\.",
        output,
    ), output
    parts = manifest.read_part_records(config.output.path, "cats")
    assert len(parts) == 3, "what was good is committed"
    raised = {**entry, "max_reject_fraction": 0.3}
    generation = build_inline(config_of(tmp_path / "data", [raised], selection={"pilot": 40}))
    assert generation.sources[1].counts.rejected == {"truncated": 15, "unreadable": 20}
    assert verify_dataset(config.output.path).problems == []
