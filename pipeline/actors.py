"""Ray actors that embed for all workers: few of them, on GPUs, where workers are many, on CPUs.

A worker sends a batch of pixels through the object store and decodes on; it waits where
`MAX_IN_FLIGHT` of its batches are on their way, which bounds what the object store holds.
Which batch an actor gets changes no bit of it. An actor that dies is started again, and its
batches with it.
"""

import logging
import os
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.autoscaler.v2.sdk import get_cluster_status

from pipeline.cluster import Cluster, named_deaths
from pipeline.placement import MAX_IN_FLIGHT, Node, place
from pipeline.runtimes import Begun, PreparedEncoder, Runtime

_log = logging.getLogger(__name__)

_Embedding = NDArray[np.float32]


def share_encoder(cluster: Cluster, encoder: PreparedEncoder) -> tuple[Cluster, PreparedEncoder]:
    """Starts actors where the config wants them; returns what workers are to be made with.

    A cluster with actors has fewer workers. Raises ConfigError where they can never be.
    """
    build = cluster.config
    if build.embed_on == "worker":
        return cluster, encoder
    placement = place(
        build,
        encoder,
        _read_nodes(),
        num_workers=cluster.num_workers,
        can_grow=_can_grow(build.address),
    )
    if not placement.num_actors:
        return cluster, encoder
    _log.info(
        "%d workers, and %d actors of %g GPUs that embed for them",
        placement.num_workers, placement.num_actors, build.gpus_per_actor,
    )  # fmt: skip
    remote: Any = ray.remote(EncoderActor)
    remote = remote.options(
        num_cpus=build.cpus_per_actor,
        num_gpus=build.gpus_per_actor,
        scheduling_strategy="SPREAD",
        max_restarts=-1,
        max_task_retries=-1,
    )
    full = ray.put(replace(encoder, cheap=None))
    actors = tuple(remote.remote(full) for _ in range(placement.num_actors))
    shared = replace(encoder, model=None, shared=EncoderActors(actors, full))
    return replace(cluster, num_workers=placement.num_workers), shared


def _read_nodes() -> tuple[Node, ...]:
    list_nodes: Any = ray.nodes
    return tuple(
        Node(
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
            object_store_bytes=node["Resources"].get("object_store_memory", 0.0),
        )
        for node in list_nodes()
        if node["Alive"]
    )


def _can_grow(address: str | None) -> bool:
    """Machines that an autoscaler has started know their type, those of `ray start` do not."""
    if address is None:
        return False
    if address.startswith("ray://"):  # a client is not told
        return True
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    nodes = (*status.active_nodes, *status.idle_nodes)
    return any(node.ray_node_type_name != f"node_{node.node_id}" for node in nodes)


class EncoderActor:
    """The encoder, opened once, in a process of its own."""

    def __init__(self, encoder: PreparedEncoder) -> None:
        self._runtime = encoder.open()

    def embed(self, pixels_BCHW: NDArray[np.uint8]) -> _Embedding:
        # What comes out of the object store is read-only, and PyTorch wants to own its memory.
        return self._runtime.embed(pixels_BCHW.copy())


@dataclass(frozen=True)
class EncoderActors:
    """The actors of a build, as they are sent to its workers.

    Keeps what they were made of: Ray makes one that has died of it again.
    """

    actors: tuple[Any, ...]
    encoder: "ray.ObjectRef[Any]"

    def open(self) -> Runtime:
        return RemoteRuntime(self.actors)


@dataclass(frozen=True)
class _Sent:
    """A batch on its way. Its pixels are kept: a result that is lost with its machine is redone."""

    embedding: "Future[_Embedding]"
    pixels: "ray.ObjectRef[Any]"
    actor: int


class RemoteRuntime:
    """Has batches embedded by actors, from within a worker."""

    def __init__(self, actors: tuple[Any, ...]) -> None:
        self._actors = actors
        self._last = os.getpid() % len(actors)  # workers do not all begin with the same one
        self._sent: dict[ray.ObjectRef[Any], _Sent] = {}

    def embed(self, pixels_BCHW: NDArray[np.uint8]) -> _Embedding:
        return self.begin(pixels_BCHW)()

    def begin(self, pixels_BCHW: NDArray[np.uint8]) -> Begun:
        with named_deaths():
            while len(self._sent) >= MAX_IN_FLIGHT:
                self._receive()
            actor = self._least_busy()
            pixels = ray.put(pixels_BCHW)
            embedding: Future[_Embedding] = Future()
            reference = self._actors[actor].embed.remote(pixels)
            self._sent[reference] = _Sent(embedding, pixels, actor)
        return lambda: self._wait_for(embedding)

    def _wait_for(self, embedding: "Future[_Embedding]") -> _Embedding:
        with named_deaths():
            while not embedding.done():
                self._receive()
        return embedding.result()

    def _receive(self) -> None:
        """Takes a batch that is ready out of the object store, whichever it is."""
        ready, _ = ray.wait(list(self._sent))
        sent = self._sent.pop(ready[0])
        sent.embedding.set_result(ray.get(ready[0]).copy())

    def _least_busy(self) -> int:
        """Of this worker's own batches: one that is being restarted gets no more meanwhile."""
        busy = [sent.actor for sent in self._sent.values()]
        number = len(self._actors)
        in_turn = [(self._last + i) % number for i in range(1, number + 1)]
        self._last = min(in_turn, key=busy.count)
        return self._last
