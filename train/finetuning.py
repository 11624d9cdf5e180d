"""How a backbone is finetuned: its groups, when each is trained and how fast, and image sizes.

A *group* is what timm calls one: the stem, a stage or a transformer block; of other networks a
child of the top level (deeper where there are few). Group 0 is the one that sees the picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator
from timm.models import group_parameters
from torch import nn

from pipeline.errors import ConfigError

_MIN_GROUPS = 4  # a network of fewer children is looked into


class Finetuning(BaseModel, frozen=True, extra="forbid"):
    """`mode: finetune` alone. Steps are optimizer steps of the run, counted from 0."""

    # Rate of a group: backbone_learning_rate * layer_decay^(number of groups behind it). 1 is one
    # rate for all; 0.7 keeps early layers, which see edges and textures, near what they were.
    layer_decay: float = Field(1.0, gt=0, le=1)
    # Pairs of a step and how many of the last groups are trained from then on, such as
    # [[300, 2], [600, all]]; each group's rate rises and falls from its own step on. Default: all
    # of them from head_steps on.
    unfreeze: tuple[tuple[int, int | Literal["all"]], ...] = ()
    # Pairs of a share of the steps on images and the side in pixels from then on, such as
    # [[0, 128], [0.5, 192], [0.8, 224]]: small pictures first are faster. Default: the encoder's.
    image_sizes: tuple[tuple[float, int], ...] = ()

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        steps = [step for step, _ in self.unfreeze]
        counts = [float("inf") if count == "all" else count for _, count in self.unfreeze]
        if any(a >= b for a, b in pairwise(steps)) or any(
            a >= b for a, b in pairwise([0, *counts])
        ):
            raise ValueError(f"unfreeze must rise in steps and groups: {list(self.unfreeze)}")
        shares = [share for share, _ in self.image_sizes]
        if shares and (
            shares[0] != 0 or shares[-1] >= 1 or any(a >= b for a, b in pairwise(shares))
        ):
            raise ValueError(f"image_sizes must begin at share 0 and rise, under 1: {shares}")
        if any(size < 32 for _, size in self.image_sizes):
            raise ValueError(f"image_sizes must be 32 or more: {list(self.image_sizes)}")
        return self

    def opening_steps(self, num_groups: int, *, first: int, never: int) -> list[int]:
        """The step from which on each group is trained; `never` for those that are not.

        Raises ConfigError where more groups are asked for than there are.
        """
        opened = [never] * num_groups
        for step, count in reversed(self.unfreeze or ((first, "all"),)):
            number = num_groups if count == "all" else count
            if number > num_groups:
                raise ConfigError(
                    f"train.finetuning.unfreeze: {number} groups from step {step} on, but the "
                    f"backbone has {num_groups}; `all` takes them all"
                )
            opened[num_groups - number :] = [step] * number
        return opened

    def stages(
        self, opening_steps: Sequence[int], steps: range, *, image_size: int
    ) -> list["Stage"]:
        """Cuts the steps on images where a group opens or the size changes."""
        sizes = [
            (steps.start + round(share * len(steps)), size) for share, size in self.image_sizes
        ] or [(steps.start, image_size)]
        changes = {*opening_steps, *(step for step, _ in sizes)}
        bounds = sorted({steps.start, steps.stop, *(step for step in changes if step in steps)})
        return [
            Stage(
                range(start, stop),
                num_open=sum(step <= start for step in opening_steps),
                image_size=[size for step, size in sizes if step <= start][-1],
            )
            for start, stop in pairwise(bounds)
        ]


@dataclass(frozen=True)
class Stage:
    """Steps on images in which the same groups are trained, on images of one size."""

    steps: range
    num_open: int  # of the last groups
    image_size: int  # pixels


def backbone_groups(backbone: nn.Module) -> list[list[nn.Parameter]]:
    """All parameters, group by group from the picture's side."""
    network: Any = backbone.get_submodule("backbone") if hasattr(backbone, "backbone") else backbone
    if hasattr(network, "group_matcher"):
        of_group = group_parameters(network, network.group_matcher(coarse=True))
        parameters = dict(network.named_parameters())
        return [[parameters[name] for name in of_group[number]] for number in sorted(of_group)]
    parts = [*network.children()]
    while len(parts := [part for part in parts if any(True for _ in part.parameters())]) < (
        _MIN_GROUPS
    ) and any(True for part in parts for _ in part.children()):
        parts = [child for part in parts for child in ([*part.children()] or [part])]
    groups = [list(part.parameters()) for part in parts]
    grouped = {id(parameter) for group in groups for parameter in group}
    # What belongs to no child, such as a position embedding, is near the picture.
    groups[0] += [p for p in network.parameters() if id(p) not in grouped]
    return groups


def open_last_groups(backbone: nn.Module, number: int) -> None:
    """Only the last `number` groups are trained from now on."""
    groups = backbone_groups(backbone)
    for index, group in enumerate(groups):
        for parameter in group:
            parameter.requires_grad_(index >= len(groups) - number)
