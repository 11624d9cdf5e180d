"""What a step minimises."""

from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator

Correction = Literal["weight", "offset", "none"]


class Regularization(BaseModel, frozen=True, extra="forbid"):
    """With any of these, logits are no log-odds until they are calibrated."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="e: targets are e/2 and 1 - e/2.")
    mixup: float = Field(
        0.0,
        ge=0,
        description="Mixup of embeddings and images: a of the Beta(a, a) that shares are drawn "
        "from. 0 is off, 0.2 blends a little, 1 evenly. With cutmix on too, each step draws one "
        "of them.",
    )
    cutmix: float = Field(
        0.0, ge=0, description="The same for cutmix, of images only; steps on embeddings have none."
    )

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0


class LossSettings(BaseModel, frozen=True, extra="forbid"):
    """The loss, and how it undoes the sampling of negatives."""

    correction: Correction = Field(
        "weight",
        description="How sampling by similarity is undone: weight counts each negative 1 / "
        "inclusion_probability times, offset subtracts the logarithm of that probability from the "
        "logits, none does nothing.",
    )
    max_weight: float = Field(
        20.0, ge=1, description="Clips a negative's weight, in units of their mean."
    )
    loss: Literal["bce", "focal", "ohem"] = Field(
        "bce", description="bce is cross-entropy; focal and ohem stress hard samples."
    )
    focal_gamma: float = Field(
        2.0, ge=0, description="Of focal: 0 is bce, larger values spend less on easy samples."
    )
    focal_alpha: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Of focal: weight of positives; negatives have 1 - focal_alpha. null weighs "
        "neither, since positive_share and the importance weights balance the classes already.",
    )
    ohem_share: float = Field(
        0.25, gt=0, le=1, description="Of ohem: share of a batch's negatives, the hardest, to use."
    )
    regularization: Regularization = Field(
        Regularization(), description="Label smoothing, mixup, cutmix."
    )

    @model_validator(mode="after")
    def _check_ohem_labels(self) -> Self:
        if self.loss == "ohem" and self.regularization.mixes:
            raise ValueError(
                "regularization mixup or cutmix with ohem, which ranks samples of one label; use "
                "loss: bce or focal"
            )
        return self
