"""The YAML config: its pydantic models, `load_config`, overrides and fingerprints.

Sections `train:`, `evaluate:` and `cluster:` are carried as they are; `train.config` and
`pipeline.launch` own their models.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from pipeline.config.build import BuildConfig
from pipeline.dataset.keys import sha256_hex
from pipeline.dataset.schema import ImageSettings, LabelState, Role, Split, Stratum

# YAML 1.1 reads 100_000 as a number but a --set of it or a quoted one arrives as text.
_Count = Annotated[int, BeforeValidator(lambda v: v.replace("_", "") if isinstance(v, str) else v)]


# A dash separates the parts of a key, so that names themselves cannot contain one.
Name = Annotated[str, Field(pattern=r"^[a-z0-9_]+$", max_length=64)]


class Target(BaseModel, frozen=True, extra="forbid"):
    """One thing to detect."""

    name: Name


class SourceEntry(BaseModel, frozen=True, extra="forbid"):
    """Where samples come from. One entry is all that a new source of a known format needs."""

    name: Name  # the `source` column, part of every key
    kind: str = Field(pattern=r"^[a-z][a-z_]*$")  # module under pipeline/sources/
    params: dict[str, Any] = Field(default_factory=dict)  # checked by that module
    target: str | None = None  # positives only: which target they show; default the first
    weight: float = Field(1.0, gt=0)  # this source's budget, in units of selection.budget
    stratum: Stratum | None = None  # overrides what the source says of its samples
    label_state: LabelState | None = None  # overrides "unknown" for a folder one has looked through
    max_candidates: _Count | None = Field(None, ge=1)  # stop reading after about this many samples
    max_reject_fraction: float = Field(0.2, ge=0, le=1)  # of a partition with 100 samples or more


class EncoderConfig(BaseModel, frozen=True, extra="forbid"):
    """The frozen network whose embeddings decide what is similar."""

    name: str = "efficientnet_lite0"  # or torchvision/<model>, timm/<model>
    weights: str | None = None  # local .safetensors or .pth; default the model's own; or "random"
    image_size: int = Field(224, ge=32)  # pixels, side of the square crop that it sees
    batch_size: int = Field(64, ge=1)  # images a forward pass; part of the fingerprint
    layer: Literal["last", "penultimate"] = "last"  # which pooled features are the embedding
    runtime: Literal["auto", "onnxruntime", "torch"] = "auto"  # auto: ONNX Runtime on a CPU
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: for GPUs, by PyTorch; other embeddings

    @model_validator(mode="after")
    def _runtime_has_precision(self) -> Self:
        if self.precision == "bf16" and self.runtime == "onnxruntime":
            raise ValueError(
                "precision bf16 is of PyTorch alone: set encoder.runtime to torch or auto, or "
                "encoder.precision to fp32"
            )
        return self

    def inputs(self) -> dict[str, Any]:
        """The settings, as in data sets from before there was a precision to choose."""
        is_default = self.precision == "fp32"
        return self.model_dump(mode="json", exclude={"precision"} if is_default else None)


class Budget(BaseModel, frozen=True, extra="forbid"):
    """How much of a source of weight 1 is wanted; one of these. A plain number is `selected`."""

    selected: _Count | None = Field(None, ge=1)  # training negatives
    candidates: _Count | None = Field(None, ge=1)  # read, whatever is selected of them
    bytes: _Count | None = Field(None, ge=1)  # of the images of training negatives, in shards

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

    mode: Literal["similarity", "uniform"] = "similarity"
    beta: float = Field(8.0, ge=0)  # exp(beta * similarity): 0 is uniform, 8 halves every 0.087
    budget: Budget = Budget(selected=100_000)  # of a source of weight 1
    # Negatives wanted in val, and in test; default a quarter of the training negatives.
    eval_budget: _Count | None = Field(None, ge=0)
    min_probability: float = Field(0.01, gt=0, le=1)  # floor of the inclusion probability
    candidates_per_selected: float = Field(10.0, ge=1)  # how much of an endless source is looked at
    num_neighbors: int = Field(5, ge=1)  # k of the k largest cosines that similarity averages
    pilot: _Count = Field(500, ge=1)  # candidates a source at first, or 1% of the budget
    quarantine: Literal["auto", "off"] = "auto"  # auto: ceiling fitted on the positives
    seed: int = 0

    @property
    def effective_beta(self) -> float:
        return self.beta if self.mode == "similarity" else 0.0


class SplitConfig(BaseModel, frozen=True, extra="forbid"):
    """Fractions of leakage groups; the rest is train."""

    val: float = Field(0.15, ge=0, lt=1)
    test: float = Field(0.15, ge=0, lt=1)

    @model_validator(mode="after")
    def _leave_train(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError(f"val + test is {self.val + self.test:g}, must be under 1")
        return self

    @property
    def fractions(self) -> dict[Split, float]:
        return {"train": 1 - self.val - self.test, "val": self.val, "test": self.test}


class OutputConfig(BaseModel, frozen=True, extra="forbid"):
    """The data set to write."""

    path: str  # folder or fsspec URL
    image_size: int = Field(256, ge=32)  # pixels, shorter side; larger images are scaled down
    jpeg_quality: int = Field(90, ge=1, le=100)
    samples_per_shard: _Count = Field(1000, ge=1)  # 1,000 at 256 px is about 25 MB
    # After so many candidates of a source its shards are packed and committed as a generation: a
    # bound of what parts/ and memory hold, and the room that a shard has to fill.
    candidates_per_round: _Count = Field(1_000_000, ge=1)
    min_side: int = Field(32, ge=1)  # pixels; a shorter image is rejected as too_small
    max_pixels: _Count = Field(64_000_000, ge=1)  # a larger header is too_large, never decoded
    max_aspect: float = Field(5.0, ge=1)  # longer side / shorter side

    @property
    def image_settings(self) -> ImageSettings:
        return ImageSettings(
            image_size=self.image_size,
            jpeg_quality=self.jpeg_quality,
            min_side=self.min_side,
            max_pixels=self.max_pixels,
            max_aspect=self.max_aspect,
        )


class Config(BaseModel, frozen=True, extra="forbid"):
    """One data set, and the run trained on it."""

    variables: dict[str, str] = Field(default_factory=dict)  # for ${NAME}, before the environment
    targets: tuple[Target, ...]
    positives: tuple[SourceEntry, ...] = Field(min_length=1)
    sources: tuple[SourceEntry, ...] = ()
    encoder: EncoderConfig = EncoderConfig()
    selection: SelectionConfig = SelectionConfig()
    split: SplitConfig = SplitConfig()
    output: OutputConfig
    build: BuildConfig = BuildConfig()
    # fsspec's options by URL prefix, e.g. {"s3://": {endpoint_url: "http://minio:9000"}}.
    # Credentials come from the environment.
    storage: dict[str, dict[str, Any]] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    evaluate: dict[str, Any] = Field(default_factory=dict)
    cluster: dict[str, Any] = Field(default_factory=dict)  # over infra/values.yaml, for `launch`

    @model_validator(mode="before")
    @classmethod
    def _one_or_many_targets(cls, data: Any) -> Any:
        if isinstance(data, dict) and "target" in data:
            if "targets" in data:
                raise ValueError("give either `target` or `targets`")
            data = dict(data)
            data["targets"] = [data.pop("target")]
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [entry.name for entry in self.entries]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"source names must be unique, seen twice: {', '.join(doubled)}")
        if len(set(self.target_names)) != len(self.targets) or not self.targets:
            raise ValueError(f"targets must be distinct and at least one: {self.target_names}")
        for entry in self.positives:
            if entry.target is not None and entry.target not in self.target_names:
                raise ValueError(
                    f"positives {entry.name}: target {entry.target!r} "
                    f"is none of {self.target_names}"
                )
        for entry in self.sources:
            if entry.target is not None:
                raise ValueError(f"sources {entry.name}: `target` is for positives only")
        return self

    @property
    def target_names(self) -> tuple[str, ...]:
        return tuple(target.name for target in self.targets)

    def role_of(self, entry: SourceEntry) -> Role:
        return "positive" if entry in self.positives else "negative"

    @property
    def entries(self) -> tuple[SourceEntry, ...]:
        return (*self.positives, *self.sources)

    def row_inputs(self) -> dict[str, Any]:
        """The settings that every row of the data set depends on."""
        selection = self.selection.model_dump(mode="json")
        # These bound how much is taken of a source, so they belong to each source's plan.
        for of_source in ("budget", "eval_budget", "candidates_per_selected", "pilot"):
            del selection[of_source]
        return {
            "targets": list(self.target_names),
            "positives": [self.source_inputs(entry) for entry in self.positives],
            "encoder": self.encoder.inputs(),
            "selection": selection,
            "split": self.split.model_dump(mode="json"),
            "output": self.output.model_dump(mode="json", exclude={"path"}),
        }

    def source_inputs(self, entry: SourceEntry) -> dict[str, Any]:
        """The settings that one source's plan depends on."""
        fields = ("budget", "eval_budget", "candidates_per_selected", "pilot")
        selection = self.selection.model_dump(mode="json", include=set(fields))
        selection["budget"]["hours"] = None  # as in data sets from when a budget could be in hours
        inputs: dict[str, Any] = {
            "entry": entry.model_dump(mode="json", exclude={"max_reject_fraction"}),
            "role": self.role_of(entry),
        }
        if self.role_of(entry) == "negative":
            inputs["selection"] = selection
        return inputs


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """sha256 of canonical JSON: equal settings, equal fingerprint."""
    return sha256_hex(json.dumps(inputs, sort_keys=True, separators=(",", ":")).encode())
