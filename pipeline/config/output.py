"""The `output:` and `split:` sections of the config."""

from dataclasses import fields
from typing import Self

from pydantic import BaseModel, Field, field_validator, model_validator

from pipeline import storage
from pipeline.config.selection import Count
from pipeline.dataset.schema import ImageSettings, Split
from pipeline.errors import ConfigError


class OutputConfig(BaseModel, frozen=True, extra="forbid"):
    """The data set to write."""

    path: str = Field(description="Folder or s3:// URL of the data set.")
    image_size: int = Field(
        256, ge=32, description="Shorter side in pixels to which larger images are scaled down."
    )
    jpeg_quality: int = Field(90, ge=1, le=100, description="Of images that are encoded again.")
    samples_per_shard: Count = Field(
        1000, ge=1, description="Samples per shard; 1,000 of 256 pixels are about 25 MB."
    )
    candidates_per_round: Count = Field(
        1_000_000,
        ge=1,
        description="After this many candidates of a source its shards are packed and committed as "
        "a generation. Bounds memory and the size of parts/, and a shard is filled within a round.",
    )
    min_side: int = Field(
        32, ge=1, description="Pixels; an image with a shorter side is rejected as too_small."
    )
    max_pixels: Count = Field(
        64_000_000,
        ge=1,
        description="An image with more pixels, by its header, is too_large; it is not decoded.",
    )
    max_aspect: float = Field(
        5.0, ge=1, description="Longer side / shorter side; beyond it, rejected as bad_aspect."
    )

    @field_validator("path")
    @classmethod
    def _is_writable(cls, path: str) -> str:
        try:
            storage.refuse_unwritable(path)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return path

    @property
    def image_settings(self) -> ImageSettings:
        names = {field.name for field in fields(ImageSettings)}
        return ImageSettings(**self.model_dump(include=names))


class SplitConfig(BaseModel, frozen=True, extra="forbid"):
    """Fractions of leakage groups; the rest is train."""

    val: float = Field(0.15, ge=0, lt=1, description="Fraction of groups in val.")
    test: float = Field(0.15, ge=0, lt=1, description="Fraction of groups in test.")

    @model_validator(mode="after")
    def _leave_train(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError(f"val + test is {self.val + self.test:g}, must be under 1")
        return self

    @property
    def fractions(self) -> dict[Split, float]:
        return {"train": 1 - self.val - self.test, "val": self.val, "test": self.test}
