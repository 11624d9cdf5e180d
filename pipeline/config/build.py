"""The `build:` section of the config: how to run, on this machine or on a Ray cluster."""

import math
from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator


class MetricsServer(BaseModel, frozen=True, extra="forbid"):
    """Where Prometheus finds http://HOST:PORT/metrics."""

    port: int | None = Field(None, ge=1, le=65535, description="Default: nothing is served.")
    host: str = Field(
        "127.0.0.1",
        description="0.0.0.0 if Prometheus is on another machine: then anyone who reaches the port "
        "may read.",
    )


class BuildConfig(BaseModel, frozen=True, extra="forbid"):
    """How to run. Nothing here changes the data set or enters a fingerprint."""

    workers: int | None = Field(
        None, ge=1, description="Processes. Default: one per CPU of the cluster."
    )
    cpus_per_worker: float = Field(1.0, gt=0, description="CPUs that Ray reserves per worker.")
    gpus_per_worker: float = Field(
        0.0, ge=0, description="GPUs that Ray reserves per worker; 0.25 puts four on a GPU."
    )
    embed_on: Literal["auto", "worker", "actors"] = Field(
        "auto",
        description="What runs the encoder: each worker, or actors for all workers. auto: actors "
        "if Ray reports GPUs, encoder.runtime is torch and workers have no GPUs.",
    )
    actors: int | None = Field(
        None, ge=1, description="Number of actors. Default: as many as fit on the GPUs; 1 on CPUs."
    )
    gpus_per_actor: float = Field(1.0, ge=0, description="GPUs per actor; 0 runs them on CPUs.")
    cpus_per_actor: float = Field(1.0, ge=0, description="CPUs per actor.")
    object_store_gb: float | None = Field(
        None,
        ge=0.1,
        description="Shared memory of a Ray that the build starts. Default: 0.5, and with actors "
        "0.06 more per worker.",
    )
    address: str | None = Field(
        None,
        description="Address of a Ray cluster; local starts one on this machine. Default: "
        "processes of this machine, and a local Ray from 10,000 images on, for actors and GPUs.",
    )
    keep_embeddings: bool = Field(
        True,
        description="Keep the embeddings of candidates beside the data set, 2.5 kB each, so that "
        "another selection need not embed again.",
    )
    embeddings_from: str | None = Field(
        None, description="A data set with the same encoder whose embeddings are used again."
    )
    metrics: MetricsServer = Field(MetricsServer(), description="For Prometheus: {port: 9464}.")
    stuck_after_s: float = Field(
        60.0,
        gt=0,
        description="A build that has committed nothing for this many seconds, and for five times "
        "as long as usual, logs what is in flight.",
    )
    lease_wait_s: float = Field(
        0.0,
        ge=0,
        description="Seconds to wait for another build of the same data set, or for the lease of "
        "a killed one to expire.",
    )

    @model_validator(mode="after")
    def _one_place_for_gpus(self) -> Self:
        if self.embed_on == "actors" and self.gpus_per_worker:
            raise ValueError(
                f"with embed_on: actors, workers need no GPUs, but gpus_per_worker is "
                f"{self.gpus_per_worker:g}: leave it out, or set embed_on to worker"
            )
        if self.gpus_per_actor > 1 and self.gpus_per_actor % 1:
            raise ValueError(
                f"gpus_per_actor {self.gpus_per_actor:g}: give a fraction of one GPU, or whole GPUs"
            )
        return self

    @property
    def gpus_per_embedder(self) -> float:
        """GPUs of each process that runs the encoder, as far as the config says."""
        return self.gpus_per_actor if self.embed_on == "actors" else self.gpus_per_worker

    def most_actors(self, *, cpus: float, gpus: float) -> int:
        """Actors that fit on a machine; each has whole GPUs or a fraction of one."""
        room = []
        if self.gpus_per_actor >= 1:
            room.append(whole(gpus / self.gpus_per_actor))
        elif self.gpus_per_actor:
            room.append(whole(gpus) * whole(1 / self.gpus_per_actor))
        if self.cpus_per_actor:
            room.append(whole(cpus / self.cpus_per_actor))
        return min(room, default=self.actors or 1)

    def most_workers(self, *, cpus: float) -> int:
        """Workers that fit on the CPUs; at least one."""
        return max(1, whole(cpus / self.cpus_per_worker))


def whole(number: float) -> int:
    """Rounds down, with a tolerance: 0.3 / 0.1 is 2.9999999999999996 and gives 3."""
    return math.floor(number + 1e-6)
