"""The whole YAML config as a pydantic model, and which settings a data set depends on.

Sections `train:`, `evaluate:` and `cluster:` are not checked here: `train.config` and
`pipeline.launch` have their models.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, model_validator

from pipeline.config.build import BuildConfig
from pipeline.config.encoder import EncoderConfig
from pipeline.config.output import OutputConfig, SplitConfig
from pipeline.config.selection import Count, SelectionConfig
from pipeline.dataset.keys import sha256_hex
from pipeline.dataset.schema import LabelState, Role, Stratum
from pipeline.errors import ConfigError

# Settings of `selection` that bound how much of a source is taken: inputs of each source's plan.
_OF_SOURCE = ("budget", "eval_budget", "candidates_per_selected", "pilot")
# A dash separates the parts of a key, so names cannot contain one.
Name = Annotated[str, Field(pattern=r"^[a-z0-9_]+$", max_length=64)]


class Target(BaseModel, frozen=True, extra="forbid"):
    """One thing to detect."""

    name: Name = Field(description="Label of its positives, and name of its model output.")


class SourceEntry(BaseModel, frozen=True, extra="forbid"):
    """Where samples come from. A new source of a known format needs only an entry."""

    name: Name = Field(description="The `source` column; part of every key.")
    kind: str = Field(
        pattern=r"^[a-z][a-z_]*$", description="The format or generator; see Source kinds."
    )
    params: dict[str, Any] = Field(
        default_factory=dict, description="Settings of the kind, e.g. where its files are."
    )
    target: str | None = Field(
        None, description="The target that positives show. Default: the first target."
    )
    weight: float = Field(
        1.0, gt=0, description="Budget of this source, in units of selection.budget."
    )
    stratum: Stratum | None = Field(None, description="Replaces the stratum of all its samples.")
    label_state: LabelState | None = Field(
        None, description='Replaces "unknown", e.g. for a folder that somebody has checked.'
    )
    max_candidates: Count | None = Field(
        None, ge=1, description="Stop reading after about this many samples."
    )
    max_reject_fraction: float = Field(
        0.2,
        ge=0,
        le=1,
        description="The build stops at a partition of at least 100 samples of which more are "
        "rejected.",
    )


class Config(BaseModel, frozen=True, extra="forbid"):
    """One data set, and the run trained on it."""

    variables: dict[str, str] = Field(
        default_factory=dict, description="Values of ${NAME}, before those of the environment."
    )
    targets: tuple[Target, ...] = Field(description="What to detect, one model output each.")
    positives: tuple[SourceEntry, ...] = Field(
        min_length=1, description="Sources whose samples all show a target."
    )
    sources: tuple[SourceEntry, ...] = Field((), description="Sources of negatives.")
    encoder: EncoderConfig = EncoderConfig()
    selection: SelectionConfig = SelectionConfig()
    split: SplitConfig = SplitConfig()
    output: OutputConfig
    build: BuildConfig = BuildConfig()
    pool: str | None = Field(
        None,
        description="Folder or s3:// URL of a pool: candidates that were embedded once, for every "
        "data set that takes from them. A build reads from it, and adds what it has not.",
    )
    storage: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Options of fsspec by URL prefix, e.g. "
        '{"s3://": {endpoint_url: "http://minio:9000"}}. Credentials come from the environment.',
    )
    train: dict[str, Any] = Field(default_factory=dict, description="Settings of training.")
    evaluate: dict[str, Any] = Field(default_factory=dict, description="Settings of evaluation.")
    cluster: dict[str, Any] = Field(
        default_factory=dict, description="Replaces values of infra/values.yaml for `launch`."
    )

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
        if self.pool is not None and self.build.embeddings_from is not None:
            raise ValueError("give either `pool` or `build.embeddings_from`: both have embeddings")
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

    def find_entry(self, name: str) -> SourceEntry:
        """By the name that `--source` gives. Raises ConfigError if there is none."""
        entries = {entry.name: entry for entry in self.entries}
        if name not in entries:
            raise ConfigError(f"--source {name}: the config has {', '.join(entries)}")
        return entries[name]

    def role_of(self, entry: SourceEntry) -> Role:
        return "positive" if entry in self.positives else "negative"

    @property
    def entries(self) -> tuple[SourceEntry, ...]:
        return (*self.positives, *self.sources)

    def adds_hardest(self, entry: SourceEntry) -> bool:
        """Whether a first head adds training negatives of an entry to those that are drawn."""
        return self.selection.share_drawn < 1 and self.role_of(entry) == "negative"

    def row_inputs(self) -> dict[str, Any]:
        """The settings that all rows of the data set depend on."""
        selection = self.selection.model_dump(mode="json")
        for of_source in (*_OF_SOURCE, "pool"):
            del selection[of_source]
        return {
            "targets": list(self.target_names),
            "positives": [self.source_inputs(entry) for entry in self.positives],
            "encoder": self.encoder.inputs(),
            "selection": selection,
            "split": self.split.model_dump(mode="json"),
            "output": self.output.model_dump(mode="json", exclude={"path"}),
        }

    def pool_inputs(self) -> list[dict[str, Any]]:
        """The settings of all sources with which one shares its budget; [] if it has its own."""
        if self.selection.pool == "source":
            return []
        return [e.model_dump(mode="json", exclude={"max_reject_fraction"}) for e in self.sources]

    def source_inputs(self, entry: SourceEntry) -> dict[str, Any]:
        """The settings that the plan of one source depends on."""
        selection = self.selection.model_dump(mode="json", include=set(_OF_SOURCE))
        selection["budget"]["hours"] = None  # as in older data sets, whose budget could be in hours
        inputs: dict[str, Any] = {
            "entry": entry.model_dump(mode="json", exclude={"max_reject_fraction"}),
            "role": self.role_of(entry),
        }
        if self.role_of(entry) == "negative":
            inputs["selection"] = selection
            if pool := self.pool_inputs():
                inputs["pool"] = pool
        return inputs


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """sha256 of canonical JSON: equal settings have equal fingerprints."""
    return sha256_hex(json.dumps(inputs, sort_keys=True, separators=(",", ":")).encode())
