"""A small data set written by the real writers, for the tests of training and evaluation.

Positives are warm pictures and negatives cold ones; their embeddings lie around directions of
their own. Training negatives of `near_animals` are kept more often than those of `scenes`, so
that their weights differ; val and test negatives are drawn uniformly, each with probability 0.5.

Shapes: N rows, L latent dimensions, D embedding.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg
import yaml
from numpy.typing import NDArray

from pipeline.config.encoder import EncoderConfig
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import Counts, DatasetInfo, Generation, ShardRecord, SourceRecord
from pipeline.dataset.schema import Stratum
from pipeline.dataset.shards import output_group, write_shard
from pipeline.encoders.networks import encoder_identity, load_encoder
from support.forks import fork
from support.processes import Command, free_port, kill_session, start_infineg
from support.tables import selected_rows
from train.config import load_train_config
from train.data.bad_shards import read_usable_rows
from train.data.rows import TrainRows
from train.distributed.world import World, join_world
from train.loop import trainer
from train.loop.state import TrainState, prepare_state
from train.loop.trainer import train
from train.model.info import Segment

# Source, stratum, inclusion probability in train, cosine of its direction to the positives'.
NEGATIVES: tuple[tuple[str, Stratum, float, float], ...] = (
    ("near_animals", "near", 0.8, 0.5),
    ("scenes", "far", 0.1, 0.0),
    ("noise", "generated", 0.2, -0.3),
)
EVAL_PROBABILITY = 0.5
# Small, the same everywhere, and with batch norms.
ENCODER = EncoderConfig(name="timm/test_efficientnet", weights="random", image_size=32)
_LATENT_DIM = 16  # in which embeddings differ: in more, noise would hardly ever overlap


@dataclass
class _World:
    """Where groups of rows are drawn from."""

    rng: np.random.Generator
    axes_LD: NDArray[np.float64]
    targets: tuple[str, ...] = ("cat",)
    noise: float = 0.5
    image_size: int = 40
    counts: Counter[str] = field(default_factory=Counter)  # rows drawn, by source

    def draw(
        self, source: str, label: str, num: int, direction_L: NDArray[np.float64], **columns: Any
    ) -> pa.Table:
        """`num` more rows of a source; each picture is a colour a label, with noise."""
        noise_NL = self.noise * self.rng.normal(size=(num, _LATENT_DIM)) / _LATENT_DIM**0.5
        latent_NL = direction_L + noise_NL
        latent_NL /= np.linalg.norm(latent_NL, axis=1, keepdims=True)
        warm = (230, 120, 40), (220, 60, 160)
        color = warm[self.targets.index(label) % 2] if label else (30, 90, 200)
        height, width = self.image_size, self.image_size + 16
        hashes, images = [], []
        for _ in range(num):
            hashes.append(int(self.rng.integers(2**63)))
            pixels_HWC = np.asarray(color) + self.rng.normal(0, 25, (height, width, 3))
            images.append(
                simplejpeg.encode_jpeg(
                    pixels_HWC.clip(0, 255).astype(np.uint8), quality=90, colorsubsampling="420"
                )
            )
        first = self.counts[source]
        self.counts[source] += num
        return selected_rows(
            source, label, latent_NL @ self.axes_LD, images, first=first, perceptual_hash=hashes,
            width=width, height=height, similarity=latent_NL[:, 0], **columns,
        )  # fmt: skip


def write_dataset(
    root: Path,
    *,
    targets: tuple[str, ...] = ("cat",),
    num_positives: int = 40,
    num_negatives: int = 150,
    image_size: int = 48,
    samples_per_shard: int = 20,
    noise: float = 0.5,
) -> Generation:
    """Writes and commits generation 1.

    num_positives a target and num_negatives over the three sources are those of train; val and
    test get half as many each. `noise` is the spread around a unit direction: 0.5 separates
    nearly all, 2 leaves real overlap.
    """
    rng = np.random.default_rng(0)
    encoder = load_encoder(ENCODER)
    axes_LD = np.linalg.qr(rng.normal(size=(encoder.embedding_dim, _LATENT_DIM)))[0].T
    world = _World(rng, axes_LD, targets, noise, image_size)
    groups = []
    for split in ("train", "val", "test"):
        part = 1.0 if split == "train" else 0.5
        for index, target in enumerate(targets):
            direction_L = np.eye(_LATENT_DIM)[index]
            num = round(num_positives * part)
            groups.append(
                world.draw(
                    f"my_{target}", target, num, direction_L, split=split, inclusion_probability=1.0
                )
            )
        for index, (source, stratum, probability, cosine) in enumerate(NEGATIVES):
            direction_L = np.zeros(_LATENT_DIM)
            direction_L[[0, len(targets) + index]] = cosine, (1 - cosine**2) ** 0.5
            num = round(num_negatives * part / len(NEGATIVES))
            chance = probability if split == "train" else EVAL_PROBABILITY
            groups.append(
                world.draw(
                    source, "", num, direction_L,
                    split=split, stratum=stratum, inclusion_probability=chance,
                )
            )  # fmt: skip
    shards = [
        shard for rows in groups for shard in write_shards(root, rows, samples_per_shard, targets)
    ]
    return commit_dataset(root, f"{encoder_identity(encoder, ENCODER)}:toy", shards, targets)


def write_shards(
    root: Path, rows: pa.Table, samples_per_shard: int, targets: tuple[str, ...] = ("cat",)
) -> list[ShardRecord]:
    """Shards of rows of one source, split and label."""
    records = []
    for number, start in enumerate(range(0, rows.num_rows, samples_per_shard)):
        group = {name: rows[name][0].as_py() for name in ("source", "split", "label")}
        stem = output_group(**group, selected=True, reason=None)
        file = write_shard(
            Dataset(str(root)), rows.slice(start, samples_per_shard), stem=f"{stem}-{number:06d}",
            targets=targets, encoder="toy", round_number=1,
        )  # fmt: skip
        records.append(ShardRecord(**file.model_dump(), split=group["split"], label=group["label"]))
    return records


def commit_dataset(
    root: Path, encoder: str, shards: Sequence[ShardRecord], targets: tuple[str, ...] = ("cat",)
) -> Generation:
    dataset = Dataset(str(root))
    dim = dataset.read_sidecar(shards[0]).schema.field("embedding").type.list_size
    info = DatasetInfo(
        targets=targets, encoder=encoder, embedding_dim=dim, fingerprint="toy",
        fingerprint_inputs={}, latest_generation=0,
    )  # fmt: skip
    dataset.write_info(info)
    counts = Counter[str]()
    for shard in shards:
        counts[shard.source] += shard.num_samples
    sources = tuple(
        SourceRecord(
            name=name, fingerprint="toy", role="positive" if name.startswith("my_") else "negative",
            num_rounds=1, num_partitions=1, counts=Counts(read=num, selected=num), ledger=(),
            hashes=(),
        )
        for name, num in counts.items()
    )  # fmt: skip
    generation = Generation(
        number=1, parent=None, sources=sources, shards=tuple(shards), quarantine=(),
        next_numbers={},
    )  # fmt: skip
    dataset.commit_generation(generation)
    dataset.write_derived(generation)
    return generation


def add_generation(root: Path, source: str = "news") -> Generation:
    """Commits the next generation: 60 training negatives of one more source beside all else."""
    dataset, rng, num = Dataset(str(root)), np.random.default_rng(1), 60
    before, info = dataset.read_generation(), dataset.read_info()
    axes_LD = np.linalg.qr(rng.normal(size=(info.embedding_dim, _LATENT_DIM)))[0].T
    rows = _World(rng, axes_LD, info.targets).draw(
        source, "", num, np.eye(_LATENT_DIM)[-1], stratum="far", inclusion_probability=0.5
    )
    record = before.sources[-1].model_copy(
        update={"name": source, "counts": Counts(read=num, selected=num)}
    )
    generation = before.model_copy(
        update={
            "number": before.number + 1,
            "parent": before.number,
            "sources": (*before.sources, record),
            "shards": (*before.shards, *write_shards(root, rows, 20, info.targets)),
        }
    )
    dataset.commit_generation(generation)
    dataset.write_derived(generation)
    return generation


def read_train_rows(root: str, generation: Generation, targets: Sequence[str]) -> TrainRows:
    """The rows as a head that nothing has happened to trains on them, in one process."""
    return read_usable_rows(
        root,
        generation,
        targets,
        segments=(Segment(generation=generation.number, first_step=0),),
        first_step=0,
        policy="stop",
        needs_images=False,
        embedding_dim=None,
        world=World.alone(),
    )[0]


def write_config(
    path: Path, *, dataset: Path, run: Path, targets: Sequence[str] = ("cat",), **sections: Any
) -> Path:
    """Writes a config file. `sections` replace or extend `train`, `evaluate`, `encoder`, ..."""
    config: dict[str, Any] = {
        "targets": [{"name": name} for name in targets],
        "positives": [{"name": "my_cat", "kind": "image_folder"}],
        "sources": [{"name": name, "kind": "image_folder"} for name, *_ in NEGATIVES],
        "encoder": ENCODER.model_dump(mode="json"),
        "output": {"path": str(dataset)},
        "evaluate": {"alpha": 0.05},  # what so few val negatives allow
    }
    train = {"run": str(run), "mode": "head", **sections.pop("train", {})}
    path.write_text(yaml.safe_dump({**config, **sections, "train": train}, sort_keys=False))
    return path


def write_run_config(dataset: Path, run: Path, **train: Any) -> Path:
    """A config beside its run; `train` extends the section."""
    run.parent.mkdir(parents=True, exist_ok=True)
    targets, path = Dataset(str(dataset)).read_info().targets, run.with_suffix(".yaml")
    return write_config(path, dataset=dataset, run=run, targets=targets, train=train)


INFINEG, TORCHRUN = (str(Path(sys.executable).with_name(n)) for n in ("infineg", "torchrun"))


def start_job(
    config: Path,
    *arguments: str,
    log: Path,
    launcher: list[str] | None = None,
    limits: str = "",
    **env: str,
) -> Command:
    """`launcher` infineg train CONFIG --no-evaluate ..., in a session of its own.

    limits: a command of the shell before, such as `ulimit -f 100`.
    """
    env = {"OMP_NUM_THREADS": "1", **env}
    if not launcher and not limits:
        return start_infineg("train", config, "--no-evaluate", *arguments, log=log, **env)
    by = [*launcher, "--no-python"] if launcher else []
    command = [*by, INFINEG, "train", str(config), "--no-evaluate", *arguments]
    if limits:
        command = ["bash", "-c", f'{limits}; exec "$@"', "bash", *command]
    with log.open("ab") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=file, env={**os.environ, **env}, start_new_session=True
        )


def finish(*jobs: Command, code: int = 0) -> None:
    """Waits for jobs to end so; kills all that they have started if they do not."""
    try:
        assert [job.wait(timeout=400) for job in jobs] == [code] * len(jobs)
    finally:
        for job in jobs:
            kill_job(job)


def on_two(*options: str) -> list[str]:
    """torchrun with two processes on this machine."""
    return [TORCHRUN, "--standalone", "--nproc-per-node", "2", *options]


def start_ranks(config: Path, *arguments: str, log: Path, **env: str) -> list[Command]:
    """infineg train CONFIG ... in two processes with the environment that torchrun gives.

    They are forked, while torchrun and its processes import torch for 20 s.
    """
    return [
        start_job(config, *arguments, log=log, **environment, **env) for environment in _ranks()
    ]


def run_ranks(function: Callable[..., None], *arguments: object) -> None:
    """Calls `function` in two such processes."""
    processes = [fork(_run_rank, each, function, arguments) for each in _ranks()]
    for process in processes:
        process.join(150)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]


def _ranks() -> list[dict[str, str]]:
    group = {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    return [group | dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) for rank in range(2)]


def _run_rank(
    environment: dict[str, str], function: Callable[..., None], arguments: tuple[object, ...]
) -> None:
    os.environ.update(environment)
    function(*arguments)


def train_all(configs: list[Path]) -> None:
    with join_world():  # once: a process cannot meet its peers twice
        for path in configs:
            config, train_config, _ = load_train_config(str(path))
            train(config, train_config)


def workers_of(job: Command) -> list[int]:
    """Process ids of torchrun's, by rank; each has a session of its own."""
    listed = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    return [pid for pid in map(int, listed) if _environment(pid).get("RANK")]


