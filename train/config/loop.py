"""What is trained, for how many steps, and when training ends early."""

from itertools import pairwise
from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator

Mode = Literal["head", "finetune"]
Metric = Literal["val_loss", "val_auroc", "val_average_precision", "val_tpr_at_fpr"]


class EarlyStopping(BaseModel, frozen=True, extra="forbid"):
    """Measures the val split regularly; the best weights by `metric` become the model.

    With several targets their mean counts. Negatives weigh 1 / inclusion_probability.
    """

    metric: Metric = Field(
        "val_auroc", description="Lower is better for val_loss, higher for the others."
    )
    every: int = Field(
        100, ge=1, description="Steps between measurements; the last step is measured too."
    )
    patience: int = Field(
        5, ge=1, description="Measurements without a better value after which training ends."
    )
    fpr: float = Field(
        0.01, gt=0, lt=1, description="False-positive rate that val_tpr_at_fpr allows."
    )


class Finetuning(BaseModel, frozen=True, extra="forbid"):
    """Only with `mode: finetune`. Steps are optimizer steps of the run, counted from 0."""

    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="The rate of a group is backbone_learning_rate * layer_decay^(number of groups "
        "behind it). 1 is one rate for all; 0.7 keeps early layers, which see edges and textures, "
        "near their start.",
    )
    unfreeze: tuple[tuple[int, int | Literal["all"]], ...] = Field(
        (),
        description="Pairs of a step and how many of the last groups are trained from that step "
        "on, such as [[300, 2], [600, all]]; the rate of each group rises and falls from its own "
        "step on. Default: all of them from head_steps on.",
    )
    image_sizes: tuple[tuple[float, int], ...] = Field(
        (),
        description="Pairs of a share of the steps on images and the side in pixels from there on, "
        "such as [[0, 128], [0.5, 192], [0.8, 224]]: small images first are faster. Default: the "
        "encoder's size.",
    )

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        steps = [step for step, _ in self.unfreeze]
        counts = [0, *(float("inf") if count == "all" else count for _, count in self.unfreeze)]
        if not _rises(steps) or not _rises(counts):
            raise ValueError(f"unfreeze must rise in steps and groups: {list(self.unfreeze)}")
        shares = [share for share, _ in self.image_sizes]
        if shares and (shares[0] != 0 or shares[-1] >= 1 or not _rises(shares)):
            raise ValueError(f"image_sizes must begin at share 0 and rise, under 1: {shares}")
        if any(size < 32 for _, size in self.image_sizes):
            raise ValueError(f"image_sizes must be 32 or more: {list(self.image_sizes)}")
        return self


def _rises(values: list[int] | list[float]) -> bool:
    return all(a < b for a, b in pairwise(values))


class LoopSettings(BaseModel, frozen=True, extra="forbid"):
    """The model and its phases: the head on cached embeddings, then all of it on images."""

    mode: Mode = Field(
        "head",
        description="head: the head, on cached embeddings; finetune: the backbone too, on images.",
    )
    seed: int = Field(
        0, ge=0, description="Of order, augmentation, dropout and the head's first weights."
    )
    steps: int = Field(400, ge=1, description="Optimizer steps in all; default in finetune 2000.")
    head_steps: int = Field(
        300,
        ge=0,
        description="In finetune: how many of `steps` train only the head, before unfreezing.",
    )
    hidden_dim: int = Field(
        0,
        ge=0,
        description="Units of the head's hidden layer; 0, the default, is a linear head. Default "
        "in finetune 256.",
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="Behind the head's hidden layer.")
    folds: int = Field(
        5,
        ge=1,
        le=20,
        description="Heads, each trained without one fold of the train and val splits; the model "
        "is their mean, and threshold and probabilities are fitted on rows that a head has not "
        "seen. 1 trains one head on train and fits them on val; so does finetune, always.",
    )
    finetuning: Finetuning = Field(
        Finetuning(), description="Rates by depth, unfreezing, image sizes."
    )
    early_stopping: EarlyStopping | None = Field(
        None, description="Ends training by a metric of the val split."
    )

    @property
    def is_logistic(self) -> bool:
        """Whether the run is a logistic regression on embeddings, which is convex."""
        return self.mode == "head" and self.hidden_dim == 0

    @property
    def uses_embeddings(self) -> bool:
        """Whether any step trains the head on cached embeddings."""
        return self.mode == "head" or self.head_steps > 0

    @model_validator(mode="after")
    def _check_phases(self) -> Self:
        if self.mode == "head":
            if self.finetuning != Finetuning():
                raise ValueError("finetuning is about images; mode: head has none")
            return self
        if self.folds > 1:
            raise ValueError(f"folds {self.folds} are heads on embeddings; mode: finetune has 1")
        if self.head_steps >= self.steps:
            raise ValueError(f"head_steps {self.head_steps} must be under steps {self.steps}")
        for step, _ in self.finetuning.unfreeze:
            if not self.head_steps <= step < self.steps:
                raise ValueError(
                    f"finetuning.unfreeze step {step} must lie from head_steps {self.head_steps} "
                    f"on and under steps {self.steps}"
                )
        return self
