"""The loader against the bare loop and against others, in one interleaved run: `make bench`.

    PHOTOS=/path           photographs to decode, else drawings
    PEERS_PYTHON=/path     an interpreter with torch, torchvision, simplejpeg, and litdata and
                           mosaicml-streaming, which are then compared with too

Prints a table. Each side runs in a process of its own (loader_side.py), `ROUNDS` times, one after
the other. `share` and ratios are of CPU time an image, of all processes of a side: where others
use the machine too, images a second tell more of them. On cores of its own both are the same,
since every side keeps its cores busy.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.encoder import EncoderConfig
from pipeline.dataset import Dataset
from pipeline.encoders.networks import encoder_identity, load_encoder
from pipeline.encoders.preprocessing import crop_pixels
from pipeline.encoders.runtimes import prepare_encoder
from support.photo_shards import some_images, write_photo_shards
from support.train_runs import write_config
from train.config import load_train_config
from train.distributed.world import World
from train.loop.run_log import Meter
from train.loop.state import TrainState, prepare_state
from train.loop.step import train_step
from train.loop.stream import open_stream

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
PEERS_PYTHON = os.environ.get("PEERS_PYTHON", "")
REPOSITORY = Path(__file__).parents[2]
ROUNDS, NUM_IMAGES, NUM_BATCHES = 3, 12_000, 150
BARE, OURS, RECIPE = "bare:fast", "ours:process", "webdataset:pil"
PEERS = ("webdataset:fast", *(("litdata:fast", "streaming:fast") if PEERS_PYTHON else ()))
SIDES = (BARE, OURS, "ours:thread", *PEERS, RECIPE)
# The head's part.
ENCODER = EncoderConfig(name="efficientnet_lite0", image_size=224)
BATCH_SIZE, STEPS = 256, 300

Found = dict[str, list[dict[str, float]]]


def run_side(side: str, data: Path, formats: Path) -> str:
    is_peer = side.startswith(("litdata", "streaming", "convert"))
    result = subprocess.run(
        [
            PEERS_PYTHON if is_peer else sys.executable,
            str(REPOSITORY / "tests/bench/loader_side.py"),
            side, str(data), str(formats), str(NUM_BATCHES),
        ],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def table_of(found: Found) -> str:
    lines = [
        "| loader | images/s | share | CPU ms an image | first batch s |",
        "|---|---|---|---|---|",
    ]
    for side, runs in found.items():
        rates = [run["images_per_s"] for run in runs]
        cpu = [run["cpu_ms"] for run in runs]
        share = shares(found, BARE, side)
        first = [run["first_s"] for run in runs]
        lines.append(
            f"| {side} | {spread(rates, 0)} | {spread(share, 2)} | {spread(cpu, 3)} "
            f"| {spread(first, 2) if any(first) else '-'} |"
        )
    return "\n".join(lines)


def spread(values: list[float], digits: int) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} [{low:.{digits}f}..{high:.{digits}f}]"


def shares(found: Found, side: str, of: str) -> list[float]:
    """How much less CPU time `side` takes for an image than `of`, round by round."""
    pairs = zip(found[side], found[of], strict=True)
    return [one["cpu_ms"] / other["cpu_ms"] for one, other in pairs]


def test_loader_is_at_its_ceiling_and_ahead_of_others(tmp_path: Path) -> None:
    data, formats = tmp_path / "data", tmp_path / "formats"
    write_photo_shards(data, some_images(NUM_IMAGES))
    formats.mkdir()
    if PEERS_PYTHON:
        run_side("convert", data, formats)
    found: Found = {side: [] for side in SIDES}
    for _ in range(ROUNDS):
        for side in SIDES:
            found[side].append(json.loads(run_side(side, data, formats).splitlines()[-1]))
    print(f"n = {ROUNDS}, load {os.getloadavg()[0]:.1f}\n{table_of(found)}")
    best = min(PEERS, key=lambda peer: statistics.median(r["cpu_ms"] for r in found[peer]))
    ratios = {name: shares(found, name, OURS) for name in (best, RECIPE)}
    for name, values in ratios.items():
        print(f"{OURS} against {name}: {spread(values, 2)}")
    # The goals are 0.95, 1.4 and 2.8; a busy machine moves the median of three by a few percent.
    assert statistics.median(shares(found, BARE, OURS)) >= 0.90
    assert statistics.median(ratios[best]) >= 1.3
    assert statistics.median(ratios[RECIPE]) >= 2.4
    assert statistics.median(run["first_s"] for run in found[OURS]) <= 2


def test_head_training_is_a_hundred_times_decoding_and_embedding_again(tmp_path: Path) -> None:
    state = head_state(tmp_path)
    model, preprocessing = state.detector.head.train(), state.detector.encoder.preprocessing
    runtime = prepare_encoder(ENCODER, gpus_per_worker=0).open()
    images = some_images(256, num_different=256)
    head, again, waits = [], [], []
    for number in range(ROUNDS):
        steps = range(STEPS * number, STEPS * (number + 1))
        batches = open_stream(state, "head", steps, image_size=224)
        first = next(batches)  # reads the cache, which is done once a run
        train_step(state, model, first, steps.start)
        meter = Meter(batches, BATCH_SIZE)
        for step, batch in zip(steps[1:], meter, strict=True):
            train_step(state, model, batch, step)
        found = meter.read()
        head.append(found["samples_per_s"])
        waits.append(found["data_wait"])
        began = time.perf_counter()
        for start in range(0, len(images), 64):
            views = [crop_pixels(each, preprocessing) for each in images[start : start + 64]]
            runtime.embed(np.stack(views))
        again.append(len(images) / (time.perf_counter() - began))
    ratios = [one / other for one, other in zip(head, again, strict=True)]
    print(
        f"head {spread(head, 0)} images/s, data wait {spread(waits, 3)}; decoding and embedding "
        f"again {spread(again, 0)}; ratio {spread(ratios, 0)}; one thread each, n = {ROUNDS}"
    )
    assert statistics.median(ratios) >= 100


def head_state(folder: Path) -> TrainState:
    """On 8,000 random embeddings of the packaged encoder's 1,280 numbers."""
    encoder = load_encoder(ENCODER)
    identity = f"{encoder_identity(encoder, ENCODER)}:toy"
    data = folder / "data"
    write_photo_shards(
        data, some_images(8000), embedding_dim=encoder.embedding_dim, encoder=identity
    )
    path = write_config(
        folder / "config.yaml", dataset=data, run=folder / "run",
        encoder=ENCODER.model_dump(mode="json"), train={"batch_size": BATCH_SIZE, "steps": 10**5},
    )  # fmt: skip
    config, train_config, _ = load_train_config(path)
    info, generation = Dataset(str(data)).read_info(), Dataset(str(data)).read_generation()
    return prepare_state(config, train_config, info, generation, World.alone())
