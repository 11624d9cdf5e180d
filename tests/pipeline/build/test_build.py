"""What a build promises, on data sets that Ray built from drawings and from damaged files."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from pipeline import storage
from pipeline.curate.verify import verify_dataset
from pipeline.dataset import Dataset
from pipeline.dataset.keys import unit_hash
from pipeline.dataset.metadata import add_counts
from pipeline.dataset.shards import count_rows
from support.builds import (
    CATS,
    NUM_STRAY_CATS,
    Built,
    built_inline,
    first_samples,
    sidecar_rows,
    squares,
)
from support.corpus import odd_but_usable, unusable


def ledger_of(built: Built, name: str) -> list[dict[str, Any]]:
    source = next(s for s in built.generation.sources if s.name == name)
    (ledger,) = source.ledger
    rows: list[dict[str, Any]] = Dataset(str(built.root)).read_table(ledger.path).to_pylist()
    return rows


def test_built_dataset_is_verified(built: Built) -> None:
    result = verify_dataset(str(built.root))
    assert result.problems == []
    assert result.num_rows == built.generation.counts.read


def test_images_kept_smaller_than_the_encoder_wants_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    built_inline(tmp_path / "data", [squares(num_pictures=40)])
    assert "keeps 64 px of the shorter side, which are enlarged to the 67 px" in caplog.text
    assert "Set output.image_size to 67" in caplog.text
    caplog.clear()
    output = {"image_size": 67}
    built_inline(tmp_path / "larger", [squares(num_pictures=40)], output=output)
    assert "output.image_size" not in caplog.text


def test_counts_add_up_in_ledgers_sources_shards_and_generation(built: Built) -> None:
    generation = built.generation
    for source in generation.sources:
        (ledger,) = source.ledger
        rows = Dataset(str(built.root)).read_table(ledger.path)
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
        "cats": 48, "squares": 1200, "drawn": 160, "odd": num_odd, "strays": 2 * NUM_STRAY_CATS,
    }  # fmt: skip


def test_every_damaged_file_is_rejected_for_its_reason_and_every_odd_one_used(built: Built) -> None:
    by_name = {Path(row["uri"]).stem: row for row in ledger_of(built, "odd")}
    for name, (_, reason) in unusable().items():
        assert by_name[name]["reject_reason"] == reason, name
    for name in odd_but_usable():
        # All show one picture, so that those that fall into training look like one of evaluation.
        assert by_name[name]["reject_reason"] in (None, "in_eval_set", "duplicate"), name
    expected = Counter(reason for _, reason in unusable().values())
    expected["conflicting_labels"] = 1
    source = next(s for s in built.generation.sources if s.name == "odd")
    bad = {r: n for r, n in source.counts.rejected.items() if r not in ("in_eval_set", "duplicate")}
    assert bad == dict(expected)


def test_one_picture_in_many_encodings_is_on_one_side_of_the_split(built: Built) -> None:
    rows = [r for r in ledger_of(built, "odd") if Path(r["uri"]).stem in odd_but_usable()]
    assert len({row["content_hash"] for row in rows}) == len(rows), "no two are the same bytes"
    assert {row["split"] for row in rows} > {"train"}, "some fall into evaluation"
    assert len({row["split"] for row in rows if row["selected"]}) == 1
    assert {row["reject_reason"] for row in rows if row["split"] == "train"} == {"in_eval_set"}


def test_shards_hold_one_source_split_and_label_at_most_so_many_samples(built: Built) -> None:
    for shard in built.generation.shards:
        rows = Dataset(str(built.root)).read_sidecar(shard)
        for column, value in (
            ("source", shard.source), ("split", shard.split), ("label", shard.label),
        ):  # fmt: skip
            assert set(rows[column].to_pylist()) == {value}
        places = list(zip(rows["partition"].to_pylist(), rows["ordinal"].to_pylist(), strict=True))
        assert places == sorted(places)
        assert 0 < shard.num_samples <= built.config.output.samples_per_shard


def test_inclusion_probability_follows_from_plan_and_similarity_or_is_1(built: Built) -> None:
    rows = sidecar_rows(built.root)
    reference = Dataset(str(built.root)).read_reference()
    selection = built.config.selection
    seen = Counter[str]()
    for row in rows.drop_columns(["embedding"]).to_pylist():
        plan = Dataset(str(built.root)).read_plan(row["source"])
        weight = pc.exp(selection.beta * (row["similarity"] - reference.median)).as_py()
        if row["label"]:
            kind, expected = "positive", 1.0
        elif row["split"] == "train":
            kind, expected = "train", min(max(plan.scale * weight, plan.min_probability), 1.0)
            if row["inclusion_probability"] == 1:
                kind, expected = "hardest", 1.0
        else:
            kind, expected = "eval", plan.eval_probability
        seen[kind] += 1
        assert row["inclusion_probability"] == pytest.approx(expected, rel=1e-6), row["key"]
        assert unit_hash(selection.seed, row["content_hash"]) < row["inclusion_probability"]
    assert min(seen[kind] for kind in ("positive", "train", "hardest", "eval")) >= 20, seen
    is_train = pc.and_(pc.equal(rows["split"], "train"), pc.equal(rows["label"], ""))
    assert len(pc.unique(rows.filter(is_train)["inclusion_probability"])) > 20


def test_the_very_bytes_of_a_positive_are_no_negative(built: Built) -> None:
    positive = next(r for r in ledger_of(built, "cats") if r["ordinal"] == 0)
    again = [r for r in ledger_of(built, "odd") if r["content_hash"] == positive["content_hash"]]
    assert [(r["reject_reason"], r["selected"]) for r in again] == [("conflicting_labels", False)]
    image = first_samples(CATS, 1)[0].image
    holders = {
        shard.source
        for shard in built.generation.shards
        if image in storage.read_bytes(storage.join(str(built.root), shard.path))
    }
    assert holders == {"cats"}


def test_unlabelled_lookalikes_are_in_quarantine_with_their_image_and_in_no_shard(
    built: Built,
) -> None:
    reference = Dataset(str(built.root)).read_reference()
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
        sidecar = Dataset(str(built.root)).read_table(file.sidecar_path)
        columns = (sidecar[name].to_pylist() for name in ("key", "tar_offset", "tar_size"))
        for key, offset, size in zip(*columns, strict=True):
            found[key] = tar[offset : offset + size]
    assert found == {key: path.read_bytes() for key, path in suspects.items()}


def test_nothing_but_the_dataset_is_left(built: Built) -> None:
    tops = {name.partition("/")[0] for name in storage.list_files(str(built.root))}
    assert tops == {
        "_info.json", "dataset.json", "embeddings", "generations", "hashes", "ledger", "plans",
        "quarantine", "reference.json", "reference.parquet", "shards",
    }  # fmt: skip
