"""Parts and shards: what is cut where, what a file looks like, what a crash leaves of it."""

import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline import storage
from pipeline.build.pack import ShardTask, cut_shards, pack_shard
from pipeline.dataset import Dataset
from pipeline.dataset.dedup import SeenImages
from pipeline.dataset.metadata import Counts, PartRecord
from pipeline.dataset.schema import row_schema
from pipeline.dataset.shards import write_part, write_shard
from pipeline.dataset.tables import PartRows, RoundTables, write_tables
from pipeline.worker.span import ReadTask
from support.builds import Built, build_inline, config_of, file_hashes, squares
from support.tables import table_of

GROUP, OTHER = "shards/train/a", "shards/val/a"


def part_of(number: int, **packed: int) -> PartRows:
    """A part whose first rows go to train, the next to val."""
    rows = {GROUP: range(packed.get("train", 0)), OTHER: range(packed.get("val", 0))}
    return PartRows(f"parts/a/{number}.parquet", {g: list(r) for g, r in rows.items() if r})


def cut(parts: list[PartRows], *, size: int, **numbers: int) -> list[ShardTask]:
    before = {{"train": GROUP, "val": OTHER}[split]: n for split, n in numbers.items()}
    return cut_shards(
        parts, source="a", samples_per_shard=size, round_number=1, next_numbers=before
    )


def pieces_of(task: ShardTask) -> list[tuple[str, tuple[int, ...]]]:
    return [(piece.part_path[8:-8], piece.rows) for piece in task.pieces]


def test_shards_are_cut_at_a_fixed_count_across_parts() -> None:
    tasks = cut([part_of(0, train=7, val=1), part_of(1), part_of(2, train=15, val=2)], size=10)
    assert {task.stem: pieces_of(task) for task in tasks} == {
        f"{GROUP}-000000": [("0", tuple(range(7))), ("2", (0, 1, 2))],
        f"{GROUP}-000001": [("2", tuple(range(3, 13)))],
        f"{GROUP}-000002": [("2", (13, 14))],
        f"{OTHER}-000000": [("0", (0,)), ("2", (0, 1))],
    }


def test_numbers_go_on_after_earlier_generations() -> None:
    tasks = cut([part_of(0, train=10, val=3)], size=5, train=4)
    assert [task.stem for task in tasks] == [
        f"{GROUP}-000004", f"{GROUP}-000005", f"{OTHER}-000000",
    ]  # fmt: skip


@pytest.mark.parametrize("size", [1, 4, 10, 1000])
def test_every_row_is_in_exactly_one_shard(size: int) -> None:
    rng = np.random.default_rng(size)
    parts = [part_of(n, train=int(rng.integers(0, 30))) for n in range(12)]
    tasks = cut(parts, size=size)
    taken = [(p, row) for t in tasks for p, rows in pieces_of(t) for row in rows]
    assert taken == [(str(n), row) for n in range(12) for row in parts[n].rows.get(GROUP, ())]
    sizes = [sum(len(rows) for _, rows in pieces_of(task)) for task in tasks]
    assert set(sizes[:-1]) <= {size}
    assert 0 < sizes[-1] <= size


def test_nothing_selected_makes_no_shard() -> None:
    assert cut([part_of(0), part_of(1)], size=10) == []


def rows_of(num_rows: int, **columns: list[object]) -> pa.Table:
    """Decided rows of one source; all selected where `columns` say nothing else."""
    defaults: dict[str, object] = {
        "key": [f"a-{n:016x}-{n:08d}" for n in range(num_rows)],
        "source": "a",
        "partition": "p",
        "ordinal": range(num_rows),
        "uri": [f"a#{n}" for n in range(num_rows)],
        "label": "",
        "label_state": "unknown",
        "group": [f"g{n}" for n in range(num_rows)],
        "split": "train",
        "content_hash": [f"{n:064x}" for n in range(num_rows)],
        "image": [b"\xff\xd8" + bytes([n]) * (n * 300) for n in range(num_rows)],
        "inclusion_probability": 0.3,
        "similarity": 0.1,
        "selected": True,
    }
    return table_of(num_rows, row_schema(4), defaults | columns)


def test_shard_is_a_plain_tar_without_time_or_owner(tmp_path: Path) -> None:
    file = write_shard(
        Dataset(str(tmp_path)),
        rows_of(3, label=["cat", "", "dog"]),
        stem="shards/train/a-000000",
        targets=("dog", "cat"),
        encoder="net:0123",
        round_number=2,
    )
    path = tmp_path / file.path
    with tarfile.open(path) as archive:
        members = archive.getmembers()
        contents = [archive.extractfile(member).read() for member in members]  # type: ignore[union-attr]
    keys = rows_of(3)["key"].to_pylist()
    names = [f"{key}.{extension}" for key in keys for extension in ("cls", "jpg", "json")]
    assert [member.name for member in members] == names
    for member in members:
        assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
        assert (member.uname, member.gname, member.pax_headers) == ("", "", {})
    assert [contents[i] for i in (0, 3, 6)] == [b"2", b"0", b"1"]
    assert contents[1::3] == rows_of(3)["image"].to_pylist()
    about = json.loads(contents[2])
    assert about["inclusion_probability"] == np.float32(0.3)
    assert (about["encoder"], about["generation"], about["label"]) == ("net:0123", 2, "cat")
    assert file.size_bytes == path.stat().st_size
    assert file.size_bytes % 512 == 0
    assert storage.sha256_of(str(path)) == file.sha256


