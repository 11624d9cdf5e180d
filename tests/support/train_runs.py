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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config.encoder import EncoderConfig
from pipeline.dataset import Dataset
from pipeline.dataset.keys import make_key, sha256_hex
from pipeline.dataset.metadata import Counts, DatasetInfo, Generation, ShardRecord, SourceRecord
from pipeline.dataset.schema import Split, Stratum, row_schema
from pipeline.dataset.shards import output_group, write_shard
from pipeline.encoders.networks import encoder_identity, load_encoder
from support.forks import ForkedCommand
from support.processes import Command, kill_session
from train.config import load_train_config
from train.data.bad_shards import read_usable_rows
from train.data.batches import read_eval_batches
from train.data.rows import TrainRows
from train.distributed.world import World
from train.loop import trainer
from train.loop.trainer import train
from train.model.detector import (
    ModelInfo,
    Segment,
    build_detector,
    save_model,
)

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


def write_dataset(
    root: Path,
    *,
    targets: tuple[str, ...] = ("cat",),
    num_positives: int = 40,
    num_negatives: int = 150,
    image_size: int = 48,
    samples_per_shard: int = 20,
    noise: float = 0.5,
    seed: int = 0,
) -> Generation:
    """Writes and commits generation 1.

    num_positives a target and num_negatives over the three sources are those of train; val and
    test get half as many each. `noise` is the spread around a unit direction: 0.5 separates
    nearly all, 2 leaves real overlap.
    """
    rng = np.random.default_rng(seed)
    encoder = load_encoder(ENCODER)
    bases = rng.normal(size=(encoder.embedding_dim, _LATENT_DIM))
    axes_LD = np.linalg.qr(bases)[0].T
    shards: list[ShardRecord] = []
    counts: dict[str, int] = {}
    for split in ("train", "val", "test"):
        part = 1.0 if split == "train" else 0.5
        for index, target in enumerate(targets):
            counts.setdefault(f"my_{target}", 0)
            direction_L = np.eye(_LATENT_DIM)[index]
            shards += _write_group(
                root, f"my_{target}", split, target, stratum=None, probability=1.0,
                num=round(num_positives * part), direction_L=direction_L, axes_LD=axes_LD,
                noise=noise, rng=rng, targets=targets, image_size=image_size,
                samples_per_shard=samples_per_shard, counts=counts,
                label_state="verified_present",
            )  # fmt: skip
        for index, (source, stratum, probability, cosine) in enumerate(NEGATIVES):
            direction_L = np.zeros(_LATENT_DIM)
            direction_L[[0, len(targets) + index]] = cosine, (1 - cosine**2) ** 0.5
            counts.setdefault(source, 0)
            shards += _write_group(
                root, source, split, "", stratum=stratum,
                probability=probability if split == "train" else EVAL_PROBABILITY,
                num=round(num_negatives * part / len(NEGATIVES)), direction_L=direction_L,
                axes_LD=axes_LD, noise=noise, rng=rng, targets=targets, image_size=image_size,
                samples_per_shard=samples_per_shard, counts=counts,
                label_state="verified_absent",
            )  # fmt: skip
    fingerprint = f"{encoder_identity(encoder, ENCODER)}:toy"
    return commit_dataset(root, targets, fingerprint, encoder.embedding_dim, shards, counts)


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


def add_generation(root: Path, source: str = "news", *, num: int = 60, seed: int = 1) -> Generation:
    """Commits the next generation: `num` training negatives of one more source beside all else."""
    rng = np.random.default_rng(seed)
    before = Dataset(str(root)).read_generation()
    dim = Dataset(str(root)).read_info().embedding_dim
    counts = {source: 0}
    shards = _write_group(
        root, source, "train", "", stratum="far", probability=0.5, num=num,
        direction_L=np.eye(_LATENT_DIM)[-1], axes_LD=np.linalg.qr(rng.normal(size=(dim, 16)))[0].T,
        noise=0.5, rng=rng, targets=Dataset(str(root)).read_info().targets, image_size=40,
        samples_per_shard=20, counts=counts, label_state="verified_absent",
    )  # fmt: skip
    record = before.sources[-1].model_copy(
        update={"name": source, "counts": Counts(read=num, selected=num)}
    )
    generation = before.model_copy(
        update={
            "number": before.number + 1,
            "parent": before.number,
            "sources": (*before.sources, record),
            "shards": (*before.shards, *shards),
        }
    )
    Dataset(str(root)).commit_generation(generation)
    Dataset(str(root)).write_derived(generation)
    return generation


