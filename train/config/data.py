"""Which samples are drawn, how often, and as which pixels."""

from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator

WINDOW = 1000  # positions of a stream in which each portion has its exact count

Polarity = Literal["positives", "negatives"]
Strength = Literal["off", "crop", "light", "heavy", "randaugment", "trivialaugment"]


class MixtureEntry(BaseModel, frozen=True, extra="forbid"):
    """The share of some sources in their stream: `proportion`, or `repeat` (default 1)."""

    source: str = Field(
        min_length=1, description="Name of a source, or a pattern such as near_*, taken together."
    )
    stream: Polarity | None = Field(
        None, description="Needed if these sources have both positives and negatives."
    )
    proportion: float | None = Field(
        None, ge=0, le=1, description="Share of the stream; 0 draws none."
    )
    repeat: float | None = Field(
        None, gt=0, description="Multiplies how often they are drawn without the entry."
    )
    max_repetition_factor: float | None = Field(
        None,
        gt=0,
        description="Limit on the draws of one sample in the whole run; a mixture that needs more "
        "is refused.",
    )

    @model_validator(mode="after")
    def _one_share(self) -> Self:
        if self.proportion is not None and self.repeat is not None:
            raise ValueError(f"{self.source}: give proportion or repeat, not both")
        if self.proportion and self.proportion * WINDOW < 1:
            raise ValueError(
                f"{self.source}: proportion {self.proportion:g} is less than 1 in {WINDOW:,}; "
                "give 0, or at least that"
            )
        return self


class DataSettings(BaseModel, frozen=True, extra="forbid"):
    """Batches: rows of a generation, their proportions and their augmentation."""

    generation: int | None = Field(
        None, ge=1, description="Generation of the data set; default the latest."
    )
    batch_size: int = Field(
        256,
        ge=2,
        description="Samples per step, over all processes; default in finetune 64. For a head it "
        "is halved for as long as half of it still holds all rows.",
    )
    positive_share: float = Field(
        0.25, gt=0, lt=1, description="Share of positives in each batch: the prior trained on."
    )
    augment: Strength = Field(
        "light",
        description="Augmentation of images in finetune and of views. crop: only crop and flip; "
        "heavy: light and two mild distortions; randaugment: two operations of magnitude 9 of 30; "
        "trivialaugment: one of any magnitude.",
    )
    decode: Literal["cpu", "cuda"] = Field(
        "cpu",
        description="Where finetune decodes images. cuda is the GPU that trains, for machines with "
        "few cores per GPU; its pixels differ slightly from the CPU's. Its speed is not measured.",
    )
    views: int = Field(
        1,
        ge=0,
        description="Views of each positive that the head is trained on: its embedding in the data "
        "set and views - 1 of augmented crops, embedded once. 0 and 1 are only the data set's.",
    )
    max_repetition_factor: float = Field(
        500.0, gt=0, description="Warns if a positive is drawn more often than this."
    )
    mixture: tuple[MixtureEntry, ...] = Field(
        (),
        description="Shares of sources in the stream of positives or of negatives, such as "
        "[{source: near_*, proportion: 0.3}, {source: noise, repeat: 2}].",
    )

    @property
    def num_positives(self) -> int:
        """Positives of each global batch; the rest are negatives."""
        return round(self.positive_share * self.batch_size)

    @model_validator(mode="after")
    def _check_batches(self) -> Self:
        if not 0 < self.num_positives < self.batch_size:
            raise ValueError(
                f"positive_share {self.positive_share:g} of batch_size {self.batch_size} "
                "leaves a batch without positives or without negatives"
            )
        if self.views > 1 and self.augment == "off":
            raise ValueError(f"views {self.views} with augment: off would all be the same picture")
        return self