def test_sidecar_says_where_each_image_lies(tmp_path: Path) -> None:
    file = write_shard(
        Dataset(str(tmp_path)), rows_of(5), stem="s", targets=("cat",), encoder="", round_number=1
    )
    sidecar = Dataset(str(tmp_path)).read_table(file.sidecar_path)
    assert "image" not in sidecar.column_names
    for row, image in zip(sidecar.to_pylist(), rows_of(5)["image"].to_pylist(), strict=True):
        tar = str(tmp_path / file.path)
        assert storage.read_range(tar, row["tar_offset"], row["tar_size"]) == image


def test_part_keeps_images_and_embeddings_that_are_packed_and_no_other(tmp_path: Path) -> None:
    rows = rows_of(
        4,
        selected=[True, False, False, False],
        reject_reason=[None, None, "suspected_positive", "truncated"],
        embedding=[[n, 0, 0, 1] for n in range(4)],
    )
    record = write_part_of(tmp_path, rows)
    written = Dataset(str(tmp_path)).read_table(record.path)
    assert written["image"].is_valid().to_pylist() == [True, False, True, False]
    assert written["embedding"].to_pylist() == [[0, 0, 0, 1], None, [2, 0, 0, 1], None]
    assert record.counts == Counts(
        read=4, selected=1, not_selected=1, rejected={"suspected_positive": 1, "truncated": 1}
    )
    assert Dataset(str(tmp_path)).read_part(record, 0) == record
    assert Dataset(str(tmp_path)).read_part(record, 1) is None
    tables = tables_of(tmp_path, record)
    assert tables.parts[0].rows == {"shards/train/a": [0], "quarantine/a": [2]}
    assert (tables.counts, tables.ledger.num_rows, tables.hashes.num_rows) == (record.counts, 4, 1)


def write_part_of(root: Path, rows: pa.Table) -> PartRecord:
    task = ReadTask(source="a", partitions=(), span=3)
    return write_part(Dataset(str(root)), rows, task, part=0, is_last=True)


def tables_of(root: Path, *parts: PartRecord) -> RoundTables:
    return write_tables(
        Dataset(str(root)),
        [part.path for part in parts],
        SeenImages(),
        ledger_path="ledger/a-1",
        hashes_path="hashes/a-1",
    )


def test_shard_takes_the_rows_of_its_group_alone(tmp_path: Path) -> None:
    record = write_part_of(tmp_path, rows_of(6, split=["train", "val"] * 3))
    (train, val) = cut_shards(
        tables_of(tmp_path, record).parts,
        source="a",
        samples_per_shard=10,
        round_number=1,
        next_numbers={},
    )
    file = pack_shard(Dataset(str(tmp_path)), val, targets=("cat",), encoder="")
    assert Dataset(str(tmp_path)).read_table(file.sidecar_path)["ordinal"].to_pylist() == [1, 3, 5]
    assert (train.stem, val.stem) == (f"{GROUP}-000000", f"{OTHER}-000000")


def test_duplicates_are_refused_in_ledger_and_shard_alike(tmp_path: Path) -> None:
    same = [f"{1:064x}", f"{2:064x}", f"{1:064x}", f"{3:064x}"]
    record = write_part_of(tmp_path, rows_of(4, content_hash=same))
    tables = tables_of(tmp_path, record)
    assert tables.counts == Counts(read=4, selected=3, rejected={"duplicate": 1})
    ledger = Dataset(str(tmp_path)).read_table(tables.ledger.path).to_pylist()
    assert [row["reject_reason"] for row in ledger] == [None, None, "duplicate", None]
    assert [row["selected"] for row in ledger] == [True, True, False, True]
    assert ledger[2]["inclusion_probability"] is None
    assert tables.parts[0].rows == {GROUP: [0, 1, 3]}


def test_missing_images_never_shift_a_key(built: Built) -> None:
    for shard in built.generation.shards:
        for row in Dataset(str(built.root)).read_sidecar(shard).to_pylist():
            assert re.fullmatch(r"[a-z0-9_]+-[0-9a-f]{16}-\d{8}", row["key"]), row["key"]
            assert int(row["key"][-8:]) == row["ordinal"]
            assert row["key"].startswith(f"{row['source']}-")


def test_shards_of_a_plan_given_up_are_swept(tmp_path: Path) -> None:
    """Left by a run that was interrupted after packing, and then given another budget."""
    config = config_of(tmp_path / "data", [squares(num_pictures=300)])
    root = tmp_path / "data"
    for name in ("shards/train/squares-000009.tar", "ledger/squares-000009.parquet"):
        storage.write_atomic(str(root / name), b"of another plan")
    (root / "shards/train/.tmp-1234").write_bytes(b"half a file")
    foreign = root / "shards/train/notes.txt"
    foreign.write_bytes(b"not of a source")
    generation = build_inline(config)
    listed = {name for s in generation.shards for name in (s.path, s.sidecar_path)}
    found = set(file_hashes(root, ("shards/",)))
    assert found == {*listed, "shards/train/notes.txt"}
    assert set(file_hashes(root, ("ledger/",))) == {
        "ledger/cats-000001.parquet", "ledger/squares-000001.parquet",
    }  # fmt: skip


def test_shards_are_full_even_where_one_candidate_in_a_hundred_is_kept(tmp_path: Path) -> None:
    stream = squares(num_pictures=3000, per_partition=256)
    config = config_of(
        tmp_path / "data",
        [stream],
        selection={"budget": 21, "eval_budget": 5},
        split={},
        output={"samples_per_shard": 5},
    )
    generation = build_inline(config)
    counts = next(s.counts for s in generation.sources if s.name == "squares")
    assert counts.selected / counts.read < 0.015
    sizes = [
        s.num_samples for s in generation.shards if (s.source, s.split) == ("squares", "train")
    ]
    assert set(sizes[:-1]) == {5}
    assert len(sizes) >= 4