def write_config(path: Path, *, dataset: Path, run: Path, **sections: Any) -> Path:
    """Writes a config file. `sections` replace or extend `train`, `evaluate`, `encoder`, ..."""
    config: dict[str, Any] = {
        "target": {"name": "cat"},
        "positives": [{"name": "my_cat", "kind": "image_folder"}],
        "sources": [{"name": name, "kind": "image_folder"} for name, *_ in NEGATIVES],
        "encoder": ENCODER.model_dump(mode="json"),
        "output": {"path": str(dataset)},
    }
    train = {"run": str(run), "mode": "head", **sections.pop("train", {})}
    path.write_text(yaml.safe_dump({**config, **sections, "train": train}, sort_keys=False))
    return path


def _write_group(
    root: Path,
    source: str,
    split: Split,
    label: str,
    *,
    stratum: Stratum | None,
    probability: float,
    num: int,
    direction_L: NDArray[np.float64],
    axes_LD: NDArray[np.float64],
    noise: float,
    rng: np.random.Generator,
    targets: tuple[str, ...],
    image_size: int,
    samples_per_shard: int,
    counts: dict[str, int],
    label_state: str,
) -> list[ShardRecord]:
    """Shards of one source, split and label."""
    latent_NL = direction_L + noise * rng.normal(size=(num, _LATENT_DIM)) / _LATENT_DIM**0.5
    latent_NL /= np.linalg.norm(latent_NL, axis=1, keepdims=True)
    embedding_ND = latent_NL @ axes_LD
    first = counts[source]
    counts[source] += num
    rows = [
        {
            "key": make_key(source, "p", first + i),
            "source": source,
            "partition": "p",
            "ordinal": first + i,
            "uri": f"toy://{source}/{first + i}",
            "label": label,
            "label_state": label_state,
            "class_name": None,
            "stratum": stratum,
            "group": f"{source}-{first + i}",
            "split": split,
            "rotation": None,
            "content_hash": sha256_hex(f"{source}/{first + i}".encode()),
            "perceptual_hash": int(rng.integers(2**63)),
            "image": _draw_picture(label, targets, image_size, rng),
            "width": image_size + 16,
            "height": image_size,
            "embedding": embedding_ND[i].astype(np.float16),
            "similarity": float(latent_NL[i, 0]),
            "inclusion_probability": probability,
            "selected": True,
        }
        for i in range(num)
    ]
    stem = output_group(source=source, split=split, label=label, selected=True, reason=None)
    records = []
    for number, start in enumerate(range(0, num, samples_per_shard)):
        table = pa.Table.from_pylist(
            rows[start : start + samples_per_shard], row_schema(axes_LD.shape[1])
        )
        shard = write_shard(
            Dataset(str(root)), table, stem=f"{stem}-{number:06d}", targets=targets, encoder="toy",
            round_number=1,
        )  # fmt: skip
        records.append(ShardRecord(**shard.model_dump(), split=split, label=label))
    return records


def _draw_picture(
    label: str, targets: tuple[str, ...], image_size: int, rng: np.random.Generator
) -> bytes:
    """A JPEG of `image_size` by `image_size` + 16 pixels: a colour a label, with noise."""
    warm = (230, 120, 40), (220, 60, 160)
    color = warm[targets.index(label) % 2] if label else (30, 90, 200)
    pixels_HWC = np.asarray(color) + rng.normal(0, 25, (image_size, image_size + 16, 3))
    return simplejpeg.encode_jpeg(
        pixels_HWC.clip(0, 255).astype(np.uint8), quality=90, colorsubsampling="420"
    )


