"""Cross-fitting: one head per fold of the negatives, trained without that fold.

A model finds a negative that it was trained on less probable than a similar one that it has not
seen. That would undo the sampling that mining relies on (`pipeline.selection.mining`), and hide
training negatives that show the target: label errors are found out of sample (Northcutt, Jiang and
Chuang 2021, Confident learning). Shapes: N rows, D embedding.
"""

import copy
import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config.schema import Config
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import DatasetInfo
from pipeline.selection.mining import fold_of
from pipeline.telemetry.progress import Progress
from train.config import TrainConfig
from train.data.rows import TrainRows, embeddings_of
from train.distributed.world import World
from train.loop.state import prepare_state, with_rows
from train.loop.step import train_step
from train.loop.stream import embedding_batches
from train.model.detector import Head
from train.model.tensors import load_into, read_tensors, write_tensors

_log = logging.getLogger(__name__)


def fold_heads(
    run: Path,
    config: Config,
    train_config: TrainConfig,
    dataset: DatasetInfo,
    *,
    generation: int,
    num_folds: int,
    num_steps: int,
) -> list[Head]:
    """One head per fold, in eval mode on the CPU, trained like the run's but without the fold.

    num_steps: after which the run's weights were taken, fewer than `steps` if it stopped early.
    The heads are kept in RUN/mining_heads.safetensors.
    """
    path = run / "mining_heads.safetensors"
    tensors = read_tensors(path) if path.exists() else {}
    if len({name.partition(".")[0] for name in tensors}) != num_folds:
        tensors = _train_heads(config, train_config, dataset, generation, num_folds, num_steps)
        write_tensors(path, tensors)
        _log.info("trained %d heads, each without the negatives of one fold", num_folds)
    heads = []
    for fold in range(num_folds):
        prefix = f"{fold}."
        state = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        of_fold = Head(
            dataset.embedding_dim,
            len(config.targets),
            hidden_dim=train_config.hidden_dim,
            dropout=train_config.dropout,
        )
        load_into(of_fold, state, path)
        heads.append(of_fold.eval())
    return heads


def _train_heads(
    config: Config,
    train_config: TrainConfig,
    dataset: DatasetInfo,
    generation: int,
    num_folds: int,
    num_steps: int,
) -> dict[str, Tensor]:
    """<fold>.<name> -> weight. All heads start from the initial weights of the run."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    world = World(rank=0, size=1, device=device)
    of_generation = Dataset(config.output.path).read_generation(generation)
    state = prepare_state(config, train_config, dataset, of_generation, world)
    fold_N, embedding_ND = read_folds(config.output.path, state.rows, num_folds)
    initial = copy.deepcopy(state.detector.head.state_dict())
    tensors = {}
    with Progress("cross-fit", total=num_folds * num_steps, unit="steps") as progress:
        for fold in range(num_folds):
            is_kept_N = fold_N != fold
            state.detector.head.load_state_dict(initial)
            of_fold = with_rows(state, state.rows.where(is_kept_N))
            batches = embedding_batches(of_fold, embedding_ND[is_kept_N])
            head = of_fold.detector.head.train()
            for step in range(num_steps):
                train_step(of_fold, head, batches.read(step), step)
                progress.advance()
            for name, tensor in of_fold.evaluated.state_dict().items():
                tensors[f"{fold}.{name}"] = tensor.cpu().clone()
    return tensors


def read_folds(
    root: str, rows: TrainRows, num_folds: int
) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """fold_N, -1 for positives, which every fold trains on; and embedding_ND."""
    folds, embeddings = [], []
    for shard in rows.shards:
        sidecar = Dataset(root).read_sidecar(shard, ("content_hash", "embedding"))
        hashes = sidecar["content_hash"].to_pylist()
        folds.append(np.full(len(hashes), -1) if shard.label else fold_of(hashes, num_folds))
        embeddings.append(embeddings_of(sidecar))
    return np.concatenate(folds), np.concatenate(embeddings)
