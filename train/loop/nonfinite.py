"""Non-finite losses: finds the samples of the batch afterwards, by the order of the data."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.errors import InfinegError
from train.distributed.fsdp import local_tensor
from train.loop.phases import Phase
from train.loop.state import TrainState
from train.loop.stream import open_stream

_NUM_NAMED = 3  # keys that the message lists


def nonfinite_loss_error(state: TrainState, run_dir: Path, step: int, phase: Phase) -> InfinegError:
    """The error that ends the run; the main process writes `nan_batch.json` first.

    It lists the samples of the global batch: rank, key, shard, label, importance weight, and
    whether all inputs of the model are finite.
    """
    path = run_dir / "nan_batch.json"
    advice = (
        "Lower train.learning_rate or train.backbone_learning_rate, set train.max_grad_norm, or "
        "train.amp: off"
    )
    if state.world.is_main:
        samples = list(_samples_of(state, step, phase))
        content = {"step": step, "generation": state.generation.number, "samples": samples}
        storage.write_atomic(str(path), (json.dumps(content, indent=1) + "\n").encode())
        broken = [sample["key"] for sample in samples if not sample["is_finite"]]
        if broken:
            named = ", ".join(broken[:_NUM_NAMED])
            advice = (
                f"The inputs of {len(broken)} of its samples are not finite ({named}): "
                "`infineg takedown` removes them"
            )
    return InfinegError(
        f"the loss of step {step:,} is not finite, and training stopped; its batch is listed in "
        f"{path}. {advice}. --resume continues from the last checkpoint"
    )


def _samples_of(state: TrainState, step: int, phase: Phase) -> Iterator[dict[str, Any]]:
    settings = state.train_config.model_copy(update={"workers": 0})
    steps = range(step, step + 1)
    for rank in range(state.world.size):
        of_rank = replace(state, train_config=settings, world=replace(state.world, rank=rank))
        batch = next(open_stream(of_rank, phase.mode, steps, image_size=phase.image_size))
        is_finite_B = batch.inputs.isfinite().flatten(1).all(1)
        columns = (batch.rows_B.tolist(), batch.importance_B.tolist(), is_finite_B.tolist())
        for row, importance, is_finite in zip(*columns, strict=True):
            shard = state.rows.shards[int(state.rows.shard_of(row))]
            yield {
                "rank": rank,
                "key": state.rows.keys[row].as_py(),
                "shard": shard.path,
                "label": shard.label,
                "importance": importance,
                "is_finite": is_finite,
            }


def has_nonfinite_weights(state: TrainState) -> bool:
    """Whether a trained weight is not finite, in any process; all take part."""
    floats = [each for each in state.trained.state_dict().values() if each.is_floating_point()]
    return state.world.any(not all(bool(local_tensor(each).isfinite().all()) for each in floats))
