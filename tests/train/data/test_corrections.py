"""Importance and offset of samples, by `train.correction`."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import ConfigError
from support.train_runs import read_train_rows, write_dataset
from train.data.corrections import loss_terms, selection_curve
from train.data.rows import TrainRows


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> TrainRows:
    root = tmp_path_factory.mktemp("dataset")
    generation = write_dataset(root, noise=2.0, num_negatives=600)
    return read_train_rows(str(root), generation, ["cat"])


def effective_share(weights: np.ndarray) -> float:
    """Kish's effective sample size, in units of the sample."""
    return float(weights.sum() ** 2 / (weights**2).sum() / len(weights))


def test_selection_curve_follows_the_rule_that_selected() -> None:
    rng = np.random.default_rng(0)
    stream = rng.uniform(-0.5, 0.9, 200_000)
    probability = np.clip(0.2 * np.exp(6 * (stream - 0.4)), 0.01, 1)
    kept = rng.random(len(stream)) < probability
    knots, log_rate = selection_curve(
        stream[kept].astype(np.float32), (1 / probability[kept]).astype(np.float32)
    )
    at = np.linspace(-0.4, 0.8, 50)
    wanted = np.log(np.clip(0.2 * np.exp(6 * (at - 0.4)), 0.01, 1))
    error = np.abs(np.interp(at, knots, log_rate) - wanted)
    assert error.mean() < 0.05, "of a range of 4.6"
    assert error.max() < 0.3, "where the floor bends the curve, and few are selected"


def test_offset_needs_no_weights_where_one_source_is_selected_by_one_rule(rows: TrainRows) -> None:
    log_rate = np.clip(4 * (rows.similarity_N - 0.5), np.log(0.01), 0)
    is_negative = rows.label_N == ""
    one_rule = replace(
        rows,
        inverse_probability_N=np.where(is_negative, np.exp(-log_rate), 1).astype(np.float32),
    )
    terms = loss_terms(one_rule, "offset")
    inverse = one_rule.inverse_probability_N
    assert effective_share(terms.importance_N[is_negative]) > 0.99
    assert effective_share(inverse[is_negative]) < 0.5, "of which weights of 1 / pi leave less"
    shift = terms.offset_N - log_rate
    assert shift[is_negative].std() < 0.1
    assert shift[~is_negative].std() < 0.3, "positives go by the same curve"


def test_weighted_rate_of_every_source_is_that_of_the_offset(rows: TrainRows) -> None:
    """What makes the offset exact: at its similarity, each negative then stands for as many."""
    terms = loss_terms(rows, "offset")
    rate = terms.importance_N / rows.inverse_probability_N
    ratio = rate / np.exp(terms.offset_N)
    assert ratio == pytest.approx(ratio[0], rel=1e-4)
    is_negative = rows.label_N == ""
    in_stream = np.average(
        np.exp(terms.offset_N)[is_negative], weights=rows.inverse_probability_N[is_negative]
    )
    assert in_stream == pytest.approx(1, rel=1e-4), "so that the prior is that of `weight`"


def test_none_corrects_nothing_and_weight_by_the_inverse_probability(rows: TrainRows) -> None:
    none = loss_terms(rows, "none")
    weight = loss_terms(rows, "weight")
    assert set(none.importance_N) == {1}
    assert np.array_equal(weight.importance_N, rows.inverse_probability_N)
    assert not none.offset_N.any()
    assert not weight.offset_N.any()


def test_offset_without_similarities_is_refused(rows: TrainRows) -> None:
    similarity = rows.similarity_N.copy()
    similarity[:3] = np.nan
    broken = replace(rows, similarity_N=similarity)
    with pytest.raises(ConfigError, match=r"train\.correction: offset .* 3 of 640 have none"):
        loss_terms(broken, "offset")
    loss_terms(broken, "weight")
