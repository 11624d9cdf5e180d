"""Settings of a study."""

from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.dataset.schema import Split

# Shares of each kind of the stream of negatives. Many are held out, for narrow intervals; the rest
# is the pool to choose from. The config's `split` is the same, since the plan uses it.
NEGATIVE_SHARES: dict[Split, float] = {"val": 0.15, "test": 0.35}
# Shares of the positives, in the proportion of the negatives, so that val and test have one mix.
POSITIVE_SHARES: dict[Split, float] = {"val": 0.09, "test": 0.21}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One study. `positives`: numbers of training positives, in the order of the runs; a number
    above the available one means all.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    positives: tuple[int, ...] = (200, 50, 500)
    budgets: tuple[int, ...] = (100, 400)  # training negatives
    betas: tuple[float, ...] = (8.0, 20.0)
    corrections: tuple[str, ...] = ("weight", "none")
    has_mined: bool = True
    baselines: tuple[str, ...] = ("logistic", "neighbours", "one_class_svm", "multi_label")
    # Share of near/ in the stream of candidates: in real streams look-alikes are rare. The rest of
    # near/ is held out.
    near_share: float = 0.02
    # Numbers of positives that are also run with all of near/ in the stream; `multi_label` is
    # measured there.
    common_positives: tuple[int, ...] = (200,)
    pilot: int = 1000  # candidates that fix the scale of the inclusion probabilities
    steps: int = 300  # of the head, of `batch_size` samples
    batch_size: int = 128
    # Each step back-propagates `finetune_batch_size` images: 1.5 s on two CPU cores.
    finetune_steps: int = 40  # after the head's `steps`; 0: no arm is finetuned
    finetune_batch_size: int = 32
    finetune_positives: tuple[int, ...] = (200,)
    alpha: float = 0.01  # false-positive rate of the threshold
    encoder: dict[str, Any] = field(default_factory=dict)  # the config's section
    image_size: int = 256  # pixels, shorter side, of the images in shards


def quick(settings: Settings) -> Settings:
    """The smallest study with every kind of arm but finetuning and mining."""
    return replace(
        settings,
        seeds=settings.seeds[:1],
        positives=settings.positives[:1],
        common_positives=settings.positives[:1],
        budgets=settings.budgets[:1],
        betas=settings.betas[-1:],
        corrections=("none",),
        has_mined=False,
        steps=50,
        finetune_steps=0,
        pilot=300,
    )
