"""Two rounds of mining on photographs, against as many negatives more without a model.

    PHOTOS=/path/to/photos pytest -m slow tests/bench/test_mine_photos.py -s --timeout 3600

PHOTOS as for configs/photos.yaml. Prints, round by round, the false-positive rates at TPR 95 % and
99 % on the test split, of 3 draws. About 12 minutes on 2 CPU cores.
"""

import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from pipeline.config.loading import load_config
from pipeline.config.schema import Config
from pipeline.curate.verify import verify_dataset
from pipeline.dataset import Dataset
from support.builds import build_inline
from support.mined_world import mine_inline, negatives_of
from train.config import load_train_config
from train.evaluate.run import evaluate_run
from train.loop.trainer import train
from train.mining.scorer import prepare_scorer

CONFIG = Path(__file__).parents[2] / "configs" / "photos.yaml"
SEEDS = (0, 1, 2)
# Few, so that much is left to mine: a source of weight 1 gives about so many training negatives.
BUDGET, NUM_MINED = 20, 30
STRATA = ("near", "mid", "far", "generated")


@dataclass
class Result:
    """Of one way to choose, over all seeds: false positives and negatives by stratum."""

    num_train: list[int] = field(default_factory=list)
    num_suspected: list[int] = field(default_factory=list)
    # By (TPR in percent, stratum), a count a seed.
    false_positives: dict[tuple[int, str], list[float]] = field(
        default_factory=lambda: defaultdict(list)
    )
    num_test: dict[str, int] = field(default_factory=dict)


def config_at(out: Path, seed: int, **selection: Any) -> Config:
    fields = {"budget": BUDGET, "beta": 0.0, "eval_budget": 800, "pilot": 60, "seed": seed}
    overrides = [f"selection.{name}={value}" for name, value in (fields | selection).items()]
    # Half of all for the test: there are few look-alikes.
    overrides += ["split.val=0.15", "split.test=0.5"]
    overrides += [f"variables.OUT={out}", f"variables.RUN={out}-run"]
    config = load_config(CONFIG, overrides)
    cheap = tuple(
        e for e in config.sources if e.name in ("imagenet", "near", "random", "squares", "screens")
    )
    return config.model_copy(update={"sources": cheap})


def measure(config: Config, run: str, result: Result, seed: int) -> None:
    """Trains and evaluates on the latest generation."""
    root = config.output.path
    assert verify_dataset(root).problems == []
    settings = {**config.train, "run": run, "seed": seed, "steps": 300}
    _, train_config, _ = load_train_config(CONFIG, [f"train.{k}={v}" for k, v in settings.items()])
    metrics = evaluate_run(train(config, train_config))
    generation = Dataset(root).read_generation()
    result.num_train.append(sum(shard.num_samples for shard in negatives_of(generation)))
    result.num_suspected.append(sum(file.num_samples for file in generation.quarantine))
    for tpr in (95, 99):
        for stratum, rate in metrics["target"]["cat"][f"fpr_at_tpr{tpr}"].items():
            if rate["n"]:
                result.false_positives[tpr, stratum].append(rate["value"] * rate["n"])
                result.num_test[stratum] = rate["n"]


def shown(name: str, result: Result, tpr: int) -> str:
    cells = [f"{name:34} {np.mean(result.num_train):5.0f} {np.mean(result.num_suspected):5.0f}"]
    for stratum in STRATA:
        counts = result.false_positives.get((tpr, stratum))
        if counts:
            n = result.num_test[stratum]
            # The seeds share one test split: the interval is that of n, not of 3 n.
            low, high = binomtest(round(np.mean(counts)), n).proportion_ci(method="exact")
            each = " ".join(f"{count:.0f}" for count in counts)
            cells.append(f"{np.mean(counts) / n:6.1%} [{low:.1%}, {high:.1%}] ({each} of {n})")
    return "  ".join(cells)


@pytest.mark.slow
@pytest.mark.skipif("PHOTOS" not in os.environ, reason="PHOTOS: a folder of photographs")
def test_two_rounds_of_mining_on_photographs(tmp_path: Path) -> None:
    results: dict[str, Result] = defaultdict(Result)
    embedded = None
    for seed in SEEDS:
        root = tmp_path / f"mined-{seed}"
        config = config_at(root, seed)
        if embedded is None:
            embedded = root
        else:
            config = reusing(config, embedded)
        build_inline(config)
        measure(config, f"{root}-run-0", results["0: uniform"], seed)
        for number in (1, 2):
            scorer = prepare_scorer(config, f"{root}-run-{number - 1}")
            mined = mine_inline(config, scorer, budget=NUM_MINED)
            assert abs(mined.generation.mined[-1].num_expected - NUM_MINED) < 0.1
            measure(config, f"{root}-run-{number}", results[f"{number}: mined"], seed)
        num_first, num_last = (results[name].num_train[-1] for name in ("0: uniform", "2: mined"))
        budget = round(BUDGET * num_last / num_first)
        for name, beta in (("as many, uniform", 0.0), ("as many, by similarity (beta 8)", 8.0)):
            other = config_at(tmp_path / f"{beta}-{seed}", seed, beta=beta, budget=budget)
            other = reusing(other, embedded)
            build_inline(other)
            measure(other, f"{other.output.path}-run", results[name], seed)
    for tpr in (95, 99):
        print(f"\n{'':33} train quarantined; false positives at TPR {tpr} %: {', '.join(STRATA)}")
        print("\n".join(shown(name, result, tpr) for name, result in results.items()))
    near = {name: np.mean(result.false_positives[99, "near"]) for name, result in results.items()}
    assert near["2: mined"] <= near["0: uniform"]


def reusing(config: Config, embedded: Path) -> Config:
    build = config.build.model_copy(update={"embeddings_from": str(embedded)})
    return config.model_copy(update={"build": build})
