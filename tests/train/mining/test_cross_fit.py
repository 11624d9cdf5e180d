"""Heads that each leave out a fold: which rows they are trained on, and that it happens once."""

from pathlib import Path

import pytest
import torch

from pipeline.dataset import Dataset
from pipeline.selection.mining import fold_of
from support.train_runs import state_of
from train.loop.state import TrainState
from train.mining import cross_fit
from train.mining.cross_fit import fold_heads, read_folds
from train.model.detector import Head

NUM_FOLDS = 3


@pytest.fixture
def state(dataset: Path, tmp_path: Path) -> TrainState:
    section = {"steps": 30, "batch_size": 16, "hidden_dim": 8, "learning_rate": 0.01, "folds": 1}
    return state_of(dataset, tmp_path / "run", **section)


def heads_of(state: TrainState) -> list[Head]:
    run = Path(state.train_config.run)
    run.mkdir(exist_ok=True)
    return fold_heads(
        run,
        state.config,
        state.train_config,
        state.dataset,
        generation=1,
        num_folds=NUM_FOLDS,
        num_steps=state.train_config.steps,
    )


def test_a_fold_leaves_out_its_negatives_and_nothing_else(state: TrainState) -> None:
    root = state.config.output.path
    hash_of = {}
    for shard in state.rows.shards:
        rows = Dataset(root).read_sidecar(shard, ("key", "content_hash", "label"))
        hash_of |= {row["key"]: (row["content_hash"], row["label"]) for row in rows.to_pylist()}
    left_out: list[str] = []
    fold_N, embedding_ND = read_folds(root, state.rows, NUM_FOLDS)
    assert len(embedding_ND) == len(fold_N) == len(state.rows.keys)
    for fold in range(NUM_FOLDS):
        rows = state.rows.where(fold_N != fold)
        kept = rows.keys.to_pylist()
        assert len(kept) == len(embedding_ND[fold_N != fold]) == rows.starts[-1]
        gone = set(hash_of) - set(kept)
        assert {hash_of[key][1] for key in gone} == {""}
        assert set(fold_of([hash_of[key][0] for key in gone], NUM_FOLDS)) == {fold}
        assert sum(map(len, rows.positives)) == sum(map(len, state.rows.positives))
        for numbers in rows.negatives:
            assert {hash_of[kept[n]][1] for n in numbers} <= {""}
        left_out += gone
    assert sorted(left_out) == sorted(key for key, (_, label) in hash_of.items() if not label)


def test_heads_differ_by_fold_and_are_kept(
    state: TrainState, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = heads_of(state)
    example = torch.randn(
        4, state.dataset.embedding_dim, generator=torch.Generator().manual_seed(0)
    )
    logits = [head(example) for head in heads]
    assert not torch.equal(logits[0], logits[1])
    monkeypatch.delattr(cross_fit, "train_step")
    again = [head(example) for head in heads_of(state)]
    assert all(torch.equal(a, b) for a, b in zip(logits, again, strict=True))
