"""How many workers, and how many actors that embed for them, fit on the nodes that Ray reports.

Knows nothing of Ray itself. A config that cannot fit is refused here, before any work.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config.build import BuildConfig, whole
from pipeline.encoders.runtimes import PreparedEncoder
from pipeline.errors import ConfigError

_log = logging.getLogger(__name__)

# Batches of a worker in flight: one is being embedded, one is next. Meanwhile the worker decodes a
# third, and then waits.
MAX_IN_FLIGHT = 2
# Share of a node's object store. The rest is for objects from other nodes, and for Ray.
_SHARE_FOR_BATCHES = 0.5


@dataclass(frozen=True)
class Node:
    """A machine as Ray reports it."""

    cpus: float
    gpus: float
    object_store_bytes: float


@dataclass(frozen=True)
class Placement:
    """Processes of a build."""

    num_workers: int
    num_actors: int  # 0: workers embed


def place(
    build: BuildConfig,
    encoder: PreparedEncoder,
    nodes: Sequence[Node],
    *,
    num_workers: int,
    can_grow: bool,
) -> Placement:
    """For build.embed_on auto and actors. num_workers: workers of a cluster without actors.

    Raises ConfigError if these nodes lack the resources, unless an autoscaler can add nodes
    (`can_grow`), or if their object stores cannot hold the batches in flight. `auto` is never
    refused: then workers embed.
    """
    num_actors = _num_actors(build, encoder, nodes, can_grow=can_grow)
    if not num_actors:
        return Placement(num_workers, 0)
    num_beside = num_workers  # workers beside the actors
    if build.workers is None:
        num_beside = build.most_workers(cpus=_cpus_left(build, nodes, num_actors))
    if problem := _too_many_batches(build, encoder, nodes, num_beside):
        if build.embed_on == "actors":
            raise ConfigError(f"build.embed_on: actors: {problem}")
        _log.warning("workers embed instead of actors on GPUs: %s", problem)
        return Placement(num_workers, 0)
    return Placement(num_beside, num_actors)


def _num_actors(
    build: BuildConfig, encoder: PreparedEncoder, nodes: Sequence[Node], *, can_grow: bool
) -> int:
    most = sum(build.most_actors(cpus=node.cpus, gpus=node.gpus) for node in nodes)
    if build.embed_on == "auto":
        wants = encoder.is_torch and build.gpus_per_actor and not build.gpus_per_worker
        number = min(build.actors or most, most) if wants else 0
        return number if _leaves_a_worker(build, nodes, number) else 0
    if build.gpus_per_actor and not encoder.is_torch:
        raise ConfigError(
            "build.embed_on: actors on GPUs cannot use encoder.runtime onnxruntime, which runs on "
            "CPUs: set encoder.runtime to torch, or build.gpus_per_actor to 0"
        )
    number = build.actors or (max(most, 1) if build.gpus_per_actor else 1)
    if number <= most and _leaves_a_worker(build, nodes, number):
        return number
    asked = (
        f"build.embed_on: actors needs {number} actors of {build.gpus_per_actor:g} GPUs and "
        f"{build.cpus_per_actor:g} CPUs (build.actors, gpus_per_actor, cpus_per_actor) and a "
        f"worker of {build.cpus_per_worker:g} CPUs; Ray reports {_describe(nodes)}"
    )
    if not can_grow:
        raise ConfigError(f"{asked}. Ask for less, add machines, or set build.embed_on to worker")
    _log.warning("%s: waiting for its autoscaler to add what is missing", asked)
    return number


def _leaves_a_worker(build: BuildConfig, nodes: Sequence[Node], num_actors: int) -> bool:
    return whole(_cpus_left(build, nodes, num_actors) / build.cpus_per_worker) >= 1


def _cpus_left(build: BuildConfig, nodes: Sequence[Node], num_actors: int) -> float:
    return sum(node.cpus for node in nodes) - num_actors * build.cpus_per_actor


def _too_many_batches(
    build: BuildConfig, encoder: PreparedEncoder, nodes: Sequence[Node], num_workers: int
) -> str | None:
    """The problem, if the most that workers send at once does not fit into an object store."""
    for node in nodes:
        on_node = min(num_workers, whole(node.cpus / build.cpus_per_worker))
        needed = on_node * MAX_IN_FLIGHT * encoder.batch_bytes
        if needed > _SHARE_FOR_BATCHES * node.object_store_bytes:
            return (
                f"{on_node} workers on a machine send up to "
                f"{MAX_IN_FLIGHT} batches of {encoder.config.batch_size} images each, "
                f"{needed / 1e9:.2f} GB at once, into half of its object store of "
                f"{node.object_store_bytes / 1e9:.2f} GB. Lower build.workers, "
                "encoder.batch_size or encoder.image_size, or raise build.object_store_gb "
                "(on a cluster: `ray start --object-store-memory`)"
            )
    return None


def _describe(nodes: Sequence[Node]) -> str:
    listed = ", ".join(f"{node.gpus:g} GPUs and {node.cpus:g} CPUs" for node in nodes[:8])
    more = f" and {len(nodes) - 8} more" if len(nodes) > 8 else ""
    return f"{len(nodes)} machines ({listed}{more})" if len(nodes) != 1 else listed
