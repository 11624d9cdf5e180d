"""The `evaluate:` section of a config file."""

from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator


class EvaluateConfig(BaseModel, frozen=True, extra="forbid"):
    """Operating point, and what is told of it."""

    alpha: float = Field(1e-3, gt=0, lt=1)  # false-positive rate that the threshold keeps under
    delta: float = Field(0.05, gt=0, lt=1)  # chance that it does not
    deploy_prior: float = Field(1e-3, gt=0, lt=1)  # share of pictures with the target, in use
    # From logits to probabilities: platt fits scale and bias; temperature the scale alone, for few
    # val samples, the bias following from the prior trained on.
    calibration: Literal["platt", "temperature"] = "platt"
    num_bins: int = Field(15, ge=2)  # of the reliability diagram and of ECE
    tpr_levels: tuple[float, ...] = (0.95, 0.99)  # at which the false-positive rate is told

    @model_validator(mode="after")
    def _levels_are_rates(self) -> Self:
        if not all(0 < level < 1 for level in self.tpr_levels):
            raise ValueError(f"tpr_levels must lie in (0, 1): {self.tpr_levels}")
        return self
