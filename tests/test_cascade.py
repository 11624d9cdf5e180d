"""A cheap look before the full one: what it must not change, and what it may."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from builds import (
    build_inline,
    config_of,
    copy_dataset,
    file_hashes,
    folder_entry,
    sidecar_rows,
    squares,
)
from conftest import Built
from corpus import odd_but_usable, unusable
from numpy.typing import NDArray

from pipeline import manifest
from pipeline.bounds import fit_quantile
from pipeline.build import build
from pipeline.cascade import choose_looks, needs_full_look
from pipeline.commits import CascadePlan, Generation, TakenDown
from pipeline.config import Config, EncoderConfig, load_config
from pipeline.decisions import find_wrong_decisions
from pipeline.encoders import Preprocessing
from pipeline.errors import ConfigError
from pipeline.images import Decoded, decode_image, decode_small
from pipeline.keys import unit_hash
from pipeline.mine import mine
from pipeline.parts import SpanTask, SpanWorker
from pipeline.records import ImageSettings
from pipeline.reference import KnownPositives
from pipeline.rules import read_rule
from pipeline.runtimes import prepare_cascade
from pipeline.scorer import Scorer
from pipeline.sources import open_entry
from pipeline.steps.select import SelectionRule, select_batch
from pipeline.tables import plan_table
from pipeline.takedown import take_down
from pipeline.verdicts import Verdict, apply_verdicts
from pipeline.verify import verify_dataset

NUM_ROWS = 3000
_REASONS = {name: str(reason) for name, (_, reason) in unusable().items()}
CASCADE = CascadePlan(intercept=0.1, slope=0.9, expected_recall=1.0, expected_full_share=0.1)
RULE = SelectionRule(
    scale=0.05,
    beta=8.0,
    offset=0.5,
    min_probability=0.005,
    eval_probability=0.1,
    seed=0,
    near=0.4,
    ceiling=0.55,
    cascade=CASCADE,
)


def rows_of(
    similarity_N: NDArray[np.floating], cheap_N: NDArray[np.floating], **columns: Any
) -> pa.Table:
    """Usable training negatives, verified absent, where `columns` say nothing else."""
    num_rows = len(similarity_N)
    given = {
        "key": [f"k-{n}" for n in range(num_rows)],
        "label": [""] * num_rows,
        "label_state": ["verified_absent"] * num_rows,
        "split": ["train"] * num_rows,
        "doubt": pa.nulls(num_rows, pa.string()),
        "content_hash": [f"{n:064x}" for n in range(num_rows)],
        "perceptual_hash": pa.nulls(num_rows, pa.uint64()),
        "reject_reason": pa.nulls(num_rows, pa.string()),
        "similarity": pa.array(similarity_N, pa.float32()),
        "cheap_similarity": pa.array(cheap_N, pa.float32()),
        **columns,
    }
    return pa.table(given)


@pytest.fixture(scope="module")
def looks() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """similarity_N and cheap_similarity_N, of which a tenth is badly wrong."""
    rng = np.random.default_rng(0)
    similarity_N = rng.beta(4, 6, NUM_ROWS)
    cheap_N = similarity_N + rng.normal(0, 0.08, NUM_ROWS)
    cheap_N[::10] = similarity_N[::10] - 0.4
    return similarity_N, cheap_N


def without_full_look(rows: pa.Table, full_B: NDArray[np.bool_]) -> pa.Table:
    similarity = pc.if_else(pa.array(full_B), rows["similarity"], pa.scalar(None, pa.float32()))
    return rows.set_column(rows.schema.get_field_index("similarity"), "similarity", similarity)


def test_weights_are_unbiased_whatever_the_cheap_look_misses(
    looks: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> None:
    """Horvitz and Thompson's estimate of a sum that the hard and the missed ones dominate."""
    similarity_N, cheap_N = looks
    value_N = np.exp(6 * similarity_N)
    value_N[::10] *= 3
    rows = rows_of(similarity_N, cheap_N)
    estimates = []
    for seed in range(150):
        rule = dataclasses.replace(RULE, seed=seed)
        full_B = needs_full_look(rows.drop_columns(["similarity"]), rule, frozenset())
        assert full_B.mean() < 0.3, "most are decided by the cheap look"
        decided = select_batch(without_full_look(rows, full_B), rule, KnownPositives())
        is_selected = decided["selected"].to_numpy()
        probability_N = decided["inclusion_probability"].to_numpy()
        estimates.append((value_N / probability_N)[is_selected].sum())
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - value_N.sum()) < 4 * error
    assert error < 0.02 * value_N.sum(), "an estimate that could be wrong"


