"""How often a run draws the same sample: what is refused, and what is warned of."""

import logging
from collections.abc import Sequence

from pipeline.errors import ConfigError
from train.config.settings import WINDOW, TrainConfig
from train.mixture import Mixture, Share

_log = logging.getLogger(__name__)


def check_repetition(train_config: TrainConfig, mixture: Mixture) -> None:
    """Raises ConfigError where a sample would be drawn more often than its entry allows.

    Warns where a positive is drawn more often than the run's max_repetition_factor.
    """
    num_positives = train_config.steps * train_config.num_positives
    _refuse(mixture.positives, num_positives)
    _refuse(mixture.negatives, train_config.num_samples - num_positives)
    _warn(mixture.positives, num_positives, train_config.max_repetition_factor)


def _refuse(shares: Sequence[Share], num_draws: int) -> None:
    for share in shares:
        entry, repetition = share.entry, share.repetition(num_draws)
        limit = entry and entry.max_repetition_factor
        if entry and limit and repetition > limit:
            fits = limit * share.num_rows / num_draws
            raise ConfigError(
                f"train.mixture: each of the {share.num_rows:,} samples of {entry.source} would "
                f"be drawn {repetition:.1f} times, over its max_repetition_factor {limit:g}; "
                f"its share of the stream may be {fits:.3g} at most, is "
                f"{share.portion.count / WINDOW:g}. Fewer train.steps or more samples help, too"
            )


def _warn(positives: Sequence[Share], num_draws: int, limit: float) -> None:
    for share in positives:
        repetition = share.repetition(num_draws)
        if repetition > limit:
            _log.warning(
                "each of the %s positives%s is drawn %.0f times, over train.max_repetition_factor "
                "%g; fewer train.steps, a smaller train.positive_share or more positives help",
                f"{share.num_rows:,}", f" of {share.entry.source}" if share.entry else "",
                repetition, limit,
            )  # fmt: skip
