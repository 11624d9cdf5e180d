"""What a plan takes of a source, and how the pilot fixes the probabilities."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.build.reading import PlannedSource, iterate_spans
from pipeline.config.schema import Config, SourceEntry
from pipeline.config.selection import SelectionConfig
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import ReferenceInfo, strata_by_similarity
from pipeline.dataset.schema import Partition, RawSample
from pipeline.errors import ConfigError, InfinegError
from pipeline.selection.fit import Sampled, fit_scale
from pipeline.selection.pilot import Pilot, make_pilot, pilot_sample
from pipeline.selection.plan import make_plan
from pipeline.sources import survey as survey_of
from pipeline.sources.survey import pilot_size, survey, take_partitions
from support.builds import build_inline, config_of, first_samples, folder_entry, squares
from support.corpus import write_tar
from support.costs import peak_bytes

REFERENCE = ReferenceInfo(
    fingerprint="", num_embeddings=30, num_positives=40, median=0.5, ceiling=0.4, near=0.3, mid=0.2
)
ENTRY = SourceEntry(name="stream", kind="squares")


class Listing:
    """A source of which only the listing is looked at."""

    def __init__(self, num_partitions: int | None, num_samples: int | None = 100) -> None:
        self.is_endless = num_partitions is None
        self._num_partitions, self._num_samples = num_partitions, num_samples
        self.num_listed = 0

    def partitions(self) -> Iterator[Partition]:
        for number in itertools.islice(itertools.count(), self._num_partitions):
            self.num_listed += 1
            yield Partition(f"{number:06d}", number, self._num_samples)

    def read(self, partition: Partition) -> Iterator[RawSample]:
        raise AssertionError(f"a plan reads no sample, not even of {partition.id}")


def config_with(**selection: Any) -> Config:
    return config_of("unused", [ENTRY.model_dump()], selection=selection)


def locators(partitions: list[Partition]) -> list[int]:
    return [partition.locator for partition in partitions]


def taken(source: Listing, entry: SourceEntry, config: Config) -> list[int]:
    listing = survey(source, entry, config)
    return locators(list(take_partitions(source, listing.num_partitions, listing.num_listed)))


def test_endless_source_gives_the_prefix_that_the_budget_asks_for() -> None:
    source = Listing(None)
    entry = ENTRY.model_copy(update={"weight": 0.5})
    config = config_with(budget=1000, candidates_per_selected=4)
    assert survey(source, entry, config).num_partitions == 20
    assert source.num_listed <= 21, "an endless list is not listed further than needed"
    assert taken(source, entry, config) == list(range(20))


def test_larger_budget_takes_a_longer_prefix() -> None:
    small, large = (
        taken(Listing(None), ENTRY, config_with(budget=budget)) for budget in (100, 1000)
    )
    assert large[: len(small)] == small
    assert len(large) > len(small)


def test_finite_source_is_read_whole() -> None:
    assert taken(Listing(70), ENTRY, config_with(budget=10)) == list(range(70))


def test_finite_source_over_the_limit_is_taken_at_even_steps() -> None:
    entry = ENTRY.model_copy(update={"max_candidates": 500})
    assert taken(Listing(20), entry, config_with()) == [0, 4, 8, 12, 16]


def test_empty_source_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="source 'stream': no partition found"):
        survey(Listing(0), ENTRY, config_with())


def test_pilot_reads_a_little_of_many_partitions() -> None:
    sample = pilot_sample(survey(Listing(1000), ENTRY, config_with()).examples, 500)
    assert len(sample) == 64
    assert {limit for _, limit in sample} == {8}
    assert len({partition.id for partition, _ in sample}) == 64
    assert max(partition.locator for partition, _ in sample) > 950, "to the end of the list"
    (only,) = survey(Listing(1), ENTRY, config_with()).examples
    assert pilot_sample([only], 500) == [(only, 500)]


def planned_of(num_listed: int, *, samples: int, **committed: int) -> PlannedSource:
    source = Listing(num_listed, samples)
    config = config_of("unused", [ENTRY.model_dump()], output={"candidates_per_round": 10_000})
    pilot = pilot_of(survey(source, ENTRY, config), rows_of(500), config)
    plan = make_plan(pilot, config=config, reference=REFERENCE)
    return PlannedSource(ENTRY, source, plan, **committed)


def test_small_partitions_are_read_together_and_large_ones_alone() -> None:
    small, large = planned_of(10_000, samples=10), planned_of(7, samples=3000)
    assert {len(span) for span in iterate_spans(small)} == {51, 10_000 % 51}
    assert [len(span) for span in iterate_spans(large)] == [1] * 7
    assert [p.locator for span in iterate_spans(small) for p in span] == list(range(10_000))


def test_rounds_are_whole_spans_and_go_on_where_the_last_one_ended() -> None:
    planned = planned_of(10_000, samples=10)
    rounds = list(planned.rounds())
    assert [(r.first, r.last) for r in rounds[:2]] == [(0, 19 * 51), (19 * 51, 38 * 51)]
    assert rounds[-1].last == 10_000
    assert sum(r.num_spans for r in rounds) == sum(1 for _ in iterate_spans(planned))
    later = planned_of(10_000, samples=10, num_rounds=1, num_partitions=19 * 51)
    assert [(r.number, r.first, r.last) for r in later.rounds()] == [
        (r.number, r.first, r.last) for r in rounds[1:]
    ]
    assert next(iterate_spans(later))[0].locator == 19 * 51


def test_source_that_lists_fewer_partitions_than_planned_is_refused() -> None:
    planned = planned_of(100, samples=10)
    fewer = replace(planned, source=Listing(90, 10))
    with pytest.raises(InfinegError, match="planned with 100 partitions and has 90 now"):
        list(iterate_spans(fewer))


def test_size_of_partitions_that_nobody_knows_is_counted_in_the_pilot() -> None:
    source, config = Listing(3000, None), config_with()
    listing = survey(source, ENTRY, config)
    assert not listing.can_tell_sizes
    rows = rows_of(500, partition_size=[16] * 250 + [None] * 250)
    pilot = pilot_of(listing, rows, config)
    plan = make_plan(pilot, config=config, reference=REFERENCE)
    assert (plan.samples_per_partition, plan.partitions_per_span) == (16.0, 32)


def test_plan_of_ten_times_as_many_partitions_keeps_no_more() -> None:
    def plan(num_partitions: int) -> None:
        planned = planned_of(num_partitions, samples=1)
        assert sum(1 for _ in iterate_spans(planned)) == -(-num_partitions // 512)
        assert planned.plan.num_candidates == num_partitions

    few, many = (peak_bytes(lambda number=number: plan(number)) for number in (10_000, 100_000))
    assert many < few + 90_000, "less than a byte each"


def test_pilot_is_a_hundredth_of_the_budget_and_at_least_what_is_asked_for() -> None:
    assert pilot_size(ENTRY, SelectionConfig.model_validate({"budget": 10_000})) == 500
    assert pilot_size(ENTRY, SelectionConfig.model_validate({"budget": 1_000_000})) == 10_000


def test_scale_does_not_depend_on_the_order_of_the_pilot() -> None:
    rng = np.random.default_rng(0)
    similarity = rng.uniform(-0.2, 0.6, 999).astype(np.float32)
    scales = {
        fit_scale(
            [Sampled(rng.permutation(similarity))],
            beta=8,
            offset=0.5,
            min_probability=0.01,
            mean_probability=0.1,
        )
        for _ in range(50)
    }
    assert len(scales) == 1, "in the last bit either"


@pytest.mark.parametrize(("mean", "expected"), [(0.001, 0.01), (1.0, 1.0), (3.0, 1.0)])
def test_budget_beyond_what_is_possible_gives_the_floor_or_everything(
    mean: float, expected: float
) -> None:
    similarity = np.linspace(-1, 1, 101, dtype=np.float32)
    scale = fit_scale(
        [Sampled(similarity)], beta=8, offset=0.5, min_probability=0.01, mean_probability=mean
    )
    probability = np.clip(scale * np.exp(8 * (similarity.astype(float) - 0.5)), 0.01, 1)
    np.testing.assert_allclose(probability, expected, rtol=1e-6)


def pilot_of(listing: survey_of.Listing, rows: pa.Table, config: Config) -> Pilot:
    return make_pilot(ENTRY, Listing(1), listing, rows, config=config, reference=REFERENCE)


def rows_of(num_rows: int, **columns: list[object]) -> pa.Table:
    """Rows of a pilot."""
    similarity = np.linspace(0, 0.6, num_rows)
    given: dict[str, object] = {
        "label": [""] * num_rows,
        "label_state": ["verified_absent"] * num_rows,
        "stratum": [None] * num_rows,
        "similarity": similarity,
        "doubt": [None] * num_rows,
        "reject_reason": [None] * num_rows,
        "size_bytes": [1000] * num_rows,
        "seconds": [0.001] * num_rows,
        "partition_size": [None] * num_rows,
        **columns,
    }
    types = {"similarity": pa.float32(), "stratum": pa.string(), "doubt": pa.string()}
    types |= {"reject_reason": pa.string(), "partition_size": pa.int64()}
    return pa.table({name: pa.array(v, types.get(name)) for name, v in given.items()})


def plan_of(rows: pa.Table, *, num_partitions: int = 100, **selection: Any) -> Any:
    config = config_with(**selection)
    pilot = pilot_of(survey(Listing(num_partitions), ENTRY, config), rows, config)
    return make_plan(pilot, config=config, reference=REFERENCE)


def test_plan_expects_the_budget_in_each_split() -> None:
    plan = plan_of(rows_of(500), budget=800, eval_budget=300)
    by_split = {
        split: sum(n for key, n in plan.expected_selected.items() if key.startswith(f"{split}/"))
        for split in ("train", "val", "test")
    }
    assert by_split == pytest.approx({"train": 800, "val": 300, "test": 300}, rel=1e-4)
    assert plan.num_candidates == 10_000
    assert plan.eval_probability == pytest.approx(300 / (10_000 * 0.15))
    assert {key.partition("/")[2] for key in plan.expected_selected} == {"near", "mid", "far"}
    assert plan.expected_bytes == pytest.approx(1400 * 1000, rel=1e-4)


def write_tars(folder: Path, sizes: list[int]) -> dict[str, Any]:
    """An entry of tars of so many pictures; nothing but reading tells how many."""
    folder.mkdir()
    pictures = iter(first_samples(squares(num_pictures=sum(sizes)), sum(sizes)))
    for number, size in enumerate(sizes):
        chosen = itertools.islice(pictures, size)
        members = [(f"{n:05d}.jpg", sample.image) for n, sample in enumerate(chosen)]
        write_tar(folder / f"{number}.tar", members)
    urls = str(folder / f"{{0..{len(sizes) - 1}}}.tar")
    return {"name": "tars", "kind": "webdataset", "params": {"urls": urls}}


def test_size_of_tars_that_nobody_counted_is_estimated_by_their_bytes(tmp_path: Path) -> None:
    entry = write_tars(tmp_path / "tars", [300, 5, 175])
    config = config_of(
        tmp_path / "data", [{**entry, "label_state": "verified_absent"}], selection={"pilot": 30}
    )
    generation = build_inline(config)
    plan = Dataset(str(tmp_path / "data")).read_plan("tars")
    assert plan.samples_per_partition == pytest.approx(160, rel=0.05)
    (tars,) = (source for source in generation.sources if source.name == "tars")
    assert tars.counts.read == 480
    # 60 of train and 15 each of val and test are expected: as if a tar held 1,000, it would be 14.
    assert 60 < tars.counts.selected < 120


def test_limit_of_candidates_holds_for_tars_that_nobody_counted(tmp_path: Path) -> None:
    entry = write_tars(tmp_path / "tars", [50] * 8)
    config = config_of(
        tmp_path / "data", [{**entry, "max_candidates": 200}], selection={"pilot": 80}
    )
    generation = build_inline(config)
    (tars,) = (source for source in generation.sources if source.name == "tars")
    assert tars.counts.read == 200


def test_plan_makes_up_for_rejected_candidates() -> None:
    reasons: list[object] = ["truncated", "too_small", None, None] * 125
    plan = plan_of(rows_of(500, reject_reason=reasons), budget=800, eval_budget=300)
    assert plan.expected_rejected == {"too_small": 2500, "truncated": 2500}
    assert sum(plan.expected_selected.values()) == pytest.approx(1400, rel=0.01)


def test_plan_takes_every_positive_and_what_is_all_there_is() -> None:
    plan = plan_of(rows_of(500, label=["cat"] * 500), budget=10)
    assert sum(plan.expected_selected.values()) == pytest.approx(10_000)
    scarce = plan_of(rows_of(500), budget=100_000)
    assert scarce.eval_probability == 1.0
    assert sum(scarce.expected_selected.values()) == pytest.approx(10_000)


def test_stratum_follows_from_similarity() -> None:
    similarity = pa.array([0.5, 0.3, 0.25, 0.2, 0.1])
    found = strata_by_similarity(similarity, REFERENCE).to_pylist()
    assert found == ["near", "near", "mid", "mid", "far"]


def test_plan_is_kept_until_its_entry_is_changed(tmp_path: Path) -> None:
    """The pilot of a changed plan is run anew; of an unchanged one it is not."""
    out = str(tmp_path / "data")
    stopped = [squares("good", num_pictures=300), folder_entry("bad", tmp_path / "bad")]
    (tmp_path / "bad").mkdir()
    for number in range(120):
        (tmp_path / f"bad/{number}.jpg").write_bytes(b"no picture")
    with pytest.raises(InfinegError, match="120 of 120"):
        build_inline(config_of(out, stopped))
    plan = Dataset(out).read_plan("good")
    with pytest.raises(InfinegError, match="120 of 120"):
        build_inline(config_of(out, stopped))
    assert Dataset(out).read_plan("good") == plan, "times are measured: a new pilot would differ"
    with pytest.raises(InfinegError, match="120 of 120"):
        build_inline(config_of(out, stopped, selection={"budget": 30}))
    changed = Dataset(out).read_plan("good")
    assert changed.scale < plan.scale
    for number in range(120, 600):
        (tmp_path / f"bad/{number}.jpg").write_bytes(b"no picture")
    with pytest.raises(InfinegError, match="200 of 200"):
        build_inline(config_of(out, stopped, selection={"budget": 30}))
    assert Dataset(out).read_plan("good") == changed
    assert Dataset(out).read_plan("bad").num_listed == 3, "no part of it was there"
