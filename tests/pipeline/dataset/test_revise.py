"""Takedowns and verdicts: new generations that leave every file as it was."""

import csv
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.curate.takedown import take_down
from pipeline.curate.verdicts import Verdict, apply_verdicts, read_verdicts
from pipeline.curate.verify import verify_dataset
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import Generation, TakenDown
from pipeline.errors import ConfigError
from support.builds import (
    Built,
    build_inline,
    config_of,
    copy_dataset,
    file_hashes,
    folder_entry,
    sidecar_rows,
)
from support.processes import call_infineg

FILES = ("shards/", "quarantine/", "ledger/", "hashes/", "generations/")


@pytest.fixture
def root(built: Built, tmp_path: Path) -> Path:
    return copy_dataset(built.root, tmp_path / "data")


def keys_of(root: Path, generation: Generation) -> set[str]:
    return set(sidecar_rows(root, generation)["key"].to_pylist())


def suspects_of(root: Path, generation: Generation) -> list[str]:
    tables = [Dataset(str(root)).read_table(f.sidecar_path) for f in generation.quarantine]
    return [key for table in tables for key in table["key"].to_pylist()]


def reasons_of(root: Path, generation: Generation) -> dict[str, str | None]:
    tables = [
        Dataset(str(root)).read_table(ledger.path, ["key", "reject_reason"])
        for source in generation.sources
        for ledger in source.ledger
    ]
    return {row["key"]: row["reject_reason"] for table in tables for row in table.to_pylist()}


def test_takedown_leaves_one_sample_out_and_every_file_as_it_was(built: Built, root: Path) -> None:
    before = file_hashes(root, FILES)
    key = sorted(keys_of(root, built.generation))[0]
    generation, number = take_down(str(root), TakenDown(keys=frozenset([key])))
    assert (generation.number, generation.parent, number) == (2, 1, 1)
    after = file_hashes(root, FILES)
    assert before.items() <= after.items()
    assert keys_of(root, generation) == keys_of(root, built.generation) - {key}
    assert reasons_of(root, generation)[key] == "taken_down"
    assert generation.counts.selected == built.generation.counts.selected - 1
    assert verify_dataset(str(root)).problems == []
    replaced = set(built.generation.shards) - set(generation.shards)
    assert len(replaced) == 1, "only the shard that held it is written anew"
    others = {row["key"]: row for row in sidecar_rows(root, generation).to_pylist()}
    for row in sidecar_rows(root, built.generation).to_pylist():
        if row["key"] != key:
            for name in ("tar_offset", "tar_size"):
                row.pop(name), others[row["key"]].pop(name)
            assert others[row["key"]] == row


def test_what_is_taken_down_is_refused_in_every_later_source(
    built: Built, root: Path, tmp_path: Path
) -> None:
    row = next(r for r in sidecar_rows(root).to_pylist() if r["source"] == "drawn")
    shard = next(
        s for s in built.generation.shards if s.path.startswith(f"shards/{row['split']}/drawn")
    )
    image = storage.read_range(str(root / shard.path), row["tar_offset"], row["tar_size"])
    again = tmp_path / "again"
    again.mkdir()
    (again / "other-name.jpg").write_bytes(image)
    take_down(str(root), TakenDown(uris=frozenset([row["uri"]])))
    more = folder_entry("again", again, label_state="verified_absent")
    generation = build_inline(config_of(root, [*built.entries, more]))
    counts = next(s.counts for s in generation.sources if s.name == "again")
    assert counts.rejected == {"taken_down": 1}
    assert generation.taken_down.uris == {row["uri"]}, "it is remembered"


def test_nothing_found_is_a_mistake_and_changes_nothing(root: Path) -> None:
    with pytest.raises(ConfigError, match="generation 1 has no such sample"):
        take_down(str(root), TakenDown(authors=frozenset(["nobody"])))
    assert Dataset(str(root)).latest_number() == 1


def test_verdicts_move_suspects_where_they_belong(built: Built, root: Path) -> None:
    before = file_hashes(root, FILES)
    suspects = suspects_of(root, built.generation)
    wanted: list[Verdict] = [*["positive"] * 5, *["negative"] * 5, "drop"]
    verdicts = dict(zip(suspects, wanted, strict=False))
    generation = apply_verdicts(str(root), verdicts, target="cat")
    assert before.items() <= file_hashes(root, FILES).items()
    assert verify_dataset(str(root)).problems == []
    assert set(suspects_of(root, generation)) == set(suspects) - set(verdicts)
    reasons = reasons_of(root, generation)
    rows = {row["key"]: row for row in sidecar_rows(root, generation).to_pylist()}
    for key, verdict in verdicts.items():
        if verdict == "positive" and reasons[key] is None:
            row = rows[key]
            assert (row["label"], row["label_state"]) == ("cat", "verified_present")
            assert row["inclusion_probability"] == 1.0
        elif verdict == "negative" and key in rows:
            assert (rows[key]["label"], rows[key]["label_state"]) == ("", "verified_absent")
        elif verdict == "drop":
            assert reasons[key] == "taken_down"
    num_present = sum(key in rows for key, verdict in verdicts.items() if verdict == "positive")
    assert num_present >= 4, "a near duplicate of an evaluation image may be refused"
    paths = {shard.path for shard in generation.shards if shard.label == "cat"}
    assert any("/strays-cat-" in path for path in paths), paths


def test_verdict_on_what_is_not_in_quarantine_is_a_mistake(built: Built, root: Path) -> None:
    key = sorted(keys_of(root, built.generation))[0]
    with pytest.raises(ConfigError, match=f"{key} is not in quarantine"):
        apply_verdicts(str(root), {key: "drop"}, target="cat")


def test_verdict_that_is_none_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.csv"
    path.write_text("key,verdict\na-0-1,positive\na-0-2,maybe\n")
    with pytest.raises(ConfigError, match=r"line 3: .*positive, negative, drop, got .*maybe"):
        read_verdicts(str(path))


def test_commands_commit_generations(
    built: Built, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, suspect = min(keys_of(root, built.generation)), suspects_of(root, built.generation)[0]
    code, output, _ = call_infineg(capsys, "takedown", root, "--key", key)
    assert (code, "committed generation 2" in output) == (0, True)
    path = tmp_path / "verdicts.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("key", "verdict"), (suspect, "negative")])
    assert call_infineg(capsys, "review", root, "--verdicts", path)[0] == 0
    assert Dataset(str(root)).read_generation().taken_down.keys == {key}