def test_what_gets_no_full_look_would_not_have_been_selected_after_one(
    looks: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> None:
    rows = rows_of(*looks)
    full_B = needs_full_look(rows.drop_columns(["similarity"]), RULE, frozenset())
    of_all = select_batch(rows, RULE, KnownPositives())
    of_some = select_batch(without_full_look(rows, full_B), RULE, KnownPositives())
    assert of_some["selected"].equals(of_all["selected"])
    selected_N = of_all["selected"].to_numpy()
    assert selected_N.sum() > 50
    assert of_some["inclusion_probability"].to_numpy()[selected_N] == pytest.approx(
        of_all["inclusion_probability"].to_numpy()[selected_N]
    )
    without = dataclasses.replace(RULE, cascade=None)
    of_full_looks = select_batch(rows.drop_columns(["cheap_similarity"]), without, KnownPositives())
    assert set(np.flatnonzero(selected_N)) < set(
        np.flatnonzero(of_full_looks["selected"].to_numpy())
    ), "a bound takes away, and adds nothing"


def test_labels_and_draws_decide_before_any_look() -> None:
    num_rows = 400
    chance_N = np.array([unit_hash(0, f"{n:064x}") for n in range(num_rows)])
    nothing = np.full(num_rows, np.nan)
    rule = dataclasses.replace(RULE, scale=0.005)

    def looks_at(**columns: Any) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        rows = rows_of(nothing, nothing, **columns)
        return choose_looks(rows.drop_columns(["similarity", "cheap_similarity"]), rule, known)

    known: frozenset[str] = frozenset()
    full_N, cheap_N = looks_at(split=["val"] * num_rows, label_state=["unknown"] * num_rows)
    assert not cheap_N.any()
    assert np.array_equal(full_N, chance_N < np.float32(0.1)), "val: whatever they look like"
    full_N, cheap_N = looks_at()
    best = rule.train_probability(np.ones(1))[0]
    assert 0.2 < best < 0.4
    assert np.array_equal(cheap_N, chance_N < best), "no similarity is over 1"
    assert not full_N.any()
    full_N, cheap_N = looks_at(label_state=["unknown"] * num_rows)
    assert cheap_N.all(), "each may be a suspected positive"
    for columns, is_full in (
        ({"label": ["cat"] * num_rows}, True),
        ({"doubt": ["suspected_positive"] * num_rows}, True),
        ({"doubt": ["conflicting_labels"] * num_rows}, False),
        ({"reject_reason": ["taken_down"] * num_rows}, False),
    ):
        full_N, cheap_N = looks_at(**columns)
        assert (full_N == is_full).all(), columns
        assert not cheap_N.any(), columns
    known = frozenset(f"{n:064x}" for n in range(num_rows))
    full_N, cheap_N = looks_at(label_state=["unknown"] * num_rows)
    assert not (full_N | cheap_N).any(), "the very bytes of a positive are rejected as such"


def test_unlabelled_candidate_over_the_ceiling_gets_the_full_look() -> None:
    cheap_N = np.linspace(0, 1, 50)
    rows = rows_of(np.zeros(50), cheap_N, label_state=["unknown"] * 50).drop_columns(["similarity"])
    never = dataclasses.replace(RULE, scale=1e-9, min_probability=1e-9)
    full_N = needs_full_look(rows, never, frozenset())
    assert np.array_equal(full_N, CASCADE.upper(cheap_N.astype(np.float32)) > 0.55)
    without = dataclasses.replace(never, ceiling=None)
    assert not needs_full_look(rows, without, frozenset()).any()


def test_line_has_the_asked_share_of_the_weight_below_it() -> None:
    rng = np.random.default_rng(1)
    x_N = rng.uniform(0, 1, 4000)
    y_N = 0.2 + 0.5 * x_N + rng.normal(0, 0.05, 4000) * (1 + x_N)
    weight_N = np.exp(4 * y_N)
    intercept, slope = fit_quantile(x_N, y_N, weight_N=weight_N, quantile=0.9)
    below_N = y_N <= intercept + slope * x_N
    assert weight_N[below_N].sum() / weight_N.sum() == pytest.approx(0.9, abs=0.002)
    assert slope > 0.5, "it widens to the right"
    intercept, slope = fit_quantile(x_N, -y_N, weight_N=np.ones(4000), quantile=0.9)
    assert (slope, intercept) == (0, pytest.approx(np.quantile(-y_N, 0.9), abs=1e-3))


def test_small_decode_rejects_the_same_images_for_the_same_reasons() -> None:
    settings = ImageSettings(image_size=64, max_pixels=10**7, min_side=16, max_aspect=5)
    images = {**odd_but_usable(), **{name: image for name, (image, _) in unusable().items()}}
    for name, image in images.items():
        full = decode_image(image, rotation=0, settings=settings)
        for side in (16, 40):
            small = decode_small(image, rotation=0, settings=settings, side=side)
            if isinstance(full, Decoded):
                assert isinstance(small, np.ndarray), name
                assert min(small.shape[:2]) <= side, name
                is_wide = full.width > full.height
                assert is_wide == (small.shape[1] > small.shape[0]), f"{name} is upright"
            else:
                assert small == full, name


# --- whole data sets of drawings -------------------------------------------------------------


def cascade_config(out: Path, entries: list[dict[str, Any]], **selection: Any) -> Config:
    return config_of(out, entries, selection={"cascade": True, **selection})


@pytest.fixture(scope="module")
def cascaded(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The same sources as `built`, in a cascade, in this process."""
    root = tmp_path_factory.mktemp("cascaded") / "data"
    config = cascade_config(root, built.entries)
    return Built(root, built.entries, config, build_inline(config))


def ledger_of(root: Path, generation: Generation, name: str) -> pa.Table:
    (source,) = (s for s in generation.sources if s.name == name)
    return pa.concat_tables(manifest.read_table(str(root), t.path) for t in source.ledger)


def test_dataset_of_a_cascade_is_verified_and_looks_seldom(cascaded: Built) -> None:
    assert verify_dataset(str(cascaded.root)).problems == []
    rows = ledger_of(cascaded.root, cascaded.generation, "squares")
    assert rows.num_rows == 2400
    assert rows["similarity"].null_count > 1800, "full looks are few"
    assert rows.filter(rows["selected"])["similarity"].null_count == 0
    is_val = pc.not_equal(rows["split"], "train")
    of_val = rows.filter(is_val)
    assert of_val["cheap_similarity"].null_count == of_val.num_rows
    assert pc.all(pc.equal(of_val["similarity"].is_valid(), of_val["selected"])).as_py()
    assert cascaded.generation.counts.adds_up()
    assert "cheap_similarity" in sidecar_rows(cascaded.root).column_names


def test_workers_of_ray_write_the_same_bytes(cascaded: Built, tmp_path: Path) -> None:
    config = cascade_config(tmp_path / "data", cascaded.entries)
    build(config.model_copy(update={"build": config.build.model_copy(update={"workers": 1})}))
    assert file_hashes(tmp_path / "data") == file_hashes(cascaded.root)


def test_part_after_a_crash_is_byte_for_byte_the_same(cascaded: Built, tmp_path: Path) -> None:
    root = tmp_path / "data"
    for name in ("dataset.json", "reference.json", "reference.parquet", "plans/squares.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes((cascaded.root / name).read_bytes())
    config = cascade_config(root, cascaded.entries)
    partitions = tuple(open_entry(config.sources[0], "negative").partitions())[:2]
    hashes = []
    for number in (1, 2):
        task = SpanTask(source="squares", partitions=partitions, round=number)
        encoder = prepare_cascade(config.encoder, gpus_per_worker=0)
        if number == 2:
            next(SpanWorker(config, encoder, TakenDown()).build(task))  # and the process dies
        worker = SpanWorker(config, encoder, TakenDown())
        hashes.append([record.sha256 for record, _ in worker.build(task)])
    assert hashes[0] == hashes[1]
    assert len(hashes[0]) == 3


def test_bad_data_is_rejected_as_with_full_looks_alone(built: Built, cascaded: Built) -> None:
    def reasons_of(each: Built) -> dict[str, str]:
        rows = ledger_of(each.root, each.generation, "odd").to_pylist()
        return {
            r["uri"]: r["reject_reason"]
            for r in rows
            if r["reject_reason"] in set(_REASONS.values())
        }

    assert reasons_of(cascaded) == reasons_of(built)
    assert len(reasons_of(built)) == len(unusable())


def test_suspected_positives_are_quarantined_and_never_selected(
    built: Built, cascaded: Built
) -> None:
    reference = manifest.read_reference_info(str(cascaded.root))
    assert reference is not None
    of_full, of_cascade = (
        next(s for s in each.generation.sources if s.name == "strays").counts.rejected
        for each in (built, cascaded)
    )
    assert 0 < of_cascade["suspected_positive"] <= of_full["suspected_positive"]
    rows = sidecar_rows(cascaded.root)
    unlabelled = rows.filter(pc.equal(rows["label_state"], "unknown"))
    assert pc.max(unlabelled["similarity"]).as_py() <= reference.ceiling


def test_larger_budget_keeps_what_a_smaller_one_chose(cascaded: Built, tmp_path: Path) -> None:
    root = tmp_path / "data"
    entries = cascaded.entries[:2]
    generations = [
        build_inline(cascade_config(root, [{**e, "weight": weight} for e in entries]))
        for weight in (0.3, 1.0)
    ]
    chosen = []
    for generation in generations:
        rows = sidecar_rows(root, generation)
        train = rows.filter(pc.and_(pc.equal(rows["split"], "train"), pc.equal(rows["label"], "")))
        chosen.append(set(train["content_hash"].to_pylist()))
    assert chosen[0] < chosen[1]
    assert len(chosen[0]) > 20


def test_beta_0_is_exactly_uniform(tmp_path: Path) -> None:
    config = cascade_config(tmp_path / "data", [squares(num_pictures=1200)], beta=0, budget=40)
    generation = build_inline(config)
    plan = manifest.read_plan(config.output.path, "squares")
    assert plan is not None
    rows = ledger_of(tmp_path / "data", generation, "squares")
    usable = rows.filter(pc.and_(pc.equal(rows["split"], "train"), rows["reject_reason"].is_null()))
    assert set(usable["inclusion_probability"].to_pylist()) == {np.float32(plan.scale)}
    is_drawn = [
        unit_hash(0, h) < np.float32(plan.scale) for h in usable["content_hash"].to_pylist()
    ]
    assert usable["selected"].to_pylist() == is_drawn
    assert 20 < sum(is_drawn) < 70
    assert usable["similarity"].null_count == len(is_drawn) - sum(is_drawn)


def test_data_sets_without_a_cascade_are_what_they_were(built: Built) -> None:
    config = built.config
    assert "cascade" not in config.row_inputs()["selection"]
    assert "cheap_encoder" not in config.row_inputs()
    assert "cheap_similarity" not in sidecar_rows(built.root).column_names
    assert manifest.read_table(str(built.root), "reference.parquet").column_names == [
        "content_hash", "perceptual_hash", "split", "embedding",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"cheap_similarity": 1.0}, "inclusion_probability against the rule"),
        ({"cheap_similarity": None}, "left without a full look, which could have decided"),
        ({"selected": True}, "selected without a full look"),
        ({"inclusion_probability": 0.9}, "inclusion_probability against the rule"),
    ],
)
def test_decision_against_the_plan_is_found(
    cascaded: Built, change: dict[str, Any], problem: str
) -> None:
    """Of a candidate without full look whose random number a cheap look has bounded."""
    table = ledger_of(cascaded.root, cascaded.generation, "squares")
    rule = read_rule(str(cascaded.root), "squares", cascaded.config.selection)
    assert find_wrong_decisions(table, rule) == []
    rows = table.to_pylist()
    row = next(
        r for r in rows if r["similarity"] is None and r["cheap_similarity"] is not None
        and r["reject_reason"] is None
    )  # fmt: skip
    row.update(change)
    problems = find_wrong_decisions(pa.Table.from_pylist(rows, schema=table.schema), rule)
    assert f"{row['key']}: {problem}" in problems


def test_verify_reads_the_decisions_of_a_cascade(cascaded: Built, tmp_path: Path) -> None:
    root = copy_dataset(cascaded.root, tmp_path / "data")
    plan = manifest.read_plan(str(root), "squares")
    assert plan is not None
    manifest.write_plan(str(root), plan.model_copy(update={"scale": plan.scale * 2}))
    problems = verify_dataset(str(root)).problems
    assert any("squares-" in p and "against the rule" in p for p in problems)
    assert not any("drawn-" in p for p in problems)


def test_revised_dataset_of_a_cascade_is_verified(cascaded: Built, tmp_path: Path) -> None:
    """Verdicts draw by the cascade's probability, and its column goes along."""
    root = copy_dataset(cascaded.root, tmp_path / "data")
    held = [
        key
        for file in cascaded.generation.quarantine
        for key in manifest.read_table(str(root), file.sidecar_path, ["key"])["key"].to_pylist()
    ]
    verdicts: dict[str, Verdict] = dict.fromkeys(held, "negative")
    verdicts[held[0]] = "positive"
    revised = apply_verdicts(str(root), verdicts, target="cat")
    assert not revised.quarantine
    assert verify_dataset(str(root)).problems == []
    key = sidecar_rows(root)["key"][0].as_py()
    take_down(str(root), TakenDown(keys=frozenset({key})))
    assert verify_dataset(str(root)).problems == []


def test_embeddings_of_a_cascade_are_of_full_looks_alone(cascaded: Built, tmp_path: Path) -> None:
    (path, *_) = sorted((cascaded.root / "embeddings/squares").rglob("*.parquet"))
    kept = pq.read_table(path)
    assert 0 < kept.num_rows - kept["embedding"].null_count < kept.num_rows / 2
    source = {"embeddings_from": str(cascaded.root)}
    with pytest.raises(ConfigError, match=r"was built with selection\.cascade, so that most"):
        build_inline(config_of(tmp_path / "data", cascaded.entries, build=source))
    with pytest.raises(ValueError, match="leave out one of them"):
        config_of(tmp_path, [], selection={"cascade": True}, build=source)


def test_cascade_is_not_turned_on_in_a_dataset_without_one(built: Built) -> None:
    with pytest.raises(ConfigError, match=r"selection\.cascade: None in the data set, True in"):
        build_inline(cascade_config(built.root, built.entries))


def test_data_set_of_a_cascade_is_not_mined(cascaded: Built) -> None:
    unused = Preprocessing(64, 64, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    scorer = Scorer(
        model=b"",
        reads="embedding",
        num_folds=1,
        preprocessing=unused,
        fingerprint="none",
        about={},
    )
    with pytest.raises(ConfigError, match=r"selection\.cascade=off"):
        mine(cascaded.config, scorer)


def test_network_of_one_size_is_refused() -> None:
    config = EncoderConfig(
        name="timm/vit_tiny_patch16_224", weights="random", image_size=224, runtime="torch"
    )
    with pytest.raises(
        ConfigError, match=r"selection\.cascade: encoder timm/vit_tiny\S+ cannot look"
    ):
        prepare_cascade(config, gpus_per_worker=0)


def test_plan_tells_how_many_get_the_full_look(cascaded: Built, built: Built) -> None:
    plan, other = (manifest.read_plan(str(each.root), "squares") for each in (cascaded, built))
    assert plan is not None
    assert other is not None
    assert plan.cascade is not None
    assert other.cascade is None
    rows = ledger_of(cascaded.root, cascaded.generation, "squares")
    share = 1 - rows["similarity"].null_count / rows.num_rows
    assert plan.cascade.expected_full_share == pytest.approx(share, rel=0.3)
    headers = [str(column.header) for column in plan_table([plan], 1).columns]
    assert "full look" in headers
    assert "full look" not in [str(column.header) for column in plan_table([other], 1).columns]


def test_setting_takes_the_words_of_yaml(tmp_path: Path) -> None:
    entry = folder_entry("cats", tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(
        f"target: {{name: cat}}\npositives: [{{name: cats, kind: image_folder, "
        f"params: {{path: {entry['params']['path']}}}}}]\noutput: {{path: data}}\n"
        "selection: {cascade: on}\n"
    )
    assert load_config(path).selection.cascade is True
    assert load_config(path, ["selection.cascade=off"]).selection.cascade is False
    assert load_config(path, ["selection.cascade=true"]).selection.cascade is True
