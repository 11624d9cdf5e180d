"""Heads that each leave out the negatives of one fold, so that none is judged by one that saw it.

A model finds a negative that it was trained on less likely than one like it that it has not seen.
That would undo the sampling that mining relies on (`pipeline.hardness`), and hide a training
negative that shows the target: label errors are found out of sample (Northcutt, Jiang and Chuang
2021, Confident learning). Shapes: N rows, D embedding.
"""

import logging
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import manifest
from pipeline.commits import DatasetInfo
from pipeline.config import Config
from pipeline.hardness import fold_of
from pipeline.progress import Progress
from train.config import TrainConfig
from train.corrections import loss_terms
from train.data import Batches
from train.distributed import World
from train.job import Job, prepare_job
from train.model import Head
from train.order import BatchOrder, Rows
from train.rows import TrainRows, embeddings_of
from train.tensors import load_into, read_tensors, write_tensors
from train.trainer import train_step

_log = logging.getLogger(__name__)


class _Embeddings:
    """Those of some rows of the train split."""

    def __init__(self, embedding_ND: NDArray[np.float16]) -> None:
        self._embedding_ND = embedding_ND

    def read(self, rows_B: Rows, positions_B: Rows) -> Tensor:  # noqa: ARG002 (no chance here)
        """embedding_BD float32."""
        return torch.from_numpy(self._embedding_ND[rows_B]).float()


def fold_heads(
    run: Path,
    config: Config,
    train_config: TrainConfig,
    dataset: DatasetInfo,
    *,
    generation: int,
    num_folds: int,
) -> list[Head]:
    """One head a fold, in eval mode on the CPU, trained as the run's was but without the fold.

    Kept in the run as `fold_heads.safetensors`, and not trained again.
    """
    path = run / "fold_heads.safetensors"
    tensors = read_tensors(path) if path.exists() else {}
    is_kept = len({name.partition(".")[0] for name in tensors}) == num_folds
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    world = World(rank=0, size=1, device=device)
    of_generation = manifest.read_generation(config.output.path, generation)
    heads = []
    total = 0 if is_kept else num_folds * train_config.steps
    with Progress("cross-fit", total=total, unit="steps") as progress:
        for fold in range(num_folds):
            job = prepare_job(config, train_config, dataset, of_generation, world)
            if is_kept:
                prefix = f"{fold}."
                own = {
                    n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)
                }
                load_into(job.detector.head, own, path)
            else:
                _train_without(job, fold, num_folds, progress)
            heads.append(job.detector.head.cpu().eval())
    if not is_kept:
        states = (head.state_dict().items() for head in heads)
        write_tensors(
            path, {f"{f}.{name}": t for f, state in enumerate(states) for name, t in state}
        )
        _log.info("trained %d heads, each without the negatives of one fold", num_folds)
    return heads


def _train_without(job: Job, fold: int, num_folds: int, progress: Progress) -> None:
    """Trains the job's head on all rows but the negatives of a fold."""
    rows, embedding_ND = rows_without(job, fold, num_folds)
    job = replace(job, rows=rows)
    settings = job.train_config
    order = BatchOrder(
        rows.positives,
        rows.negatives,
        num_positives=settings.num_positives,
        batch_size=settings.batch_size,
        window=settings.shuffle_window,
        seed=settings.seed,
    )
    terms = loss_terms(rows, settings.correction, corrects_unknown=settings.unknown == "nnpu")
    batches = Batches(rows, terms, order, _Embeddings(embedding_ND))
    head = job.detector.head.train()
    for step in range(settings.steps):
        train_step(job, head, batches.read(step), step)
        progress.advance()


def rows_without(job: Job, fold: int, num_folds: int) -> tuple[TrainRows, NDArray[np.float16]]:
    rows, root = job.rows, job.config.output.path
    kept, embeddings, sizes = [], [], []
    for shard in rows.shards:
        sidecar = manifest.read_sidecar(root, shard, ("content_hash", "embedding"))
        is_kept_N = np.ones(sidecar.num_rows, bool)
        if not shard.label:
            is_kept_N = fold_of(sidecar["content_hash"].to_pylist(), num_folds) != fold
        kept.append(is_kept_N)
        embeddings.append(embeddings_of(sidecar)[is_kept_N])
        sizes.append(int(is_kept_N.sum()))
    is_kept_N = np.concatenate(kept)
    columns = [each.name for each in fields(rows) if each.name.endswith("_N")]
    fewer = replace(
        rows,
        starts=np.cumsum([0, *sizes]),
        keys=rows.keys.take(np.flatnonzero(is_kept_N)),
        **{name: getattr(rows, name)[is_kept_N] for name in columns},
    )
    return fewer, np.concatenate(embeddings)
