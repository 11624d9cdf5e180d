"""The phases of a run: the head on cached embeddings, then more and more of the backbone."""

from dataclasses import dataclass, replace
from itertools import pairwise

from pipeline.errors import ConfigError
from train.config import Mode, TrainConfig
from train.model.detector import DetectorModel
from train.model.groups import backbone_groups


@dataclass(frozen=True)
class Phase:
    """Steps in which the same parameters are trained on inputs of one kind and size."""

    mode: Mode
    steps: range
    num_open: int  # of the backbone's last groups
    image_size: int  # pixels


def phases_from(first_step: int, detector: DetectorModel, train_config: TrainConfig) -> list[Phase]:
    """The phases that remain at `first_step`."""
    size = detector.encoder.preprocessing.image_size
    if train_config.mode == "head":
        phases = [Phase("head", range(train_config.steps), num_open=0, image_size=size)]
    else:
        head = Phase("head", range(train_config.head_steps), num_open=0, image_size=size)
        openings = opening_steps(len(backbone_groups(detector.encoder.backbone)), train_config)
        phases = [head, *finetune_phases(openings, train_config, image_size=size)]
    return [
        replace(phase, steps=steps)
        for phase in phases
        if (steps := range(max(phase.steps.start, first_step), phase.steps.stop))
    ]


def opening_steps(num_groups: int, train_config: TrainConfig) -> list[int]:
    """The step from which on each group is trained; `steps` for those that never are.

    Raises ConfigError if more groups are asked for than there are.
    """
    opened = [train_config.steps] * num_groups
    unfreeze = train_config.finetuning.unfreeze or ((train_config.head_steps, "all"),)
    for step, count in reversed(unfreeze):
        number = num_groups if count == "all" else count
        if number > num_groups:
            raise ConfigError(
                f"train.finetuning.unfreeze: {number} groups from step {step} on, but the "
                f"backbone has {num_groups}; `all` takes them all"
            )
        opened[num_groups - number :] = [step] * number
    return opened


def finetune_phases(
    openings: list[int], train_config: TrainConfig, *, image_size: int
) -> list[Phase]:
    """Cuts the steps on images where a group opens or the size changes."""
    first, stop = train_config.head_steps, train_config.steps
    sizes = [
        (first + round(share * (stop - first)), size)
        for share, size in train_config.finetuning.image_sizes
    ] or [(first, image_size)]
    changes = {*openings, *(step for step, _ in sizes)}
    bounds = sorted({first, stop, *(step for step in changes if first <= step < stop)})
    return [
        Phase(
            "finetune",
            range(start, end),
            num_open=sum(step <= start for step in openings),
            image_size=[size for step, size in sizes if step <= start][-1],
        )
        for start, end in pairwise(bounds)
    ]
