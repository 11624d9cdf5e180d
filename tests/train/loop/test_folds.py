"""Cross-fitted heads: what each has not seen, and what is then said of held-out rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.dataset import Dataset
from pipeline.errors import InfinegError
from support.train_runs import SHORT, run_training, state_of, write_dataset
from train.data.batches import Batch
from train.data.rows import folds_of, join_rows, read_embeddings
from train.evaluate.run import evaluate_run
from train.loop.state import TrainState
from train.loop.step import train_step
from train.loop.stream import embedding_batches
from train.metrics.predictions import thin_to_uniform
from train.model.detector import load_model

NUM_FOLDS = 5
MIXED = {"regularization": {"mixup": 0.4, "label_smoothing": 0.1}}


def heads_after(state: TrainState, change: Callable[[Batch], Batch]) -> list[torch.Tensor]:
    """The first weights of each head after a few steps on changed batches."""
    batches = embedding_batches(state, read_embeddings(state.config.output.path, state.rows))
    head = state.detector.head.train()
    for step in range(6):
        train_step(state, head, change(batches.read(step)), step)
    return [fold[0].weight.detach().clone() for fold in head.folds]


@pytest.mark.parametrize(
    "section", [{}, {"loss": "focal"}, {"loss": "ohem"}, {"max_grad_norm": 1e-3}, MIXED]
)
def test_no_head_depends_on_the_rows_of_its_fold(
    dataset: Path, tmp_path: Path, section: dict[str, Any]
) -> None:
    """Neither on what they show, nor on their labels."""
    states = [state_of(dataset, tmp_path / "run", **SHORT, **section) for _ in range(2)]
    fold_N = torch.from_numpy(states[0].rows.fold_N)
    assert set(fold_N.tolist()) == set(range(NUM_FOLDS))

    def spoil(batch: Batch) -> Batch:
        is_spoiled_B = fold_N[batch.rows_B] == 2
        return batch._replace(
            inputs=torch.where(is_spoiled_B[:, None], -batch.inputs, batch.inputs),
            targets_BK=torch.where(
                is_spoiled_B[:, None], 1 - batch.targets_BK, batch.targets_BK
            ),
        )  # fmt: skip

    plain, spoilt = heads_after(states[0], lambda batch: batch), heads_after(states[1], spoil)
    same = [torch.equal(a, b) for a, b in zip(plain, spoilt, strict=True)]
    assert same == [False, False, True, False, False]


def test_rows_of_a_group_share_a_fold_whatever_else_there_is() -> None:
    groups = [f"film {i // 3}" for i in range(3000)]
    fold_N = folds_of(pa.chunked_array([groups]), NUM_FOLDS)
    assert (fold_N.reshape(-1, 3) == fold_N[::3, None]).all()
    assert np.bincount(fold_N).min() > 500
    assert (folds_of(pa.chunked_array([groups[600:]]), NUM_FOLDS) == fold_N[600:]).all()


def test_rows_are_those_of_train_and_val_and_of_one_fold_only_those_of_train(
    dataset: Path, tmp_path: Path
) -> None:
    generation = Dataset(str(dataset)).read_generation()
    for folds, splits in ((5, {"train", "val"}), (1, {"train"})):
        state = state_of(dataset, tmp_path / "run", **SHORT, folds=folds)
        assert {shard.split for shard in state.rows.shards} == splits
        wanted = sum(s.num_samples for s in generation.shards if s.split in splits)
        assert len(state.rows.keys) == wanted


def test_a_held_out_row_is_judged_by_the_head_of_its_fold(run: Path) -> None:
    detector, info = load_model(run)
    assert info.folds == NUM_FOLDS
    logit_of = {}
    predictions = pq.read_table(run / "predictions.parquet")
    for row in predictions.to_pylist():
        logit_of[row["key"]] = row["logit"]
    dataset = Dataset(str(run.parent / "data"))
    seen = set()
    with torch.inference_mode():
        for shard in dataset.read_generation().shards:
            rows = dataset.read_sidecar(shard, ("key", "group", "embedding"))
            embedding_ND = torch.tensor(rows["embedding"].to_pylist()).float()
            by_fold_NF = detector.head(embedding_ND, by_fold=True)[:, :, 0].numpy()
            fold_N = folds_of(rows["group"], NUM_FOLDS)
            for key, fold, logit_F in zip(rows["key"].to_pylist(), fold_N, by_fold_NF, strict=True):
                if key in logit_of:
                    wanted = logit_F.mean() if shard.split == "test" else logit_F[fold]
                    assert logit_of[key] == pytest.approx(wanted, abs=1e-5)
                    seen.add(shard.split)
    assert seen == {"train", "val", "test"}


def test_negatives_of_train_are_thinned_to_a_uniform_sample_of_each_source() -> None:
    """Of 20,000 that were drawn by similarity, the mean of what stays is that of the stream."""
    rng = np.random.default_rng(0)
    similarity_N = rng.random(40_000)
    probability_N = np.clip(np.exp(3 * (similarity_N - 1)), 0.1, 1)
    drawn_N = rng.random(40_000) < probability_N
    number = int(drawn_N.sum())
    predictions = pa.table(
        {
            "key": [f"negative {i}" for i in range(number)],
            "source": rng.choice(["a", "b"], number),
            "split": rng.choice(["train", "val", "test"], number, p=[0.8, 0.1, 0.1]),
            "label": rng.choice(["", "cat"], number, p=[0.9, 0.1]),
            "similarity": similarity_N[drawn_N],
            "inclusion_probability": pa.array(probability_N[drawn_N], pa.float32()),
        }
    )
    kept = thin_to_uniform(predictions)
    thinned = kept.filter(pa.compute.field("split") == "train").filter(
        pa.compute.field("label") == ""
    )
    assert thinned["inclusion_probability"].to_numpy() == pytest.approx(0.1)
    size = len(thinned)
    assert 1500 < size < 4000
    mean, error = np.mean(thinned["similarity"].to_numpy()), similarity_N.std() / size**0.5
    assert abs(mean - similarity_N.mean()) < 4 * error
    assert abs(np.mean(similarity_N[drawn_N]) - similarity_N.mean()) > 8 * error
    others = [
        table.filter((pa.compute.field("split") != "train") | (pa.compute.field("label") != ""))
        for table in (kept, predictions)
    ]
    assert others[0].equals(others[1])


def test_positives_of_one_fold_are_refused_with_a_remedy(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", num_positives=1)
    with pytest.raises(InfinegError, match=r"all 1 positives .* use train\.folds: 1"):
        run_training(tmp_path / "data", tmp_path / "run", **SHORT)
    evaluated = run_training(tmp_path / "data", tmp_path / "one", **SHORT, folds=1)
    assert load_model(evaluated)[1].folds == 1


def test_a_run_of_one_fold_is_calibrated_on_val(dataset: Path, tmp_path: Path) -> None:
    run = run_training(dataset, tmp_path / "run", **SHORT, folds=1)
    metrics = evaluate_run(run)["target"]["cat"]
    assert metrics["num_held_out_negatives"] == 75
    assert "tpr_cross_fitted" not in metrics
    splits = pq.read_table(run / "predictions.parquet")["split"].to_pylist()
    assert set(splits) == {"val", "test"}


def test_positives_of_one_target_in_one_fold_are_refused_whatever_others_there_are(
    tmp_path: Path,
) -> None:
    """One head would learn that nothing is a dog."""
    write_dataset(tmp_path / "data", targets=("cat", "dog"), num_positives=40)
    dataset = Dataset(str(tmp_path / "data"))
    of_shards = [(shard, dataset.read_sidecar(shard)) for shard in dataset.read_generation().shards]
    few = [
        (shard.model_copy(update={"num_samples": 1}), rows.slice(0, 1))
        for shard, rows in of_shards
        if shard.label == "dog"
    ][:1]
    others = [(shard, rows) for shard, rows in of_shards if shard.label != "dog"]
    with pytest.raises(InfinegError, match=r"all 1 positives of dog .* one of 5 folds"):
        join_rows(dataset.root, 1, ("cat", "dog"), [*few, *others], num_folds=5)