def commit_dataset(
    root: Path,
    targets: tuple[str, ...],
    encoder: str,
    embedding_dim: int,
    shards: list[ShardRecord],
    counts: dict[str, int],
) -> Generation:
    info = DatasetInfo(
        targets=targets, encoder=encoder, embedding_dim=embedding_dim, fingerprint="toy",
        fingerprint_inputs={}, latest_generation=0,
    )  # fmt: skip
    Dataset(str(root)).write_info(info)
    sources = tuple(
        SourceRecord(
            name=name,
            fingerprint="toy",
            role="positive" if name.startswith("my_") else "negative",
            num_rounds=1,
            num_partitions=1,
            counts=Counts(read=num, selected=num),
            ledger=(),
            hashes=(),
        )
        for name, num in counts.items()
    )
    generation = Generation(
        number=1,
        parent=None,
        sources=sources,
        shards=tuple(shards),
        quarantine=(),
        next_numbers={},
    )
    Dataset(str(root)).commit_generation(generation)
    Dataset(str(root)).write_derived(generation)
    return generation


def write_run(
    folder: Path,
    *,
    mode: str = "finetune",
    targets: tuple[str, ...] = ("cat",),
    num_negatives: int = 150,
    noise: float = 0.5,
) -> Path:
    """Writes data set, config and model below `folder`; returns the run's folder."""
    dataset, run = folder / "data", folder / "run"
    write_dataset(dataset, targets=targets, num_negatives=num_negatives, noise=noise)
    run.mkdir()
    config = {"evaluate": {"alpha": 0.05}, "train": {"mode": mode}}
    names = [{"name": name} for name in targets]
    path = write_config(run / "config.yaml", dataset=dataset, run=run, **config, targets=names)
    path.write_text(path.read_text().replace("target:\n  name: cat\n", ""))
    encoder = load_encoder(ENCODER)
    torch.manual_seed(0)
    detector = build_detector(encoder, len(targets), hidden_dim=0, dropout=0.0)
    generation = Dataset(str(dataset)).read_generation()
    labels: list[str] = []
    normalised: list[Tensor] = []
    with torch.inference_mode():
        for rows, inputs in read_eval_batches(
            str(dataset),
            generation,
            splits=("train",),
            mode=mode,
            preprocessing=encoder.preprocessing,
        ):
            labels += rows["label"].to_pylist()
            embedding_BD = inputs if mode == "head" else encoder(inputs)
            normalised.append(detector.head.layers[0](embedding_BD))
    _fit_head(detector.head.layers[-1], torch.cat(normalised), np.array(labels), targets)
    info = ModelInfo(
        targets=targets,
        encoder=ENCODER,
        preprocessing=encoder.preprocessing,
        embedding_dim=encoder.embedding_dim,
        hidden_dim=0,
        dropout=0.0,
        mode=mode,
        positive_share=0.25,
        generation=1,
        dataset="toy",
        samples_seen=1234,
        settings={},
    )
    save_model(run, detector.state_dict(), info)
    return run


def _fit_head(
    last: torch.nn.Linear, embedding_ND: Tensor, labels: np.ndarray, targets: tuple[str, ...]
) -> None:
    with torch.no_grad():
        for index, target in enumerate(targets):
            of_target = torch.from_numpy(labels == target)
            ours, others = embedding_ND[of_target].mean(0), embedding_ND[~of_target].mean(0)
            direction_D = ours - others
            direction_D *= 6 / direction_D.square().sum()
            last.weight[index] = direction_D
            last.bias[index] = -direction_D @ (ours + others) / 2


INFINEG, TORCHRUN = (str(Path(sys.executable).with_name(n)) for n in ("infineg", "torchrun"))


def write_job(dataset: Path, run: Path, **train: object) -> Path:
    """A config beside its run; `train` extends the section."""
    run.parent.mkdir(parents=True, exist_ok=True)
    return write_config(run.with_suffix(".yaml"), dataset=dataset, run=run, train=train)


