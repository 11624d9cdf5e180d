"""What must not grow with how much there is: memory and requests, each counted at two sizes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.curate.verify import verify_dataset
from pipeline.dataset.dataset import Dataset, round_folder
from pipeline.dataset.dedup import SeenImages
from pipeline.dataset.status import read_running
from support.builds import build_inline, config_of, squares
from support.costs import cost_of, peak_bytes
from support.servers import S3Server
from support.synthetic import (
    SOURCE,
    plan_of,
    seen_images,
    tables_of,
    write_dataset,
    write_part_records,
    write_parts,
)


class Counted:
    """A slow function, as `map_ahead` sees it."""

    def __init__(self) -> None:
        self.num_begun = 0

    def __call__(self, number: int) -> int:
        self.num_begun += 1
        if number == 50:
            raise ValueError(number)
        return number**2


def test_no_more_is_read_ahead_than_is_allowed() -> None:
    read = Counted()
    for num_taken, result in enumerate(storage.map_ahead(read, range(40), num_ahead=4), start=1):
        assert result == (num_taken - 1) ** 2
        assert read.num_begun <= num_taken + 4


def test_error_comes_in_its_place_and_ends_the_reading() -> None:
    read = Counted()
    results = storage.map_ahead(read, range(1000), num_ahead=4)
    assert [next(results) for _ in range(50)] == [n**2 for n in range(50)]
    with pytest.raises(ValueError, match="50"):
        next(results)
    assert read.num_begun <= 50 + 4


def test_whoever_stops_early_reads_no_further() -> None:
    read = Counted()
    results: Any = storage.map_ahead(read, iter(range(40)), num_ahead=4)
    next(results)
    results.close()
    assert read.num_begun <= 1 + 4


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Data sets with so many committed parts in one round."""
    roots = {}
    for number in (500, 3000):
        root = tmp_path_factory.mktemp("parts")
        write_part_records(root, number)
        Dataset(str(root)).write_plan(plan_of(2 * number))
        roots[number] = str(root)
    return roots


def scan(root: str) -> None:
    for _ in Dataset(root).iterate_parts(SOURCE, 1):
        pass


@pytest.mark.parametrize(("look", "allowed"), [(scan, 500), (read_running, 1000)])
def test_memory_holds_the_names_of_parts_and_not_their_records(
    rounds: dict[int, str], look: Callable[[str], Any], allowed: int
) -> None:
    """A record is 2.6 kB in memory; `status` wants the time of each part, too."""
    few, many = (peak_bytes(lambda root=root: look(root)) for root in rounds.values())
    # 1,024 records are read at once, of which the smaller round has half.
    per_part = (many - few - 524 * 4000) / 2500
    assert per_part < allowed, f"{per_part:.0f} bytes a part"


def test_records_come_in_the_order_of_spans(tmp_path: Path) -> None:
    write_part_records(tmp_path, 3)
    folder = tmp_path / round_folder(SOURCE, 1)
    content = (folder / "000000-000000.json").read_text().replace('"span": 0', '"span": 1000000')
    (folder / "1000000-000000.json").write_text(content)
    spans = [record.span for record in Dataset(str(tmp_path)).iterate_parts(SOURCE, 1)]
    assert spans == [0, 1, 2, 1_000_000]


def test_duplicates_are_looked_up_without_sorting_all_there_is() -> None:
    num_seen = 200_000
    seen, few = SeenImages(), seen_images(100, seed=1)
    seen.add(seen_images(num_seen, seed=0))
    peak = peak_bytes(lambda: seen.admit(few))
    assert peak < 12 * num_seen, f"{peak / num_seen:.1f} bytes for each that is there"
    assert len(seen.admit(few)) == 100, "they are there now"


def test_verify_holds_what_is_packed_and_not_what_was_seen(tmp_path: Path) -> None:
    megabytes = []
    for num_parts in (1, 6):
        root = str(tmp_path / str(num_parts))
        write_dataset(root, num_parts, samples_per_part=3000, dim=4, image_bytes=500)
        cost = cost_of(verify_dataset, root)
        assert cost.value.problems == []
        megabytes.append(cost.megabytes)
    # 15,000 rows more; each took 2.3 kB.
    assert megabytes[1] - megabytes[0] < 24, megabytes


def test_ledger_gathers_the_rows_of_many_parts(tmp_path: Path) -> None:
    """A row group has an entry for each column, which a reader of one column reads, too."""
    root = str(tmp_path)
    tables = tables_of(root, write_parts(root, 5, samples_per_part=20, dim=4))
    with pq.ParquetFile(tmp_path / tables.ledger.path) as ledger:
        assert ledger.metadata.num_rows == 100
        assert ledger.num_row_groups == 1


def test_adding_a_source_asks_for_nothing_of_others_but_their_hashes(
    s3_root: str, s3_server: S3Server
) -> None:
    """However many shards there are; of each round there is one table of hashes."""
    asked = {}
    for num_rounds in (1, 2):
        root = storage.join(s3_root, str(num_rounds))
        sections = {
            "selection": {"budget": 100 * num_rounds, "pilot": 20},
            "output": {"candidates_per_round": 520, "samples_per_shard": 10},
            "build": {"keep_embeddings": False},
        }
        old = squares(num_pictures=520 * num_rounds, per_partition=520)
        new = squares("more", num_pictures=10, seed=1)
        before = build_inline(config_of(root, [old], **sections))
        assert len(before.sources[1].ledger) == num_rounds
        num_requests = len(s3_server.reads) + len(s3_server.writes)
        build_inline(config_of(root, [old, new], **sections))
        num_requests = len(s3_server.reads) + len(s3_server.writes) - num_requests
        asked[num_rounds, len(before.shards)] = num_requests
    few, many = sorted(asked)
    assert many[1] > few[1] + 10
    assert asked[many] - asked[few] <= 3 * (many[0] - few[0]), asked
