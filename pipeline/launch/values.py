"""`infra/values.yaml`: values that the jobs of a site share; `cluster:` of a config overrides them.

Patterns are narrow on purpose: no value that passes means anything to a shell or to `#SBATCH`.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, model_validator

from pipeline.config.build import BuildConfig
from pipeline.config.loading import read_yaml, validate
from pipeline.errors import ConfigError
from pipeline.launch.templates import INFRA
from pipeline.storage import refuse_credentials

_Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_./:,=@%+-]+$", max_length=256)]
_DnsName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=63)]
_Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
_Path = Annotated[str, Field(pattern=r"^/[A-Za-z0-9_./-]*$")]


class _Section(BaseModel, frozen=True, extra="forbid"):
    """A mapping of the file."""


class Nodes(_Section):
    """Machines of one kind, and their number."""

    cpus: int = Field(ge=1)
    memory_gib: int = Field(ge=1)
    gpus: int = Field(0, ge=0)  # per machine
    min: int = Field(1, ge=0)  # kept when idle
    max: int = Field(1, ge=0)  # 0: none of this kind
    instance_type: _Word | None = None  # started by `ray up`

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is over max {self.max}")
        return self


class Kubernetes(_Section):
    """Place in a Kubernetes cluster, and what the pods may use."""

    namespace: _DnsName
    service_account: _DnsName
    queue: _DnsName | None
    secret: _DnsName
    secret_keys: tuple[_Variable, ...]
    volume_claim: _DnsName | None
    volume_path: _Path


class Slurm(_Section):
    """Words of `#SBATCH` lines, and the folder of `infineg`."""

    partition: _Word | None
    account: _Word | None
    time: _Word
    bin: _Path | None


class Ray(_Section):
    """An existing Ray cluster, and the region of one that `ray up` starts."""

    address: _Word
    region: _Word


class Sky(_Section):
    """Machines that SkyPilot asks for."""

    infra: _Word
    use_spot: bool
    accelerator: _Word
    runs: _Word


class Values(_Section):
    """The whole file: `infra/values.yaml` has every field with its default and meaning."""

    image: _Word
    env: dict[_Variable, str]
    retries: int = Field(ge=0)
    head: Nodes
    submitter: Nodes
    cpu_workers: Nodes
    gpu_workers: Nodes
    trainers: Nodes
    kubernetes: Kubernetes
    slurm: Slurm
    ray: Ray
    sky: Sky

    @model_validator(mode="after")
    def _training_has_one_size(self) -> Self:
        if self.trainers.min != self.trainers.max or not self.trainers.max:
            raise ValueError(
                f"trainers: min {self.trainers.min} and max {self.trainers.max} must be the same "
                "number of machines, at least 1: training does not grow while it runs"
            )
        return self

    @property
    def build_cpus(self) -> int:
        """CPUs of all workers of a build at its largest."""
        return sum(nodes.cpus * nodes.max for nodes in (self.cpu_workers, self.gpu_workers))

    def actors_of(self, build: BuildConfig) -> int:
        """Actors for which a build at its largest has room."""
        return sum(
            nodes.max * build.most_actors(cpus=nodes.cpus, gpus=nodes.gpus)
            for nodes in (self.cpu_workers, self.gpu_workers)
        )

    @property
    def training_processes(self) -> int:
        """One per GPU, or one per machine without GPUs."""
        return self.trainers.max * max(self.trainers.gpus, 1)


def read_values(path: str | None, cluster: Mapping[str, Any]) -> Values:
    """The values of the site, overridden by those of `path`, then by `cluster:` of a config.

    Raises ConfigError that names the field at fault, also for a credential in `env`.
    """
    if not isinstance(cluster, Mapping):
        raise ConfigError(f"cluster: expected a mapping, got {cluster!r}")
    layers = [read_yaml(INFRA / "values.yaml")]
    layers += [read_yaml(path)] if path else []
    values = validate(Values, _merge([*layers, cluster]), section="cluster")
    refuse_credentials("cluster: env", values.env)
    return values


def _merge(layers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Later layers win, field by field."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            before = merged.get(name)
            both = isinstance(before, dict) and isinstance(value, Mapping)
            merged[name] = _merge([before, value]) if both and before is not None else value
    return merged
