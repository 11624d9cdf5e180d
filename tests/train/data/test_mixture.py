"""`train.mixture` sets what is drawn and what the loss is made of."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.dataset import Dataset
from pipeline.errors import ConfigError
from support.train_runs import (
    SHORT,
    read_train_rows,
    run_training,
    watch_steps,
    write_config,
    write_dataset,
)
from train.config import MixtureEntry, load_train_config
from train.data.corrections import loss_terms
from train.data.mixture import Mixture, mix
from train.data.order import BatchOrder
from train.data.rows import TrainRows
from train.loop.state import TrainState
from train.loss.losses import importance_weights
from train.model.info import read_model_info

# 60 negatives each of near_animals (pi 0.8), scenes (0.1) and noise (0.2); 40 cats, 40 dogs.
ENTRIES = [
    MixtureEntry(source="near_*", proportion=0.3),
    MixtureEntry(source="noise", repeat=1.5),
    MixtureEntry(source="my_dog", proportion=0.125),
]
NEGATIVES_PER_BATCH = 25


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dataset")
    write_dataset(root, targets=("cat", "dog"), num_negatives=180, image_size=32, noise=2.0)
    return root


@pytest.fixture(scope="module")
def rows(dataset: Path) -> TrainRows:
    return read_train_rows(str(dataset), Dataset(str(dataset)).read_generation(), ["cat", "dog"])


def sources_of(rows: TrainRows) -> np.ndarray:
    return np.array([key.rsplit("-", 2)[0] for key in rows.keys.to_pylist()])


def draw(mixture: Mixture, num_batches: int, **changes: Any) -> np.ndarray:
    """rows of num_batches batches of 8 positives and 25 negatives, a line each."""
    settings = {"num_positives": 8, "batch_size": 33, "window": 2, "seed": 1} | changes
    order = BatchOrder(
        [share.stream for share in mixture.positives],
        [share.stream for share in mixture.negatives],
        **settings,
    )
    return np.stack([order.batch(step)[0] for step in range(num_batches)])


def shares(names: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    weights = np.ones(len(names)) if weights is None else weights
    return {
        str(name): float(weights[names == name].sum() / weights.sum()) for name in np.unique(names)
    }


def test_every_1000_samples_of_a_stream_hold_the_exact_counts(rows: TrainRows) -> None:
    names = sources_of(rows)
    drawn = draw(mix(rows, ENTRIES), 375)
    negatives, positives = drawn[:, 8:].ravel(), drawn[:, :8].ravel()
    for start in range(0, 9 * NEGATIVES_PER_BATCH * 40 - 1000, 333):
        window = shares(names[negatives[start : start + 1000]])
        assert window == {"near_animals": 0.3, "noise": 0.5, "scenes": 0.2}
    for start in range(0, 2000, 77):
        assert shares(names[positives[start : start + 1000]]) == {"my_cat": 0.875, "my_dog": 0.125}
    counts = np.bincount(negatives, minlength=len(names))
    for name in ("near_animals", "noise", "scenes"):
        of_source = counts[names == name]
        assert of_source.max() - of_source.min() <= 1, "within a source all alike"


def test_shares_are_those_of_the_weight_in_the_loss_too(rows: TrainRows) -> None:
    """near_animals weigh 1.25 each and scenes 10: by 1 / pi only, 0.3 would be a few percent."""
    names = sources_of(rows)
    mixture = mix(rows, [MixtureEntry(source="near_*", proportion=0.3)])
    terms = loss_terms(rows, "weight", mixture=mixture)
    drawn = draw(mixture, 400)[:, 8:].ravel()
    of_weight = shares(names[drawn], terms.importance_N[drawn])
    assert of_weight["near_animals"] == pytest.approx(0.3, abs=0.002)
    assert of_weight["scenes"] / of_weight["noise"] == pytest.approx(10 / 5, rel=0.02), "as ever"
    by_stream = shares(names[drawn], rows.inverse_probability_N[drawn])
    assert by_stream["near_animals"] < 0.1
    # The same of the weights that a loss has, normalised batch by batch.
    importance = torch.from_numpy(terms.importance_N[drawn])
    weights = importance_weights(
        torch.zeros(len(drawn), 1), importance, max_weight=20, reduce_sum=lambda x: x
    ).weight_BK[:, 0]
    assert shares(names[drawn], weights.numpy())["near_animals"] == pytest.approx(0.3, abs=0.002)


def test_repeat_multiplies_draws_and_weight_and_repeat_1_changes_nothing(rows: TrainRows) -> None:
    names = sources_of(rows)
    negative = rows.label_N == ""
    natural = shares(names[negative], rows.inverse_probability_N[negative])
    for repeat, of_draws in ((1.0, 1 / 3), (2.0, 2 / 3)):
        mixture = mix(rows, [MixtureEntry(source="noise", repeat=repeat)])
        terms = loss_terms(rows, "weight", mixture=mixture)
        drawn = draw(mixture, 400)[:, 8:].ravel()
        assert shares(names[drawn])["noise"] == pytest.approx(of_draws, abs=0.001)
        weight = shares(names[drawn], terms.importance_N[drawn])
        others = (1 - of_draws) / (2 / 3)
        ratio = weight["noise"] / (weight["scenes"] + weight["near_animals"])
        wanted = natural["noise"] * repeat / ((1 - natural["noise"]) * others)
        assert ratio == pytest.approx(wanted, rel=0.01)
    once = mix(rows, [MixtureEntry(source="noise", repeat=1)])
    weights = loss_terms(rows, "weight", mixture=once).importance_N
    assert weights == pytest.approx(rows.inverse_probability_N, rel=0.002)


def test_offset_is_of_the_population_that_the_mixture_states(rows: TrainRows) -> None:
    """What makes it exact: at its similarity, each draw stands for as many."""
    mixture = mix(rows, ENTRIES)
    stands_for = loss_terms(rows, "weight", mixture=mixture).importance_N
    terms = loss_terms(rows, "offset", mixture=mixture)
    ratio = terms.importance_N / stands_for / np.exp(terms.offset_N)
    assert ratio == pytest.approx(ratio[0], rel=1e-4)
    negative = rows.label_N == ""
    weights = (stands_for * mixture.draw_rate_N)[negative]
    assert np.average(np.exp(terms.offset_N)[negative], weights=weights) == pytest.approx(1, 1e-4)


def test_no_entries_are_no_mixture(rows: TrainRows) -> None:
    mixture = mix(rows, [])
    assert set(mixture.importance_factor_N) == set(mixture.draw_rate_N) == {1.0}
    for correction in ("weight", "offset"):
        plain = loss_terms(rows, correction)
        mixed = loss_terms(rows, correction, mixture=mixture)
        assert mixed.importance_N == pytest.approx(plain.importance_N, rel=1e-6)
        assert mixed.offset_N == pytest.approx(plain.offset_N, abs=1e-5)


def test_proportion_0_draws_none_and_a_tiny_source_is_not_starved(rows: TrainRows) -> None:
    names = sources_of(rows)
    entries = [
        MixtureEntry(source="scenes", proportion=0),
        MixtureEntry(source="noise", repeat=0.0003),
    ]
    drawn = draw(mix(rows, entries), 400)[:, 8:].ravel()
    assert shares(names[drawn]) == {"near_animals": 0.999, "noise": 0.001}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"source": "nera_*", "proportion": 0.1}],
         r"no source with training samples matches 'nera_\*'\. Sources are positives: my_cat, "
         r"my_dog; negatives: near_animals, noise, scenes"),
        ([{"source": "noise", "stream": "positives", "repeat": 2}],
         r"no source with positives matches 'noise'"),
        ([{"source": "near_*", "proportion": 0.7}, {"source": "noise", "proportion": 0.6}],
         r"shares of negatives add up to 1\.3 \(near_\* 0\.7, noise 0\.6\)"),
        ([{"source": "noise", "repeat": 4}], r"shares of negatives add up to 1\.333"),
        ([{"source": "my_*", "proportion": 0.5}], r"positives add up to 0\.5 .* no other source"),
        ([{"source": "noise", "repeat": 2}, {"source": "no*", "proportion": 0.1}],
         r"source noise is in 'noise' and in 'no\*'"),
        ([{"source": "*", "repeat": 1}], r"'\*' has positives and negatives; add stream"),
        ([{"source": "my_cat", "max_repetition_factor": 0.5}],
         r"each of the 40 samples of my_cat would be drawn 0\.6 times, over its "
         r"max_repetition_factor 0\.5; lower its share from 0\.5 to at most 0\.417"),
    ],
)  # fmt: skip
def test_a_mixture_that_cannot_be_is_refused_before_the_first_step(
    dataset: Path, tmp_path: Path, entries: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"train\.mixture: .*{message}"):
        run_training(dataset, tmp_path / "run", **SHORT, folds=1, mixture=entries)
    assert not (tmp_path / "run" / "log.jsonl").exists()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"source": "a", "proportion": 0.1, "repeat": 2}, "a: give proportion or repeat, not both"),
        ({"source": "a", "proportion": 0.0004}, "a: proportion 0.0004 is less than 1 in 1,000"),
        ({"source": "a", "proportion": 1.2}, r"mixture\.0\.proportion: .*less than or equal to 1"),
        ({"source": "a", "weight": 1}, r"mixture\.0\.weight: Extra inputs are not permitted"),
    ],
)
def test_entry_errors_name_the_field(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    path = write_config(
        tmp_path / "c.yaml", dataset=tmp_path, run=tmp_path / "run", train={"mixture": [entry]}
    )
    with pytest.raises(ConfigError, match=message):
        load_train_config(path)


def test_a_run_draws_its_mixture_and_knows_the_priors_that_follow(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []

    def look(state: TrainState, batch: Any, _: int) -> None:
        names.extend(sources_of(state.rows)[batch.rows_B.numpy()])
        own = batch.importance_B.numpy()
        assert own == pytest.approx(state.terms.importance_N[batch.rows_B.numpy()])

    watch_steps(monkeypatch, look)
    entries = [entry.model_dump(exclude_none=True) for entry in ENTRIES]
    section = SHORT | {"steps": 100, "batch_size": 20, "checkpoint_every": 500}
    run = run_training(dataset, tmp_path / "run", **section, mixture=entries)
    drawn = np.array(names)
    of_negatives = shares(drawn[~np.char.startswith(drawn, "my_")])
    assert of_negatives == pytest.approx({"near_animals": 0.3, "noise": 0.5, "scenes": 0.2}, 0.01)
    info = read_model_info(run)
    assert info.trained_priors == pytest.approx({"cat": 0.25 * 0.875, "dog": 0.25 * 0.125})
    with pytest.raises(ConfigError, match=r"other settings \(mixture was"):
        run_training(dataset, run, resume=True, **section)