def _environment(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.partition("=")[::2] for pair in pairs if pair)


def kill_job(job: Command) -> None:
    """SIGKILL to it and to what torchrun has started for it."""
    if job.poll() is None:
        for pid in workers_of(job):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    kill_session(job)


def steps_logged(run: Path) -> int:
    path = run / "log.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def read_log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def losses_logged(run: Path) -> list[float]:
    return [line["loss"] for line in read_log(run)]


def read_losses(run: Path) -> list[float]:
    """Of a run that logs each step, once."""
    assert [line["step"] for line in read_log(run)] == list(range(steps_logged(run)))
    return losses_logged(run)


def checkpoint_steps(run: Path) -> list[int]:
    """Of the committed ones."""
    return [
        int(path.stem.partition("-")[2])
        for path in sorted((run / "checkpoints").glob("step-*.json"))
    ]


def assert_same_run(run: Path, other: Path) -> None:
    """To the last bit of each loss logged, and of the weights."""
    assert losses_logged(run) == losses_logged(other)
    models = [(each / "model.safetensors").read_bytes() for each in (run, other)]
    assert models[0] == models[1]


SHORT: dict[str, Any] = {
    "steps": 12, "batch_size": 16, "warmup_steps": 3, "log_every": 1, "checkpoint_every": 4,
    "learning_rate": 0.003, "hidden_dim": 32, "workers": 0,
}  # fmt: skip


