"""Actors that embed for all workers: same bytes, also when one is killed; refused settings."""

import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from numpy.typing import NDArray
from pydantic import ValidationError
from ray._private.internal_api import get_memory_info_reply
from ray._private.state import state

from pipeline.build.driver import build
from pipeline.cluster.actors import EncoderActors
from pipeline.cluster.placement import Node, Placement, place
from pipeline.cluster.ray_data import open_ray
from pipeline.config.build import BuildConfig
from pipeline.config.encoder import EncoderConfig
from pipeline.config.schema import Config
from pipeline.curate.verify import verify_dataset
from pipeline.encoders.preprocessing import crop_pixels
from pipeline.encoders.runtimes import PreparedEncoder, prepare_encoder
from pipeline.errors import ConfigError
from support.builds import (
    ENCODER,
    build_inline,
    config_of,
    file_hashes,
    first_samples,
    squares,
    write_config,
)
from support.processes import running_infineg, session_processes, wait_until

ON_CPUS: dict[str, Any] = {"workers": 2, "embed_on": "actors", "gpus_per_actor": 0}
GIB = 2**30


@pytest.fixture(scope="module")
def torch_encoder() -> PreparedEncoder:
    settings = {**ENCODER, "runtime": "torch"}
    return prepare_encoder(EncoderConfig(**settings), gpus_per_worker=0)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def onnx_encoder() -> PreparedEncoder:
    return prepare_encoder(EncoderConfig(**ENCODER), gpus_per_worker=0)  # type: ignore[arg-type]


def entries() -> list[dict[str, Any]]:
    """Files of some batches and a last one that is not full, of two sources."""
    return [
        squares(num_pictures=700, per_partition=700),
        squares("more", num_pictures=70, per_partition=70, seed=1),
    ]


@pytest.mark.timeout(150)
def test_data_set_is_the_same_with_actors(tmp_path: Path) -> None:
    build_inline(config_of(tmp_path / "fused", entries()))
    config = config_of(tmp_path / "actors", entries(), build={**ON_CPUS, "actors": 1})
    build(config)
    assert file_hashes(tmp_path / "actors") == file_hashes(tmp_path / "fused")
    assert verify_dataset(str(tmp_path / "actors")).problems == []


@pytest.mark.cluster
@pytest.mark.timeout(180)
def test_build_goes_on_when_an_actor_is_killed(tmp_path: Path) -> None:
    root, log = tmp_path / "actors", tmp_path / "log"
    stream = [squares(num_pictures=2600, per_partition=650)]
    build_inline(config_of(tmp_path / "fused", stream))
    path = write_config(
        tmp_path / "config.yaml", config_of(root, stream, build={**ON_CPUS, "actors": 2})
    )
    with running_infineg("build", path, log=log) as command:
        wait_until(lambda: num_parts(root) > 0, command, log)
        os.kill(actor_of(command.pid), signal.SIGKILL)
        done = num_parts(root)
        assert command.wait(timeout=400) == 0, log.read_text()
    assert done < 5, "it was killed in the middle"
    assert file_hashes(root) == file_hashes(tmp_path / "fused")
    assert "2 workers, and 2 actors of 0 GPUs" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert "constructor arguments" not in log.read_text()


def num_parts(root: Path) -> int:
    return len(list(root.glob("parts/squares/**/*.json")))


def actor_of(session: int) -> int:
    processes = session_processes(session).items()
    return next(pid for pid, command in processes if "ray::EncoderActor" in command)


@pytest.mark.timeout(90)
def test_worker_waits_rather_than_fill_the_object_store() -> None:
    class SlowActor:  # in here, and Ray sends its code along
        """Takes its time, and says which batch it was."""

        def embed(self, _: object, pixels_BCHW: NDArray[np.uint8]) -> NDArray[np.float32]:
            if pixels_BCHW[0, 0, 0, 0] == 50:
                raise ConfigError("no such weights here")
            time.sleep(0.02)
            return pixels_BCHW[:, :, 0, 0].astype(np.float32)

    batches = [np.full((16, 3, 300, 300), number, np.uint8) for number in range(50)]
    with open_ray(BuildConfig(workers=1, object_store_gb=0.1)):
        remote: Any = ray.remote(SlowActor)
        runtime = EncoderActors((remote.remote(),), []).open()
        pending = [runtime.submit(batch) for batch in batches]
        assert all((wait() == number).all() for number, wait in enumerate(pending))
        with pytest.raises(ConfigError, match=r"^no such weights here$"):
            runtime.embed(batches[0] + 50)
        assert sum(batch.nbytes for batch in batches) > 200e6, "twice the store"
        assert get_memory_info_reply(state).store_stats.spilled_bytes_total == 0


def placed(
    encoder: PreparedEncoder,
    *nodes: Node,
    can_grow: bool = False,
    num_workers: int | None = None,
    **settings: Any,
) -> Placement:
    num_workers = num_workers or int(sum(node.cpus for node in nodes))
    build_config = BuildConfig(**settings)
    return place(build_config, encoder, nodes, num_workers=num_workers, can_grow=can_grow)


CPU_NODE = Node(cpus=8, gpus=0, object_store_bytes=GIB)
GPU_NODE = Node(cpus=4, gpus=2, object_store_bytes=GIB)