def start_job(
    config: Path,
    *arguments: str,
    log: Path,
    launcher: list[str] | None = None,
    limits: str = "",
    **env: str,
) -> Command:
    """`launcher` infineg train CONFIG ..., in a session of its own.

    limits: a command of the shell before, such as `ulimit -f 100`.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    if not launcher and not limits and "PYTHONPATH" not in env:
        words = ["train", str(config), *arguments]
        return ForkedCommand(words, log=log, cwd=None, env=environment)
    by = [*launcher, "--no-python"] if launcher else []
    command = [*by, INFINEG, "train", str(config), *arguments]
    if limits:
        command = ["bash", "-c", f'{limits}; exec "$@"', "bash", *command]
    with log.open("ab") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=file, env=environment, start_new_session=True
        )


def on_two(*options: str) -> list[str]:
    """torchrun with two processes on this machine."""
    return [TORCHRUN, "--standalone", "--nproc-per-node", "2", *options]


def train_on_two(configs: list[Path], script: Path) -> None:
    """Trains all in the same two processes: importing torch takes longer than such a run."""
    script.write_text(
        "import sys\n"
        "from train.config import load_train_config\n"
        "from train.distributed.world import join_world\n"
        "from train.loop.trainer import train\n"
        "with join_world():  # once: a process cannot meet its peers twice\n"
        "    for path in sys.argv[1:]:\n"
        "        config, train_config, _ = load_train_config(path)\n"
        "        train(config, train_config)\n"
    )
    subprocess.run(
        [*on_two(), str(script), *map(str, configs)],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=170,
    )


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


def losses_logged(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def checkpoint_steps(run: Path) -> list[int]:
    """Of the committed ones."""
    return [
        int(path.stem.partition("-")[2])
        for path in sorted((run / "checkpoints").glob("step-*.json"))
    ]


def model_bytes(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


SHORT: dict[str, Any] = {
    "steps": 12, "batch_size": 16, "warmup_steps": 3, "log_every": 1, "checkpoint_every": 4,
    "learning_rate": 0.003, "hidden_dim": 32, "workers": 0,
}  # fmt: skip


FINETUNE = SHORT | {"mode": "finetune", "head_steps": 5, "backbone_learning_rate": 0.001}


def write_run_config(dataset: Path, run: Path, **section: Any) -> Path:
    run.parent.mkdir(parents=True, exist_ok=True)
    targets = [{"name": name} for name in Dataset(str(dataset)).read_info().targets]
    path = run.with_suffix(".yaml")
    write_config(path, dataset=dataset, run=run, train=section, target=None, targets=targets)
    path.write_text(path.read_text().replace("target: null\n", ""))
    return path


def run_training(dataset: Path, run: Path, *, resume: bool = False, **section: Any) -> Path:
    config, train_config, _ = load_train_config(write_run_config(dataset, run, **section))
    return train(config, train_config, resume=resume)


def read_losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(len(lines)))
    return [line["loss"] for line in lines]


def watch_keys(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of all samples that are trained on from now on."""
    keys: list[str] = []
    train_step = trainer.train_step

    def watched(state: Any, model: Any, batch: Any, step: int) -> Any:
        keys.extend(state.rows.keys.take(batch.rows_B.numpy()).to_pylist())
        return train_step(state, model, batch, step)

    monkeypatch.setattr(trainer, "train_step", watched)
    return keys


def stop_at(patch: pytest.MonkeyPatch, at: int) -> None:
    """From now on a run ends in the middle of step `at`, as Ctrl-C would end it."""
    train_step = trainer.train_step

    def interrupted(state: Any, model: Any, batch: Any, step: int) -> Any:
        if step == at:
            raise KeyboardInterrupt
        return train_step(state, model, batch, step)

    patch.setattr(trainer, "train_step", interrupted)


def interrupt_training(
    dataset: Path, run: Path, monkeypatch: pytest.MonkeyPatch, *, at: int, **section: Any
) -> None:
    """A run that ends in the middle of step `at`."""
    with monkeypatch.context() as patch:
        stop_at(patch, at)
        with pytest.raises(KeyboardInterrupt):
            run_training(dataset, run, **section)
