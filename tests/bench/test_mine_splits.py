"""Two rounds of mining in many splits of the same photographs, on their embeddings.

    PHOTOS=/path/to/photos pytest -m slow tests/bench/test_mine_splits.py -s --timeout 3600

The choosing is that of `pipeline.selection.mining`, by heads that each leave a fold out; shards
are not written. Half of the candidates are the test, so that look-alikes are many. The table is in
docs/method.md.

Shapes: N candidates.
"""

import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.config.loading import load_config
from pipeline.dataset import Dataset
from pipeline.dataset.keys import unit_hash
from pipeline.dataset.schema import embedding_matrix, with_columns
from pipeline.selection.mining import Eligible, decide, fit_log_scale, fold_of, log_probability
from support.builds import build_inline
from train.loss.losses import cross_entropy, importance_weights
from train.metrics.calibration import fit_platt
from train.metrics.ranking import threshold_at_tpr
from train.model.detector import Head

CONFIG = Path(__file__).parents[2] / "configs" / "photos.yaml"
SOURCES = ("imagenet", "near", "random", "squares", "screens")  # those that take little time
NUM_SPLITS, NUM_FIRST, NUM_MINED, NUM_STEPS, NUM_FOLDS = 10, 60, 30, 200, 3


def read_candidates(root: str) -> pa.Table:
    """Usable rows of all sources, with embeddings, of a data set built for that."""
    overrides = ["selection.budget=20", "selection.beta=0.0", "selection.eval_budget=800"]
    overrides += ["selection.pilot=60", "split.val=0.15", "split.test=0.5", f"variables.OUT={root}"]
    config = load_config(CONFIG, overrides)
    sources = tuple(entry for entry in config.sources if entry.name in SOURCES)
    generation = build_inline(config.model_copy(update={"sources": sources}))
    tables = []
    for source in generation.sources:
        for number, table in enumerate(source.ledger, start=1):
            rows = Dataset(root).read_table(table.path)
            folder = Path(root) / f"embeddings/{source.name}/{number:06d}"
            kept = pa.concat_tables(
                Dataset(root).read_table(str(path.relative_to(root)), ["embedding"])
                for path in sorted(folder.glob("*.parquet"))
            )
            rows = rows.append_column("embedding", kept["embedding"])
            tables.append(rows.filter(rows["reject_reason"].is_null()))
    return pa.concat_tables(tables)


