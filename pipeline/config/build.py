"""The `build:` section of the config: how to run, on what of a Ray cluster."""

import math
from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator


class MetricsServer(BaseModel, frozen=True, extra="forbid"):
    """Where http://HOST:PORT/metrics is; `port: null` serves nothing."""

    port: int | None = Field(None, ge=1, le=65535)
    host: str = "127.0.0.1"  # 0.0.0.0 where Prometheus is on another machine: anyone may read them


class BuildConfig(BaseModel, frozen=True, extra="forbid"):
    """How to run, never what comes out: nothing here enters a fingerprint."""

    workers: int | None = Field(None, ge=1)  # processes; default one a CPU of the cluster
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float = Field(0.0, ge=0)  # 0.25 puts four workers on a GPU
    # Who runs the encoder: each worker, or actors for all workers. auto: actors where Ray reports
    # GPUs, encoder.runtime is torch and workers have none of their own.
    embed_on: Literal["auto", "worker", "actors"] = "auto"
    actors: int | None = Field(None, ge=1)  # default as many as the GPUs of Ray give; 1 on CPUs
    gpus_per_actor: float = Field(1.0, ge=0)  # 0: on CPUs
    cpus_per_actor: float = Field(1.0, ge=0)
    # Shared memory of a Ray that is started here; default 0.5 and, for actors, 0.06 a worker.
    object_store_gb: float | None = Field(None, ge=0.1)
    address: str | None = None  # of a Ray cluster; default a local one
    keep_embeddings: bool = True  # 2.5 kB a candidate, beside the data set, to score them anew
    embeddings_from: str | None = None  # a data set of the same encoder, for what it has embedded
    metrics: MetricsServer = MetricsServer()  # for Prometheus: {port: 9464}
    # A build that has committed nothing for so many seconds, and for five times as long as usual,
    # says what is in flight.
    stuck_after_s: float = Field(60.0, gt=0)
    # Seconds to wait for another build of this data set, or for the lease of one that was killed.
    lease_wait_s: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _one_place_for_gpus(self) -> Self:
        if self.embed_on == "actors" and self.gpus_per_worker:
            raise ValueError(
                f"embed_on: actors leaves workers nothing to do on GPUs, and gpus_per_worker is "
                f"{self.gpus_per_worker:g}: leave it out, or set embed_on to worker"
            )
        if self.gpus_per_actor > 1 and self.gpus_per_actor % 1:
            raise ValueError(
                f"gpus_per_actor {self.gpus_per_actor:g}: a part of one GPU, or whole ones"
            )
        return self

    @property
    def gpus_per_embedder(self) -> float:
        """Asked for each process that runs the encoder, as far as the config alone tells."""
        return self.gpus_per_actor if self.embed_on == "actors" else self.gpus_per_worker

    def most_actors(self, *, cpus: float, gpus: float) -> int:
        """How many a machine takes: each has whole GPUs, or a part of one."""
        room = []
        if self.gpus_per_actor >= 1:
            room.append(whole(gpus / self.gpus_per_actor))
        elif self.gpus_per_actor:
            room.append(whole(gpus) * whole(1 / self.gpus_per_actor))
        if self.cpus_per_actor:
            room.append(whole(cpus / self.cpus_per_actor))
        return min(room, default=self.actors or 1)

    def most_workers(self, *, cpus: float) -> int:
        """How many so many CPUs give; at least one."""
        return max(1, whole(cpus / self.cpus_per_worker))


def whole(number: float) -> int:
    """Rounded down; 1 / 0.1 is a little less than 10, and is 10."""
    return math.floor(number + 1e-6)