FINETUNE = SHORT | {"mode": "finetune", "head_steps": 5, "backbone_learning_rate": 0.001}


def run_training(
    dataset: Path, run: Path, *, resume: bool = False, switch_to: Any = None, **section: Any
) -> Path:
    """`switch_to`: the generation to continue on."""
    config, train_config, _ = load_train_config(write_run_config(dataset, run, **section))
    return train(config, train_config, resume=resume, generation=switch_to)


def state_of(dataset: Path, run: Path, **section: Any) -> TrainState:
    """Of a run in one process before its first step."""
    config, train_config, _ = load_train_config(write_run_config(dataset, run, **section))
    info, generation = Dataset(str(dataset)).read_info(), Dataset(str(dataset)).read_generation()
    return prepare_state(config, train_config, info, generation, World.alone())


def watch_steps(patch: pytest.MonkeyPatch, look: Callable[[TrainState, Any, int], None]) -> None:
    """Calls `look(state, batch, step)` at the end of every step from now on."""
    train_step = trainer.train_step

    def watched(state: TrainState, model: Any, batch: Any, step: int) -> Any:
        result = train_step(state, model, batch, step)
        look(state, batch, step)
        return result

    patch.setattr(trainer, "train_step", watched)


def watch_keys(patch: pytest.MonkeyPatch) -> list[str]:
    """Keys of all samples that are trained on from now on."""
    keys: list[str] = []
    watch_steps(
        patch,
        lambda state, batch, _: keys.extend(state.rows.keys.take(batch.rows_B.numpy()).to_pylist()),
    )
    return keys


def interrupt_training(dataset: Path, run: Path, *, at: int, **section: Any) -> None:
    """A run that ends in the middle of step `at`, as Ctrl-C would end it."""

    def stop(_state: TrainState, _batch: Any, step: int) -> None:
        if step == at:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        watch_steps(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            run_training(dataset, run, **section)
