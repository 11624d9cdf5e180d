"""How many workers, and how many actors that embed for them, on the machines that Ray reports.

Knows nothing of Ray itself. What cannot be is refused here, before any work.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config.build import BuildConfig, whole
from pipeline.encoders.runtimes import PreparedEncoder
from pipeline.errors import ConfigError

_log = logging.getLogger(__name__)

# Batches of a worker that are on their way: one is embedded, one is next. While they are, the
# worker decodes a third, and then it waits.
MAX_IN_FLIGHT = 2
# Of the object store of a machine: the rest is for what comes from others, and for Ray.
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
    """For build.embed_on auto and actors; `num_workers` are as many as there are without any.

    Raises ConfigError for what these machines do not have, unless there can be more of them
    (`can_grow`), and for more batches in flight than their object stores take. `auto` is never
    refused: workers embed then.
    """
    num_actors = _num_actors(build, encoder, nodes, can_grow=can_grow)
    if not num_actors:
        return Placement(num_workers, 0)
    beside = num_workers
    if build.workers is None:
        beside = build.most_workers(cpus=_cpus_left(build, nodes, num_actors))
    if problem := _too_many_batches(build, encoder, nodes, beside):
        if build.embed_on == "actors":
            raise ConfigError(f"build.embed_on: actors: {problem}")
        _log.warning("workers embed, and no actors on GPUs: %s", problem)
        return Placement(num_workers, 0)
    return Placement(beside, num_actors)


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
            "build.embed_on: actors, on GPUs, and encoder.runtime onnxruntime, which runs on CPUs: "
            "set encoder.runtime to torch, or build.gpus_per_actor to 0"
        )
    number = build.actors or (max(most, 1) if build.gpus_per_actor else 1)
    if number <= most and _leaves_a_worker(build, nodes, number):
        return number
    asked = (
        f"build.embed_on: actors wants {number} of {build.gpus_per_actor:g} GPUs and "
        f"{build.cpus_per_actor:g} CPUs (build.actors, gpus_per_actor, cpus_per_actor) beside a "
        f"worker of {build.cpus_per_worker:g} CPUs; Ray reports {_told(nodes)}"
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
    """Workers wait rather than send more, so that this is a bound of what is in a store."""
    for node in nodes:
        on_node = min(num_workers, whole(node.cpus / build.cpus_per_worker))
        needed = on_node * MAX_IN_FLIGHT * encoder.batch_bytes
        if needed > _SHARE_FOR_BATCHES * node.object_store_bytes:
            return (
                f"{on_node} workers on a machine send up to "
                f"{MAX_IN_FLIGHT} batches of {encoder.config.batch_size} images each, "
                f"{needed / 1e9:.2f} GB at once; half of its object store of "
                f"{node.object_store_bytes / 1e9:.2f} GB is for them. Lower build.workers, "
                "encoder.batch_size or encoder.image_size, or raise build.object_store_gb "
                "(on a cluster: `ray start --object-store-memory`)"
            )
    return None


def _told(nodes: Sequence[Node]) -> str:
    each = ", ".join(f"{node.gpus:g} GPUs and {node.cpus:g} CPUs" for node in nodes[:8])
    more = f" and {len(nodes) - 8} more" if len(nodes) > 8 else ""
    return f"{len(nodes)} machines ({each}{more})" if len(nodes) != 1 else each