def train_head(
    embedding_ND: torch.Tensor, is_positive_N: np.ndarray, weight_N: np.ndarray, seed: int
) -> Head:
    torch.manual_seed(seed)
    head = Head(embedding_ND.shape[1], 1, hidden_dim=256, dropout=0.1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)
    rng = np.random.default_rng(seed)
    positives, negatives = np.flatnonzero(is_positive_N), np.flatnonzero(~is_positive_N)
    for _ in range(NUM_STEPS):
        rows = np.concatenate([rng.choice(positives, 32), rng.choice(negatives, 96)])
        targets_BK = torch.from_numpy(is_positive_N[rows].astype(np.float32))[:, None]
        weights = importance_weights(
            targets_BK, torch.from_numpy(weight_N[rows]), max_weight=20.0, reduce_sum=lambda x: x
        )
        loss = (weights.weight_BK * cross_entropy(head(embedding_ND[rows]), targets_BK)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head.eval()


class Split:
    """One split of the candidates, and one draw of its training negatives."""

    def __init__(self, rows: pa.Table, seed: int) -> None:
        self.seed = seed
        self.embedding_ND = torch.from_numpy(embedding_matrix(rows))
        place_N = np.array([unit_hash("place", seed, h) for h in rows["content_hash"].to_pylist()])
        self.split_N = np.where(place_N < 0.35, "train", np.where(place_N < 0.5, "val", "test"))
        self.is_positive_N = np.array([label != "" for label in rows["label"].to_pylist()])
        self.rows = with_columns(rows, split=pa.array(self.split_N.tolist()))
        self.is_candidate_N = ~self.is_positive_N & (self.split_N == "train")
        self.fold_N = fold_of(rows["content_hash"].to_pylist(), NUM_FOLDS)

    def draw(self, number: float) -> pa.Table:
        probability = np.float32(number / self.is_candidate_N.sum())
        chance_N = np.array(
            [unit_hash(self.seed, h) for h in self.rows["content_hash"].to_pylist()]
        )
        probability_N = np.where(self.is_positive_N, np.float32(1), probability)
        return with_columns(
            self.rows,
            inclusion_probability=pa.array(probability_N, pa.float32()),
            selected=pa.array(chance_N < probability_N),
        )

    def logits(self, rows: pa.Table, is_seen_N: np.ndarray) -> np.ndarray:
        """Of all candidates, by a head trained on those of `rows` that are selected and seen."""
        used = np.flatnonzero(rows["selected"].to_numpy() & (self.split_N == "train") & is_seen_N)
        weight_N = 1 / rows["inclusion_probability"].to_numpy()[used]
        head = train_head(self.embedding_ND[used], self.is_positive_N[used], weight_N, self.seed)
        with torch.inference_mode():
            return head(self.embedding_ND)[:, 0].numpy()

    def mine(self, rows: pa.Table) -> pa.Table:
        log_odds_N = np.empty(rows.num_rows, np.float32)
        scales = []
        val_N = self.split_N == "val"
        for fold in range(NUM_FOLDS):
            here_N = np.equal(self.fold_N, fold)
            logits_N = self.logits(rows, self.is_positive_N | ~here_N)
            scale, bias = fit_platt(
                logits_N[val_N], self.is_positive_N[val_N], np.ones(val_N.sum())
            )
            log_odds_N[here_N] = (scale * logits_N + bias)[here_N]
            own_N = here_N & self.is_candidate_N
            eligible = Eligible(
                log_probability(log_odds_N[own_N]),
                rows["inclusion_probability"].to_numpy()[own_N].astype(float),
            )
            scales.append(fit_log_scale(lambda own=eligible: [own], budget=NUM_MINED / NUM_FOLDS))
        # What is here has been looked through.
        guard_N = np.full(rows.num_rows, -np.inf, np.float32)
        return decide(
            rows, log_odds_N=log_odds_N, margin_N=guard_N, log_scales=scales, seed=self.seed
        ).rows

    def rates(self, rows: pa.Table) -> dict[str, float]:
        """False-positive rates on the test, near and all others, at TPR 95 % and 99 %."""
        logits_N = self.logits(rows, np.ones(rows.num_rows, bool))
        test_N = self.split_N == "test"
        near_N = np.array([s == "near" for s in rows["stratum"].to_pylist()])
        found = {"train": float((rows["selected"].to_numpy() & self.is_candidate_N).sum())}
        for tpr in (0.95, 0.99):
            threshold = threshold_at_tpr(logits_N[test_N & self.is_positive_N], tpr=tpr)
            for name, of_N in (("near", near_N), ("other", ~near_N)):
                own_N = test_N & ~self.is_positive_N & of_N
                found[f"{name} at {tpr:.0%}"] = float((logits_N[own_N] >= threshold).mean())
        return found


@pytest.mark.slow
@pytest.mark.skipif("PHOTOS" not in os.environ, reason="PHOTOS: a folder of photographs")
def test_mined_negatives_are_worth_more_than_as_many_uniform_ones(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    rows = read_candidates(str(tmp_path / "data"))
    results: dict[str, list[dict[str, float]]] = defaultdict(list)
    for seed in range(NUM_SPLITS):
        split = Split(rows, seed)
        first = split.draw(NUM_FIRST)
        once = split.mine(first)
        arms = {"0: uniform": first, "1: mined": once, "2: mined": split.mine(once)}
        arms["as many, uniform"] = split.draw(NUM_FIRST + 2 * NUM_MINED)
        for name, chosen in arms.items():
            results[name].append(split.rates(chosen))
    for name, found in results.items():
        means = {key: np.mean([each[key] for each in found]) for key in found[0]}
        print(f"{name:18} {means.pop('train'):5.0f}", *(f"{k} {v:.2%}" for k, v in means.items()))
    for key in ("near at 95%", "near at 99%", "other at 99%"):
        mined, uniform = (
            np.array([each[key] for each in results[name]])
            for name in ("2: mined", "as many, uniform")
        )
        gain = uniform - mined
        error = gain.std(ddof=1) / len(gain) ** 0.5
        print(f"{key}: uniform - mined {gain.mean():.2%} +- {error:.2%} over {len(gain)} splits")
    assert np.mean([r["near at 99%"] for r in results["2: mined"]]) < np.mean(
        [r["near at 99%"] for r in results["0: uniform"]]
    )
