"""The `encoder:` section of the config."""

from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

# Of the packaged encoders, so that a config says it without timm.
_PACKAGED_SIZES = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}


class EncoderConfig(BaseModel, frozen=True, extra="forbid"):
    """The frozen network whose embeddings decide what is similar."""

    name: str = Field(
        "efficientnet_lite0", description="The packaged encoder, torchvision/MODEL or timm/MODEL."
    )
    weights: str | None = Field(
        None,
        description='A local .safetensors or .pth file, or "random". Default: those of the model.',
    )
    image_size: int | None = Field(
        None,
        ge=32,
        description="Side in pixels of the square that the network sees. Default: the model's own.",
    )
    batch_size: int = Field(
        64, ge=1, description="Images per forward pass. Embeddings depend on it in the last bits."
    )
    layer: Literal["last", "penultimate"] = Field(
        "last", description="Which pooled features are the embedding."
    )
    runtime: Literal["auto", "onnxruntime", "torch"] = Field(
        "auto", description="auto: PyTorch on GPUs and for bf16, else ONNX Runtime."
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16 is for GPUs, only with PyTorch, and gives other embeddings."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_packaged_size(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or fields.get("image_size") is not None:
            return fields
        name = fields.get("name", cls.model_fields["name"].default)
        return {**fields, "image_size": _PACKAGED_SIZES.get(name)}

    @model_validator(mode="after")
    def _runtime_has_precision(self) -> Self:
        if self.precision == "bf16" and self.runtime == "onnxruntime":
            raise ValueError(
                "only PyTorch has precision bf16: set encoder.runtime to torch or auto, or "
                "encoder.precision to fp32"
            )
        return self

    def inputs(self) -> dict[str, Any]:
        """The settings to hash; as in older data sets, without a default precision."""
        is_default = self.precision == "fp32"
        return self.model_dump(mode="json", exclude={"precision"} if is_default else None)
