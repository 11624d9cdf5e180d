"""The `evaluate:` section of a config file."""

from typing import Literal

from pydantic import BaseModel, Field


class EvaluateConfig(BaseModel, frozen=True, extra="forbid"):
    """The operating point and how logits become probabilities."""

    alpha: float = Field(
        1e-3, gt=0, lt=1, description="False-positive rate that the threshold stays under."
    )
    delta: float = Field(
        0.05, gt=0, lt=1, description="Probability that the threshold exceeds `alpha`."
    )
    promise: Literal["mix", "worst"] = Field(
        "mix",
        description="What `alpha` is about. mix: all held-out negatives as they were drawn; worst: "
        "photographs, look-alikes (stratum near) and generated pictures, each by itself.",
    )
    deploy_prior: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Share of pictures in use that show the target: probabilities are at this "
        "share. At 0.5 the target gets a high one and all else a low one; a smaller share lowers "
        "them all. Labels do not depend on it.",
    )
    calibration: Literal["platt", "temperature"] = Field(
        "platt",
        description="From logits to probabilities. platt fits scale and bias; temperature fits "
        "only the scale, for few val samples: the bias follows from the prior trained on.",
    )
