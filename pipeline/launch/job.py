"""A job to launch: a command, the config that travels with it, and the values of the site."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.config import yaml_text
from pipeline.config.loading import load_config, read_yaml
from pipeline.config.schema import Config
from pipeline.errors import ConfigError
from pipeline.launch import JobKind
from pipeline.launch.values import Values, read_values

_VARIABLE = re.compile(r"\$\{(\w+)\}")

# The lease of a killed build lasts 90 s; a build that replaces it elsewhere waits that long.
LEASE_WAIT_S = 180
_MAX_NAME = 40  # KubeRay appends to it, and a Kubernetes name has 63


@dataclass(frozen=True)
class Job:
    """A command on one config. `data` keeps ${NAME}; `config` has the known ones filled in."""

    kind: JobKind
    path: Path
    overrides: tuple[str, ...]
    data: Mapping[str, Any]
    config: Config
    values: Values

    @property
    def name(self) -> str:
        """`infineg-build-cats`: valid on every platform, and the same for the same config."""
        stem = re.sub(r"[^a-z0-9]+", "-", self.path.stem.lower()).strip("-")
        return f"infineg-{self.kind}-{stem}"[:_MAX_NAME].rstrip("-")

    @property
    def variables(self) -> list[str]:
        """Names of ${NAME} that neither the config's `variables:` nor `cluster.env` set."""
        used = set(_VARIABLE.findall(self.text))
        return sorted(used - set(self.config.variables) - set(self.values.env))

    @property
    def text(self) -> str:
        """The config as YAML, overrides applied and ${NAME} kept."""
        return yaml_text.dump(dict(self.data))

    def on_cluster(self, *, grows: bool) -> str:
        """`text` for a Ray cluster elsewhere; if it grows, with its workers at the limit."""
        if self.kind != JobKind.BUILD:
            return self.text
        build = {"address": "auto", "lease_wait_s": LEASE_WAIT_S}
        if grows:
            # At the start Ray reports a cluster that has not grown yet.
            build |= self._grown()
        data = {**self.data, "build": {**build, **(self.data.get("build") or {})}}
        return yaml_text.dump(data)

    def _grown(self) -> dict[str, int]:
        """Workers, and actors if any, of a cluster that has grown to its limit."""
        build, cpus = self.config.build, self.values.build_cpus
        if build.embed_on != "actors" or not build.gpus_per_actor:
            return {"workers": build.most_workers(cpus=cpus)}
        number = build.actors or self.values.actors_of(build)
        if not number:
            raise ConfigError(
                f"build.embed_on: actors, with {build.gpus_per_actor:g} GPUs each: no machine has "
                "that many. Set cluster.gpu_workers.max and its gpus, or build.embed_on to worker"
            )
        workers = build.most_workers(cpus=cpus - number * build.cpus_per_actor)
        return {"actors": number, "workers": workers}

    def command(self, config: str, *options: str) -> list[str]:
        """`infineg build CONFIG`, `infineg train CONFIG --resume`, with more options."""
        resume = ["--resume"] if self.kind == JobKind.TRAIN else []
        return ["infineg", self.kind.value, config, *resume, *options]

    @property
    def metrics_port(self) -> int | None:
        if self.kind == JobKind.TRAIN:
            metrics = self.config.train.get("metrics")  # checked where the job runs
            port = metrics.get("port") if isinstance(metrics, dict) else None
            return port if isinstance(port, int) else None
        return self.config.build.metrics.port

    @property
    def places(self) -> dict[str, str]:
        """Where the job writes, by field of the config; without places that hold ${NAME}."""
        found = {"output.path": self.config.output.path}
        if self.kind == JobKind.TRAIN:
            found["train.run"] = str(self.config.train.get("run", "run"))
        return {field: place for field, place in found.items() if not _VARIABLE.search(place)}


def read_job(
    kind: JobKind, path: str, overrides: Sequence[str], values_path: str | None, *, is_here: bool
) -> Job:
    """Reads the config and checks what can be checked before the job starts.

    For other machines (not `is_here`), ${NAME} need not be set on this one. Raises ConfigError,
    also for a credential in the config, since manifests are stored and shown.
    """
    data = read_yaml(path, overrides)
    _refuse_secrets(path, data)
    values = read_values(values_path, data.get("cluster") or {})
    known = None if is_here else _Unknown(values.env)
    config = load_config(path, overrides, environment=known)
    if kind == JobKind.TRAIN and "run" not in config.train:
        raise ConfigError(f"{path}: set train.run, the folder of the run")
    return Job(kind, Path(path), tuple(overrides), data, config, values)


class _Unknown(dict[str, str]):
    """Variables of another machine: a name that is unknown here stays as it is."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> str:
        return f"${{{name}}}"


def _refuse_secrets(path: str, node: Any, where: str = "") -> None:
    """A manifest is stored and shown: signed addresses and the like belong in ${NAME}."""
    if isinstance(node, Mapping):
        for key, child in node.items():
            _refuse_secrets(path, child, f"{where}.{key}" if where else str(key))
    elif isinstance(node, list):
        for number, child in enumerate(node):
            _refuse_secrets(path, child, f"{where}.{number}")
    elif isinstance(node, str) and storage.holds_credentials(node):
        raise ConfigError(
            f"{path}: {where}: {storage.redact(node)!r} holds a credential, which would be in the "
            "manifest. Write ${NAME} in its place, and set NAME by a Secret or the environment"
        )