def test_actors_and_workers_are_as_many_as_the_machines_have_room_for(
    torch_encoder: PreparedEncoder, onnx_encoder: PreparedEncoder
) -> None:
    cluster = (CPU_NODE, GPU_NODE)
    assert placed(torch_encoder, *cluster) == Placement(10, 2), "an actor a GPU, a CPU each"
    assert placed(torch_encoder, *cluster, gpus_per_actor=0.5) == Placement(8, 4)
    assert placed(torch_encoder, *cluster, gpus_per_actor=2) == Placement(11, 1)
    assert placed(torch_encoder, *cluster, actors=1) == Placement(11, 1)
    assert placed(torch_encoder, *cluster, workers=3, num_workers=3) == Placement(3, 2)
    assert placed(torch_encoder, *cluster, embed_on="actors") == Placement(10, 2)
    on_cpus = {"embed_on": "actors", "gpus_per_actor": 0}
    assert placed(onnx_encoder, *cluster, **on_cpus, actors=3) == Placement(9, 3)


def test_workers_embed_if_no_gpus_are_asked_for_or_there_are_none(
    torch_encoder: PreparedEncoder, onnx_encoder: PreparedEncoder
) -> None:
    assert placed(torch_encoder, CPU_NODE) == Placement(8, 0), "a laptop"
    assert placed(onnx_encoder, CPU_NODE, GPU_NODE) == Placement(12, 0), "ONNX Runtime, on CPUs"
    assert placed(torch_encoder, CPU_NODE, GPU_NODE, gpus_per_worker=0.5).num_actors == 0
    one_cpu = Node(cpus=1, gpus=1, object_store_bytes=GIB)
    assert placed(torch_encoder, one_cpu) == Placement(1, 0), "no CPU would be left for a worker"


def test_machines_that_an_autoscaler_may_add_are_waited_for(
    torch_encoder: PreparedEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        asked = {"embed_on": "actors", "actors": 3, "workers": 6, "num_workers": 6}
        assert placed(torch_encoder, CPU_NODE, can_grow=True, **asked) == Placement(6, 3)
    assert "Ray reports 0 GPUs and 8 CPUs: waiting for its autoscaler" in caplog.text
    with pytest.raises(ConfigError, match=r"Ray reports 2 machines \(0 GPUs and 8 CPUs, 2 GPUs"):
        placed(torch_encoder, CPU_NODE, GPU_NODE, **asked)


def test_batches_in_flight_must_fit_into_half_of_each_object_store(
    torch_encoder: PreparedEncoder,
) -> None:
    needed = 8 * 2 * torch_encoder.batch_bytes
    assert torch_encoder.batch_bytes == 16 * (3 * 64 * 64 + 4 * torch_encoder.embedding_dim)
    on_cpus = {"embed_on": "actors", "gpus_per_actor": 0, "cpus_per_actor": 0, "actors": 1}
    fits = Node(cpus=8, gpus=0, object_store_bytes=2 * needed)
    assert placed(torch_encoder, fits, CPU_NODE, **on_cpus) == Placement(16, 1)
    small = Node(cpus=8, gpus=0, object_store_bytes=2 * needed - 1)
    with pytest.raises(ConfigError, match=r"8 workers .* Lower build.workers, encoder.batch_size"):
        placed(torch_encoder, small, CPU_NODE, **on_cpus)
    assert placed(torch_encoder, small, workers=7, num_workers=7, **on_cpus) == Placement(7, 1)
    small_with_gpu = Node(cpus=8, gpus=1, object_store_bytes=needed)
    assert placed(torch_encoder, small_with_gpu) == Placement(8, 0), "auto refuses nothing"


def test_settings_that_contradict_each_other_are_refused(onnx_encoder: PreparedEncoder) -> None:
    with pytest.raises(ConfigError, match="runtime onnxruntime, which runs on CPUs"):
        placed(onnx_encoder, CPU_NODE, GPU_NODE, embed_on="actors")
    with pytest.raises(ValidationError, match=r"gpus_per_worker is 0\.5: leave it out"):
        BuildConfig(embed_on="actors", gpus_per_worker=0.5)
    with pytest.raises(ValidationError, match="a fraction of one GPU, or whole GPUs"):
        BuildConfig(gpus_per_actor=1.5)
    with pytest.raises(ValidationError, match="only PyTorch has precision bf16"):
        EncoderConfig(precision="bf16", runtime="onnxruntime")


def test_bf16_is_another_fingerprint_and_nearly_the_same_embedding(
    torch_encoder: PreparedEncoder, tmp_path: Path
) -> None:
    settings = {**ENCODER, "precision": "bf16"}
    prepared = prepare_encoder(EncoderConfig(**settings), gpus_per_worker=0)  # type: ignore[arg-type]
    assert ":torch-bf16:" in prepared.fingerprint, "auto is PyTorch, the only runtime with bf16"
    assert prepared.fingerprint.replace("bf16", "fp32") == torch_encoder.fingerprint
    pixels = np.stack(
        [
            crop_pixels(sample.image, prepared.preprocessing)
            for sample in first_samples(entries()[0], 32)
        ]
    )
    fp32, bf16 = (encoder.open().embed(pixels) for encoder in (torch_encoder, prepared))
    assert not np.array_equal(fp32, bf16)
    assert (fp32 * bf16).sum(axis=1).min() > 0.99
    plain, half = (
        config_of(tmp_path, [], encoder=extra).row_inputs()["encoder"]
        for extra in ({}, {"precision": "bf16"})
    )
    assert half == {**plain, "precision": "bf16"}
    assert "precision" not in plain, "or older data sets could not be extended"


def test_config_without_these_settings_is_what_it_was(tmp_path: Path) -> None:
    config: Config = config_of(tmp_path, [])
    assert config.build.gpus_per_embedder == 0
    assert BuildConfig(embed_on="actors").gpus_per_embedder == 1
    assert BuildConfig(gpus_per_worker=0.25).gpus_per_embedder == 0.25
