"""A first head chooses half: exact probabilities, the hardest, spread, and no suspect."""

from typing import Any

import numpy as np
import pytest

from pipeline.dataset.keys import sha256_hex, unit_hash
from pipeline.selection import hardest
from pipeline.selection.first_head import fit_first_heads
from pipeline.selection.hardest import (
    NUM_FOLDS,
    Candidates,
    Positives,
    choose_hardest,
    deep_candidates,
    take_spread,
)
from pipeline.selection.mining import fold_of

NUM, DIM = 240, 40
NOTHING = np.array([], "S64")


def unit_rows(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


class World:
    """A stream in which the first feature tells how like the target a candidate is."""

    def __init__(self, num: int = NUM, *, mean_probability: float = 0.1) -> None:
        rng = np.random.default_rng(0)
        self.embedding_ND = rng.normal(0, 1, (num, DIM))
        self.embedding_ND[:, 0] += 1
        self.embedding_ND = unit_rows(self.embedding_ND)
        positive_PD = rng.normal(0, 1, (60, DIM))
        positive_PD[:, 0] += 6
        hashes = tuple(sha256_hex(f"positive {n}".encode()) for n in range(60))
        self.positives = Positives(unit_rows(positive_PD), hashes)
        self.hashes = [sha256_hex(f"candidate {n}".encode()) for n in range(num)]
        self.similarity_N = self.embedding_ND[:, 0]
        weight_N = np.exp(2.0 * self.similarity_N.astype(float))
        self.probability_N = np.minimum(mean_probability * weight_N / weight_N.mean(), 1)
        self.fold_N = fold_of(self.hashes, NUM_FOLDS)

    def candidates(self, seed: int, **columns: Any) -> Candidates:
        chance_N = np.array([unit_hash(seed, each) for each in self.hashes])
        num = len(self.hashes)
        given = {
            "file_N": np.arange(num) // 50,
            "row_N": np.arange(num) % 50,
            "hash_N": np.array(self.hashes, "S64"),
            "fold_N": self.fold_N,
            "similarity_N": self.similarity_N,
            "probability_N": self.probability_N,
            "is_drawn_N": chance_N < self.probability_N,
            "is_unknown_N": np.zeros(num, bool),
        }
        return Candidates(**(given | columns))

    def read(self, chosen: np.ndarray) -> np.ndarray:
        return np.asarray(self.embedding_ND[chosen])

    def choose(self, found: Candidates, **options: Any) -> set[str]:
        given = {"kept": NOTHING, "is_guarded": False}
        return choose_hardest(found, self.read, self.positives, **(given | options))


def z_of_weighted_counts(world: World, num_seeds: int) -> np.ndarray:
    """How far weighted counts by likeness are from the truth, in standard errors."""
    edges = np.quantile(world.similarity_N, [0, 0.5, 0.75, 0.9, 1])
    estimates = []
    for seed in range(num_seeds):
        found = world.candidates(seed)
        taken = world.choose(found)
        is_taken_N = np.array([each in taken for each in world.hashes])
        selected_N = found.is_drawn_N | is_taken_N
        weight_N = 1 / np.where(is_taken_N, 1, world.probability_N)
        here = (world.similarity_N[selected_N], edges)
        estimates.append(np.histogram(*here, weights=weight_N[selected_N])[0])
    truth = np.histogram(world.similarity_N, edges)[0]
    deviation = np.std(estimates, axis=0) / num_seeds**0.5
    return np.asarray((np.mean(estimates, axis=0) - truth) / deviation)


def test_weighted_counts_are_unbiased_over_many_draws() -> None:
    z = z_of_weighted_counts(World(), 400)
    assert np.abs(z).max() < 4, z


def test_a_head_that_has_seen_the_fold_would_bias_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the test above can fail: this head gives what it was fitted on a smaller logit."""

    def fit_with_all(*arguments: Any, **folds: Any) -> Any:
        num = len(folds["negative_fold_N"])
        everything = folds | {"negative_fold_N": np.full(num, -1)}
        return fit_first_heads(*arguments, **everything)

    monkeypatch.setattr(hardest, "fit_first_heads", fit_with_all)
    z = z_of_weighted_counts(World(), 400)
    assert np.abs(z).max() > 6, z


def test_as_many_are_added_as_are_drawn_and_they_are_the_hardest() -> None:
    world = World(2000)
    taken = world.choose(world.candidates(seed=1))
    is_taken_N = np.array([each in taken for each in world.hashes])
    added = (1 - world.probability_N[is_taken_N]).sum()
    assert added == pytest.approx(world.probability_N.sum(), abs=NUM_FOLDS)
    deepest = np.argsort(-world.similarity_N)[: 4 * is_taken_N.sum()]
    assert is_taken_N[deepest].sum() > 0.9 * is_taken_N.sum()


def test_what_a_smaller_budget_took_stays_and_counts() -> None:
    world = World(2000)
    found = world.candidates(seed=1)
    kept = np.array(world.hashes[:70], "S64")
    taken = world.choose(found, kept=kept)
    assert {each.decode() for each in kept} <= taken
    is_taken_N = np.array([each in taken for each in world.hashes])
    added = (1 - world.probability_N[is_taken_N]).sum()
    assert added == pytest.approx(world.probability_N.sum(), abs=NUM_FOLDS)


def test_unlabelled_images_like_the_target_are_passed_over_and_verified_ones_are_not() -> None:
    world = World(1000)
    world.embedding_ND[:60] = world.positives.embedding_PD  # of which the first 30 are unlabelled
    is_unknown_N = np.arange(1000) < 30
    found = world.candidates(0, is_unknown_N=is_unknown_N)
    unguarded, guarded = (world.choose(found, is_guarded=is_on) for is_on in (False, True))
    unlabelled, verified = set(world.hashes[:30]), set(world.hashes[30:60])
    assert len(unguarded & unlabelled) > 8
    assert len(guarded & unlabelled) <= 2, "one in twenty of the positives is less sure than that"
    assert len(guarded & verified) > 8


@pytest.mark.parametrize("without", ["negatives", "drawn ones", "anything to add"])
def test_too_little_for_a_head_is_no_error(without: str) -> None:
    world = World()
    found = world.candidates(0)
    if without == "negatives":
        assert world.choose(Candidates(*(column[:0] for column in found))) == set()
    elif without == "drawn ones":
        found = found._replace(is_drawn_N=np.zeros(NUM, bool))
        taken = world.choose(found)
        is_taken_N = np.array([each in taken for each in world.hashes])
        assert world.similarity_N[is_taken_N].min() > np.median(world.similarity_N)
    else:
        assert world.choose(found._replace(probability_N=np.ones(NUM))) == set()


def test_deep_candidates_add_twice_what_is_wanted_and_not_one_more() -> None:
    rng = np.random.default_rng(0)
    logit_N, probability_N = rng.normal(0, 1, 500), rng.uniform(0.01, 0.3, 500)
    logit_N[::7] = -np.inf
    deep = deep_candidates(logit_N, probability_N, 20.0)
    added = (1 - probability_N[deep]).sum()
    assert 40 <= added < 41
    assert logit_N[deep].min() >= np.delete(logit_N, deep).max()
    assert len(deep_candidates(logit_N, probability_N, 1e6)) == np.isfinite(logit_N).sum()
    assert not len(deep_candidates(logit_N, probability_N, 0.0))


@pytest.mark.parametrize("num", [60, 3000])
def test_those_taken_are_unlike_each_other(num: int) -> None:
    """Half of the deep ones are nearly alike, and the harder half."""
    rng = np.random.default_rng(4)
    embedding_KD = rng.normal(0, 1, (num, 16))
    embedding_KD[: num // 2] = embedding_KD[0] + 0.1 * embedding_KD[: num // 2]
    hashes = [sha256_hex(f"deep {n}".encode()) for n in range(num)]
    added_K = rng.uniform(0.7, 1, num)
    options = {"added_K": added_K, "wanted": added_K.sum() / 2}
    taken = take_spread(hashes, unit_rows(embedding_KD), **options)
    is_taken_K = np.array([each in taken for each in hashes])
    assert added_K[is_taken_K].sum() == pytest.approx(added_K.sum() / 2, abs=1 + num / 1024)
    assert is_taken_K[num // 2 :].mean() > 2 * is_taken_K[: num // 2].mean()
    assert take_spread(hashes, unit_rows(embedding_KD), **options) == taken


def test_copies_come_last() -> None:
    embedding_KD = unit_rows(np.repeat(np.eye(4), 5, axis=0))
    hashes = [sha256_hex(f"{n}".encode()) for n in range(20)]
    taken = take_spread(hashes, embedding_KD, added_K=np.ones(20), wanted=4)
    kinds = {n // 5 for n in range(20) if hashes[n] in taken}
    assert kinds == {0, 1, 2, 3}
    assert len(take_spread(hashes, embedding_KD, added_K=np.ones(20), wanted=10)) == 10


def test_no_head_has_seen_the_fold_that_it_judges() -> None:
    rng = np.random.default_rng(0)
    positive_PD, negative_ND = rng.normal(1, 1, (30, 4)), rng.normal(-1, 1, (60, 4))
    folds = {"positive_fold_P": np.arange(30) % 3, "negative_fold_N": np.arange(60) % 3}

    def fit(negative_ND: np.ndarray) -> list[Any]:
        return fit_first_heads(positive_PD, negative_ND, np.full(60, 0.5), **folds, num_folds=3)

    heads = fit(negative_ND)
    negative_ND[1::3] += 5
    others = fit(negative_ND)
    same = [(a.weight_D == b.weight_D).all() for a, b in zip(heads, others, strict=True)]
    assert same == [False, True, False]
    for fold, head in enumerate(heads):
        assert (head.logits(positive_PD[fold::3]) >= head.guard - 1e-4).mean() >= 0.9
