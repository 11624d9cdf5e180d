"""For tests of mining: a small drawn data set, a head trained on it, and the head's scores.

Without Ray: tasks run in this process, the last one first.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

import pipeline.mine.driver
from pipeline.config.schema import Config
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import Generation
from pipeline.dataset.schema import embedding_matrix
from pipeline.mine.driver import Mined, mine
from pipeline.mine.scorer import OpenScorer, Scorer
from pipeline.selection.mining import fold_of, log_probability
from support.builds import (
    CATS,
    build_inline,
    config_of,
    copy_dataset,
    open_inline,
    squares,
    write_inputs,
)
from train.config import TrainConfig
from train.evaluate.run import evaluate_run
from train.loop.trainer import train
from train.mining.scorer import prepare_scorer

BUDGET = 40
# What a generation lists.
FILES = ("shards/", "quarantine/", "ledger/", "hashes/", "generations/")


@dataclass(frozen=True)
class World:
    """A data set of one generation and a calibrated run on it. Tests must not change them."""

    root: Path
    run: Path
    entries: list[dict[str, Any]]
    config: Config
    scorer: Scorer


def world_config(out: Path, entries: list[dict[str, Any]], **sections: Any) -> Config:
    defaults: dict[str, Any] = {
        "positives": [{**CATS, "params": {**CATS["params"], "num_pictures": 96}}],
        # Only the trained model quarantines.
        "selection": {"quarantine": "off"},
        "split": {"val": 0.2, "test": 0.2},
        "train": {
            "run": str(out.parent / "run"),
            "steps": 200,
            "batch_size": 64,
            "learning_rate": 0.005,
        },
        "evaluate": {"alpha": 0.1},
    }
    return config_of(out, entries, **(defaults | sections))


def make_world(folder: Path) -> World:
    _, drawn, odd, strays = write_inputs(folder / "inputs")
    drawn = {**drawn, "params": {**drawn["params"], "num_pictures": 320}}
    # Of 32 unlabelled pictures, 16 of them cats, about 15 are selected.
    entries = [
        drawn,
        squares(num_pictures=400, per_partition=100),
        odd,
        {**strays, "weight": 0.25},
    ]
    config = world_config(folder / "data", entries)
    build_inline(config)
    torch.set_num_threads(1)
    run = train(config, TrainConfig.model_validate(config.train))
    evaluate_run(run)
    return World(folder / "data", run, entries, config, prepare_scorer(config, run))


def mine_inline(config: Config, scorer: Scorer, **options: Any) -> Mined:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.mine.driver, "open_cluster", open_inline)
        return mine(config, scorer, **options)


def at(config: Config, root: Path) -> Config:
    """The config for a copy of its data set."""
    return config.model_copy(
        update={"output": config.output.model_copy(update={"path": str(root)})}
    )


def negatives_of(generation: Generation) -> list[Any]:
    return [shard for shard in generation.shards if shard.split == "train" and not shard.label]


def mine_copy(world: World, to: Path) -> Path:
    root = copy_dataset(world.root, to)
    mine_inline(at(world.config, root), world.scorer, budget=BUDGET)
    return root


def ledger_rows(root: Path, generation: Generation) -> pa.Table:
    tables = [
        Dataset(str(root)).read_table(table.path)
        for source in generation.sources
        for table in source.ledger
    ]
    return pa.concat_tables(tables)


def generations(root: Path) -> tuple[Generation, Generation]:
    return Dataset(str(root)).read_generation(1), Dataset(str(root)).read_generation(2)


def scores_of(world: World) -> dict[str, tuple[float, float, int]]:
    """log p, margin and fold by content hash, computed from the kept embeddings."""
    scorer, found = OpenScorer(world.scorer), {}
    for path in sorted((world.root / "embeddings").glob("*/*/*.parquet")):
        rows = Dataset(str(world.root)).read_table(str(path.relative_to(world.root)))
        rows = rows.filter(rows["embedding"].is_valid())
        hashes = rows["content_hash"].to_pylist()
        scored_N2 = scorer.score(embedding_matrix(rows), hashes, 1000)
        for key, scored, fold in zip(hashes, scored_N2, fold_of(hashes, 3), strict=True):
            found[key] = (float(log_probability(scored[:1])[0]), float(scored[1]), int(fold))
    return found


def shard_samples(root: Path, generation: Generation) -> list[dict[str, object]]:
    """The training negatives in shards, with their images."""
    found = []
    for shard in negatives_of(generation):
        tar = (root / shard.path).read_bytes()
        for row in Dataset(str(root)).read_sidecar(shard).to_pylist():
            start = row.pop("tar_offset")
            found.append(row | {"image": tar[start : start + row["tar_size"]]})
    return found
