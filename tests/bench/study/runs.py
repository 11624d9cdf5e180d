"""The runs of a study and their settings.

A run is an arm with a seed, a number of positives and a budget of negatives. Its results are
kept in `out`/runs by a hash of its settings, and not computed again.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.config.schema import fingerprint
from pipeline.errors import ConfigError
from study.baselines import BASELINES
from study.datasets import Choice
from study.settings import Settings
from train.config import TrainConfig

Negatives = Literal["uniform", "weighted", "mined", "none", "others"]
_FINETUNED = "finetuned"
# Settings that select runs but do not affect their results.
_AXES = (
    "seeds", "positives", "budgets", "betas", "corrections", "has_mined", "baselines",
    "near_share", "common_positives", "finetune_positives",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A way to make a model: one of BASELINES by name, else infineg's trainer."""

    negatives: Negatives
    beta: float = 0.0
    correction: str = "none"
    mode: Literal["head", "finetune"] = "head"
    baseline: str = ""

    @property
    def name(self) -> str:
        if self.baseline:
            return _BASELINE_NAMES[self.baseline]
        words: list[str] = [self.negatives]
        if self.beta:
            first = "half by " if self.negatives == "mined" else ""
            words.append(f"{first}exp({self.beta:g} s)")
        if self.beta and self.correction == "weight":
            words.append("loss weighted 1/pi")
        return ", ".join([*words, *([_FINETUNED] if self.mode == "finetune" else [])])


_BASELINE_NAMES = {
    "logistic": "logistic regression, uniform",
    "neighbours": "nearest positives, no negatives",
    "one_class_svm": "one-class SVM, no negatives",
    "multi_label": "multi-label, no background",
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """budget: the expected number of training negatives; 0 for arms without negatives."""

    arm: Arm
    seed: int
    near_share: float | None  # in the stream; None: that of the folders
    num_positives: int
    budget: int

    def choice(self, first_budget: int) -> Choice:
        """The images that it is trained on or, without negatives, measured on."""
        budget = self.budget or first_budget
        mined_budget = budget // 2 if self.arm.negatives == "mined" else 0
        return Choice(
            seed=self.seed,
            near_share=self.near_share,
            num_positives=self.num_positives,
            beta=self.arm.beta,
            budget=budget - mined_budget,
            mined_budget=mined_budget,
        )

    def key(self, settings: Settings, photos: str) -> str:
        """A hash of all that the result depends on."""
        kept = asdict(settings)
        for axis in _AXES:
            del kept[axis]
        if self.arm.mode == "head":
            del kept["finetune_steps"], kept["finetune_batch_size"]
        return fingerprint({"run": asdict(self), "settings": kept, "photos": photos})[:16]

    def train_config(self, settings: Settings, path: Path) -> TrainConfig:
        common: dict[str, Any] = {
            "run": str(path),
            "seed": self.seed,
            "correction": self.arm.correction,
            "workers": 0,
            "max_repetition_factor": 1e9,
        }
        if self.arm.mode == "head":
            return TrainConfig(
                mode="head", folds=1, steps=settings.steps, batch_size=settings.batch_size, **common
            )
        return TrainConfig(
            mode="finetune",
            steps=settings.steps + settings.finetune_steps,
            head_steps=settings.steps,
            batch_size=settings.finetune_batch_size,
            warmup_steps=min(10, settings.finetune_steps // 4),
            learning_rate=1e-3,
            **common,
        )


def plan_runs(
    settings: Settings, *, num_train_positives: int, num_train_negatives: int
) -> list[Run]:
    """All runs, the longest last. Leaves out budgets larger than the stream.

    Mining is done at the smallest budget with rare look-alikes. The baseline that knows the
    look-alikes is measured with common ones: else nearly all its training images are held out.
    """
    budgets = [budget for budget in settings.budgets if budget < num_train_negatives]
    if not budgets:
        raise ConfigError(
            f"the stream has {num_train_negatives} training negatives, fewer than the smallest "
            f"budget of {settings.budgets[0]}: nothing to choose"
        )
    numbers = [min(n, num_train_positives) for n in settings.positives]
    common = [n for n in settings.common_positives if n in numbers]
    cases: list[tuple[float | None, int]] = [
        (settings.near_share, n) for n in dict.fromkeys(numbers)
    ]
    cases += [(None, number) for number in common]
    arms = [(budget, arm) for budget in budgets for arm in _head_arms(settings)]
    arms += [(0, arm) for arm in _arms_without_negatives(settings)]
    mined = [(budgets[0], arm) for arm in _mined_arms(settings)]
    runs = [
        Run(arm=arm, seed=seed, near_share=near_share, num_positives=number, budget=budget)
        for some_arms in (arms, mined)
        for near_share, number in cases
        for seed in settings.seeds
        for budget, arm in some_arms
        if near_share is None or arm.negatives != "others"
        if near_share is not None or arm.negatives != "mined"
    ]
    return [*runs, *_finetuned(runs, settings, budgets[0])]


def _head_arms(settings: Settings) -> list[Arm]:
    arms = [Arm(negatives="uniform")]
    if "logistic" in settings.baselines:
        arms.append(Arm(negatives="uniform", baseline="logistic"))
    arms += [
        Arm(negatives="weighted", beta=beta, correction=correction)
        for beta in settings.betas
        for correction in settings.corrections
    ]
    return arms


def _mined_arms(settings: Settings) -> list[Arm]:
    """Half by the smallest beta, half mined."""
    if not settings.has_mined:
        return []
    beta = min(settings.betas)
    return [Arm(negatives="mined", beta=beta, correction=c) for c in settings.corrections]


def _arms_without_negatives(settings: Settings) -> list[Arm]:
    negatives: dict[str, Negatives] = {
        "neighbours": "none", "one_class_svm": "none", "multi_label": "others",
    }  # fmt: skip
    return [
        Arm(negatives=negatives[name], baseline=name)
        for name in settings.baselines
        if name in negatives
    ]


def _finetuned(runs: list[Run], settings: Settings, budget: int) -> list[Run]:
    """Uniform, the largest beta without correction, and mined, where look-alikes are rare."""
    wanted = {("uniform", 0.0), ("weighted", max(settings.betas)), ("mined", min(settings.betas))}
    return [
        replace(run, arm=replace(run.arm, mode="finetune"))
        for run in runs
        if settings.finetune_steps
        and run.budget == budget
        and run.near_share is not None
        and run.num_positives in settings.finetune_positives
        and (run.arm.negatives, run.arm.beta) in wanted
        and run.arm.correction == "none"
        and not run.arm.baseline
    ]


assert set(_BASELINE_NAMES) == set(BASELINES)
