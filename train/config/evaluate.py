"""The `evaluate:` section of a config file."""

from typing import Literal

from pydantic import BaseModel, Field


class EvaluateConfig(BaseModel, frozen=True, extra="forbid"):
    """Operating point, and what is told of it."""

    alpha: float = Field(1e-3, gt=0, lt=1)  # false-positive rate that the threshold keeps under
    delta: float = Field(0.05, gt=0, lt=1)  # chance that it does not
    deploy_prior: float = Field(1e-3, gt=0, lt=1)  # share of pictures with the target, in use
    # From logits to probabilities: platt fits scale and bias; temperature the scale alone, for few
    # val samples, the bias following from the prior trained on.
    calibration: Literal["platt", "temperature"] = "platt"
