"""Heads that each leave out the negatives of one fold, so that none is judged by one that saw it.

A model finds a negative that it was trained on less likely than one like it that it has not seen.
That would undo the sampling that mining relies on (`pipeline.selection.mining`), and hide a
training negative that shows the target: label errors are found out of sample (Northcutt, Jiang and
Chuang 2021, Confident learning). Shapes: N rows, D embedding.
"""

import copy
import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config.schema import Config
from pipeline.dataset import manifest
from pipeline.dataset.metadata import DatasetInfo
from pipeline.selection.mining import fold_of
from pipeline.telemetry.progress import Progress
from train.config import TrainConfig
from train.data.rows import TrainRows, embeddings_of
from train.distributed.world import World
from train.loop.state import TrainState, prepare_state, with_rows
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
    """One head a fold, in eval mode on the CPU, trained as the run's was but without the fold.

    num_steps: after which the run's weights were taken, fewer than `steps` where it stopped early.
    Kept in the run as `fold_heads.safetensors`, and not trained again.
    """
    path = run / "fold_heads.safetensors"
    tensors = read_tensors(path) if path.exists() else {}
    of_fold: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        fold, _, own = name.partition(".")
        of_fold.setdefault(fold, {})[own] = tensor
    if len(of_fold) != num_folds:
        heads = _train_heads(config, train_config, dataset, generation, num_folds, num_steps)
        states = (head.state_dict().items() for head in heads)
        write_tensors(
            path, {f"{f}.{name}": t for f, state in enumerate(states) for name, t in state}
        )
        _log.info("trained %d heads, each without the negatives of one fold", num_folds)
        return heads
    heads = []
    for number in range(num_folds):
        head = Head(
            dataset.embedding_dim,
            len(config.targets),
            hidden_dim=train_config.hidden_dim,
            dropout=train_config.dropout,
        )
        load_into(head, of_fold[str(number)], path)
        heads.append(head.eval())
    return heads


def _train_heads(
    config: Config,
    train_config: TrainConfig,
    dataset: DatasetInfo,
    generation: int,
    num_folds: int,
    num_steps: int,
) -> list[Head]:
    """All heads begin as the run's did."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    world = World(rank=0, size=1, device=device)
    of_generation = manifest.read_generation(config.output.path, generation)
    state = prepare_state(config, train_config, dataset, of_generation, world)
    fold_N, embedding_ND = read_folds(config.output.path, state.rows, num_folds)
    first = copy.deepcopy(state.detector.head.state_dict())
    heads = []
    with Progress("cross-fit", total=num_folds * num_steps, unit="steps") as progress:
        for fold in range(num_folds):
            is_kept_N = fold_N != fold
            state.detector.head.load_state_dict(first)
            of_fold = with_rows(state, state.rows.where(is_kept_N))
            _train(of_fold, embedding_ND[is_kept_N], num_steps, progress)
            head = copy.deepcopy(of_fold.evaluated)
            assert isinstance(head, Head)
            heads.append(head.cpu().eval())
    return heads


def _train(
    state: TrainState, embedding_ND: NDArray[np.float16], num_steps: int, progress: Progress
) -> None:
    batches = embedding_batches(state, embedding_ND)
    head = state.detector.head.train()
    for step in range(num_steps):
        train_step(state, head, batches.read(step), step)
        progress.advance()


def read_folds(
    root: str, rows: TrainRows, num_folds: int
) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """fold_N, -1 of positives, which are in every fold's training; and embedding_ND."""
    folds, embeddings = [], []
    for shard in rows.shards:
        sidecar = manifest.read_sidecar(root, shard, ("content_hash", "embedding"))
        hashes = sidecar["content_hash"].to_pylist()
        folds.append(np.full(len(hashes), -1) if shard.label else fold_of(hashes, num_folds))
        embeddings.append(embeddings_of(sidecar))
    return np.concatenate(folds), np.concatenate(embeddings)
