"""What a plan costs, before it is begun: hours of workers, and space on this machine's disk."""

import logging
import shutil
from collections.abc import Mapping, Sequence

from pipeline import storage
from pipeline.build.reading import PlannedSource
from pipeline.config.schema import Config
from pipeline.errors import ConfigError, InfinegError
from pipeline.telemetry.progress import format_bytes, format_duration

_log = logging.getLogger(__name__)
_BYTES_PER_EMBEDDING = 2500
_MOST_NAMED = 3


def check_costs(
    config: Config,
    planned: Sequence[PlannedSource],
    *,
    num_workers: int,
    max_hours: float | None = None,
) -> None:
    """Logs how long the rest of the plans will take.

    Raises ConfigError if it is longer than `max_hours`, and InfinegError if the shards do not fit
    on the disk; warns if kept embeddings do not. All are estimates of the pilots.
    """
    left = {source.entry.name: _candidates_left(source) for source in planned}
    seconds = {
        source.entry.name: left[source.entry.name] * source.plan.seconds_per_candidate / num_workers
        for source in planned
    }
    total = sum(seconds.values())
    _log.info(
        "planned: %s candidates, about %s with %d workers",
        f"{sum(left.values()):,}", format_duration(total), num_workers,
    )  # fmt: skip
    if max_hours is not None and total > 3600 * max_hours:
        raise ConfigError(_too_long(config, seconds, total, num_workers))
    _check_space(config, planned, left)


def _candidates_left(source: PlannedSource) -> int:
    return sum(round_.num_candidates for round_ in source.rounds())


def _too_long(config: Config, seconds: Mapping[str, float], total: float, num_workers: int) -> str:
    longest = sorted(seconds, key=lambda name: -seconds[name])[:_MOST_NAMED]
    section = "sources" if longest[0] in {e.name for e in config.sources} else "positives"
    shares = ", ".join(f"{name} {format_duration(seconds[name])}" for name in longest)
    return (
        f"the build takes about {format_duration(total)} with {num_workers} workers: {shares}. "
        "Give --yes to begin it; it can be interrupted and resumes. Or bound it, such as with "
        f"--set {section}.{longest[0]}.max_candidates=20000"
    )


def _check_space(config: Config, planned: Sequence[PlannedSource], left: Mapping[str, int]) -> None:
    folder = storage.local_path(config.output.path)
    if folder is None:
        return
    shards = sum(
        source.plan.expected_bytes * left[source.entry.name] / max(source.plan.num_candidates, 1)
        for source in planned
    )
    embeddings = _BYTES_PER_EMBEDDING * sum(left.values()) if config.build.keep_embeddings else 0
    free = shutil.disk_usage(folder).free
    if shards > free:
        raise InfinegError(
            f"{folder}: the shards need about {format_bytes(shards)}, and {format_bytes(free)} are "
            "free. Free some, choose another output.path, or lower selection.budget"
        )
    if shards + embeddings > free:
        _log.warning(
            "%s: with the embeddings of all candidates, the build may need %s, and %s are free; "
            "build.keep_embeddings=false leaves them out",
            folder, format_bytes(shards + embeddings), format_bytes(free),
        )  # fmt: skip
