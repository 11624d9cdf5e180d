"""The `selection:` section of the config."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

# YAML 1.1 reads 100_000 as a number, but with --set or in quotes it is text.
Count = Annotated[int, BeforeValidator(lambda v: v.replace("_", "") if isinstance(v, str) else v)]


class Budget(BaseModel, frozen=True, extra="forbid"):
    """What is wanted of a source of weight 1: one of these. A plain number is `selected`."""

    selected: Count | None = Field(None, ge=1, description="Training negatives.")
    candidates: Count | None = Field(
        None, ge=1, description="Candidates to read, however many of them are selected."
    )
    bytes: Count | None = Field(
        None, ge=1, description="Bytes of the images of training negatives, in shards."
    )

    @model_validator(mode="before")
    @classmethod
    def _plain_number(cls, data: Any) -> Any:
        return {"selected": data} if isinstance(data, int | float | str) else data

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(type(self).model_fields)}")
        return self


class SelectionConfig(BaseModel, frozen=True, extra="forbid"):
    """Which candidates become training negatives, and with what probability."""

    mode: Literal["hard", "similarity", "uniform"] = Field(
        "hard",
        description="hard draws half of the training negatives by similarity and adds the hardest "
        "of a head that is fitted on these; similarity draws all; uniform gives all candidates the "
        "same probability.",
    )
    beta: float = Field(
        8.0,
        ge=0,
        le=100,
        description="Candidates are weighted by exp(beta * similarity): 0 is uniform, with 8 the "
        "weight halves every 0.087.",
    )
    budget: Budget = Field(
        Budget(selected=100_000), description="What is wanted of a source of weight 1."
    )
    pool: Literal["source", "all"] = Field(
        "source",
        description="Who shares a budget: each source has its own, or all have one together.",
    )
    eval_budget: Count | None = Field(
        None,
        ge=0,
        description="Negatives wanted in val, and as many in test. Default: a quarter of the "
        "training negatives.",
    )
    min_probability: float = Field(
        0.01,
        gt=0,
        le=1,
        description="Floor of the inclusion probability; at most a tenth of its mean.",
    )
    candidates_per_selected: float = Field(
        10.0, ge=1, description="Candidates of an endless source to read per training negative."
    )
    num_neighbors: int = Field(
        5,
        ge=1,
        description="Similarity is the mean of this many largest cosines to the reference bank.",
    )
    pilot: Count = Field(
        500,
        ge=1,
        description="Candidates per source that the first pilot reads; at least 1% of the budget.",
    )
    quarantine: Literal["auto", "off"] = Field(
        "auto",
        description="auto sets candidates above a similarity fitted on the positives aside, for "
        "review.",
    )
    seed: int = Field(0, description="Another seed selects other candidates.")

    @property
    def effective_beta(self) -> float:
        return 0.0 if self.mode == "uniform" else self.beta

    @property
    def share_drawn(self) -> float:
        """Of the training negatives; a first head chooses the others."""
        return 0.5 if self.mode == "hard" else 1.0
