"""Ray actors that embed for all workers: a few actors on GPUs, for many workers on CPUs.

A worker sends a batch of pixels through the object store and goes on decoding. It waits when
`MAX_IN_FLIGHT` of its batches are in flight, which bounds what the object store holds. Embeddings
do not depend on the actor. Ray restarts an actor that dies, and sends its batches again.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.exceptions import RayTaskError

from pipeline.cluster.deaths import named_deaths
from pipeline.cluster.placement import MAX_IN_FLIGHT, Node, place
from pipeline.cluster.ray_data import RayCluster, alive_nodes
from pipeline.encoders.runtimes import Pending, PreparedEncoder, Runtime
from pipeline.errors import InfinegError

_log = logging.getLogger(__name__)

_Embedding = NDArray[np.float32]
# In a list, or Ray would pass the object and not the reference to it.
_Encoder = Sequence["ray.ObjectRef[PreparedEncoder]"]


def start_encoder_actors(
    cluster: RayCluster, encoder: PreparedEncoder
) -> tuple[RayCluster, PreparedEncoder]:
    """Starts the actors that the config asks for; returns the cluster and encoder for workers.

    A cluster with actors has fewer workers. Raises ConfigError if there can never be room for them.
    """
    build = cluster.config
    if build.embed_on == "worker":
        return cluster, encoder
    names = ("CPU", "GPU", "object_store_memory")
    resources = [node["Resources"] for node in alive_nodes()]
    placement = place(
        build,
        encoder,
        [Node(*(of_node.get(name, 0.0) for name in names)) for of_node in resources],
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
    reference = [ray.put(encoder)]
    actors = tuple(remote.remote() for _ in range(placement.num_actors))
    for actor in actors:
        actor.prepare.remote(reference)  # opens the encoder while workers start
    shared = replace(encoder, model=None, shared=EncoderActors(actors, reference))
    return replace(cluster, num_workers=placement.num_workers), shared


def _can_grow(address: str | None) -> bool:
    """Nodes that an autoscaler has started have a type, those of `ray start` do not."""
    if address in (None, "local"):
        return False
    if address.startswith("ray://"):  # a client cannot find out
        return True
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    nodes = (*status.active_nodes, *status.idle_nodes)
    return any(node.ray_node_type_name != f"node_{node.node_id}" for node in nodes)


class EncoderActor:
    """Runs the encoder in a process of its own.

    Every call passes the encoder, because an actor that Ray has restarted has none.
    """

    def __init__(self) -> None:
        self._runtime: Runtime | None = None

    def prepare(self, encoder: _Encoder) -> None:
        if self._runtime is None:
            self._runtime = ray.get(encoder[0]).open()

    def embed(self, encoder: _Encoder, pixels_BCHW: NDArray[np.uint8]) -> _Embedding:
        self.prepare(encoder)
        assert self._runtime is not None
        # Arrays from the object store are read-only, and PyTorch needs memory it can write to.
        return self._runtime.embed(pixels_BCHW.copy())


@dataclass(frozen=True)
class EncoderActors:
    """The actors of a build and their encoder, in the form that is sent to workers."""

    actors: tuple[Any, ...]
    encoder: _Encoder

    def open(self) -> Runtime:
        return RemoteRuntime(self)


@dataclass(frozen=True)
class _Sent:
    """A batch in flight. It keeps its pixels, so that Ray can redo a result that is lost."""

    embedding: "Future[_Embedding]"
    pixels: "ray.ObjectRef[Any]"
    actor: int


@contextlib.contextmanager
def _errors_as_in_a_worker() -> Iterator[None]:
    """Raises an InfinegError of an actor, such as missing weights, as it was raised there."""
    try:
        with named_deaths():
            yield
    except RayTaskError as error:
        if isinstance(error.cause, InfinegError):
            raise error.cause from None
        raise


class RemoteRuntime:
    """Embeds batches by actors; used in a worker."""

    def __init__(self, shared: EncoderActors) -> None:
        self._actors = shared.actors
        self._encoder = shared.encoder
        self._last = os.getpid() % len(self._actors)  # so that workers start at different actors
        self._sent: dict[ray.ObjectRef[Any], _Sent] = {}

    def embed(self, pixels_BCHW: NDArray[np.uint8]) -> _Embedding:
        return self.submit(pixels_BCHW)()

    def submit(self, pixels_BCHW: NDArray[np.uint8]) -> Pending:
        with _errors_as_in_a_worker():
            while len(self._sent) >= MAX_IN_FLIGHT:
                self._receive()
            actor = self._least_busy()
            pixels = ray.put(pixels_BCHW)
            embedding: Future[_Embedding] = Future()
            reference = self._actors[actor].embed.remote(self._encoder, pixels)
            self._sent[reference] = _Sent(embedding, pixels, actor)
        return lambda: self._wait_for(embedding)

    def _wait_for(self, embedding: "Future[_Embedding]") -> _Embedding:
        with _errors_as_in_a_worker():
            while not embedding.done():
                self._receive()
        return embedding.result()

    def _receive(self) -> None:
        """Takes the next batch that is ready out of the object store."""
        ready, _ = ray.wait(list(self._sent))
        sent = self._sent.pop(ready[0])
        sent.embedding.set_result(ray.get(ready[0]).copy())

    def _least_busy(self) -> int:
        """Counts only batches of this worker: an actor that is being restarted gets no more."""
        busy = [sent.actor for sent in self._sent.values()]
        num_actors = len(self._actors)
        in_turn = [(self._last + i) % num_actors for i in range(1, num_actors + 1)]
        self._last = min(in_turn, key=busy.count)
        return self._last
