"""The samples behind a loss that is no number: looked up once it happened, by the order."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import storage
from pipeline.errors import InfinegError
from train.config.settings import Mode
from train.distributed.fsdp import local_tensor
from train.loop.job import Job, open_stream

_NUM_NAMED = 3  # keys that the message lists


def nonfinite_loss_error(
    job: Job, run_dir: Path, step: int, *, mode: Mode, image_size: int
) -> InfinegError:
    """The error that ends the run; the main process writes `nan_batch.json` before.

    Its samples are those of the global batch: rank, key, shard, label, importance weight, and
    whether all numbers that the model was given are finite.
    """
    path = run_dir / "nan_batch.json"
    advice = (
        "lower train.learning_rate or train.backbone_learning_rate, set train.max_grad_norm, or "
        "train.amp: off"
    )
    if job.world.is_main:
        samples = _samples_of(job, step, mode, image_size)
        content = {"step": step, "generation": job.generation.number, "samples": samples}
        storage.write_atomic(str(path), (json.dumps(content, indent=1) + "\n").encode())
        broken = [sample["key"] for sample in samples if not sample["is_finite"]]
        if broken:
            named = ", ".join(broken[:_NUM_NAMED])
            advice = (
                f"the inputs of {len(broken)} of its samples are no numbers ({named}): "
                "`infineg takedown` removes them"
            )
    return InfinegError(
        f"the loss of step {step:,} is no number, and training stopped; its batch is listed in "
        f"{path}. {advice[0].upper()}{advice[1:]}. --resume goes on from the last checkpoint"
    )


def _samples_of(job: Job, step: int, mode: Mode, image_size: int) -> list[dict[str, Any]]:
    samples = []
    settings = job.train_config.model_copy(update={"workers": 0})
    for rank in range(job.world.size):
        of_rank = replace(job, train_config=settings, world=replace(job.world, rank=rank))
        batch = next(open_stream(of_rank, mode, range(step, step + 1), image_size=image_size))
        for row, importance, is_finite in zip(
            batch.rows_B.tolist(),
            batch.importance_B.tolist(),
            _is_finite(batch.inputs).tolist(),
            strict=True,
        ):
            shard = job.rows.shards[int(job.rows.shard_of(row))]
            samples.append(
                {
                    "rank": rank,
                    "key": job.rows.keys[row].as_py(),
                    "shard": shard.path,
                    "label": shard.label,
                    "importance": importance,
                    "is_finite": is_finite,
                }
            )
    return samples


def _is_finite(inputs: Tensor) -> Tensor:
    """By sample."""
    if not inputs.is_floating_point():
        return torch.ones(len(inputs), dtype=torch.bool)
    return inputs.isfinite().flatten(1).all(1)


def has_nonfinite_weights(job: Job) -> bool:
    """Whether a trained number is none; every process takes part, and comes to the same."""
    floats = [each for each in job.trained.state_dict().values() if each.is_floating_point()]
    return job.world.any(not all(bool(local_tensor(each).isfinite().all()) for each in floats))
