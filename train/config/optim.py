"""How gradients become updates: rates, decay, clipping, averaging, precision."""

from typing import Literal

from pydantic import BaseModel, Field


class OptimSettings(BaseModel, frozen=True, extra="forbid"):
    """AdamW with linear warm-up and half a cosine down to 0."""

    learning_rate: float = Field(
        0.1,
        gt=0,
        description="Peak rate of the head; default with a hidden layer 1e-3, in finetune 3e-4.",
    )
    backbone_learning_rate: float = Field(
        3e-5, gt=0, description="Peak rate of the backbone in finetune."
    )
    weight_decay: float = Field(
        0.03,
        ge=0,
        description="Of a linear head its L2 penalty: 1 / C of a logistic regression on features "
        "of norm 1. Else decoupled weight decay, default 1e-4. Biases and norms have none.",
    )
    warmup_steps: int = Field(
        50, ge=0, description="Steps of linear rise before the cosine; again after unfreezing."
    )
    max_grad_norm: float | None = Field(
        None, gt=0, description="Norm that gradients are scaled down to; it is logged."
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of a moving average of the weights, which is evaluated and exported in "
        "their place; 0.999 averages over about the last 1,000 steps.",
    )
    accumulate: int = Field(
        1, ge=1, description="Parts of a process's batch; one is in memory at a time."
    )
    amp: Literal["auto", "bf16", "fp16", "off"] = Field(
        "auto",
        description="Autocast. auto is bf16 on a GPU, else off; fp16, for GPUs without bf16, "
        "scales the loss.",
    )
    compile: bool = Field(
        False, description="torch.compile: slow first step of each phase, faster ones after it."
    )
