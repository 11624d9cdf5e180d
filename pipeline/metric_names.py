"""Names of the Prometheus metrics, in one place: what emits them and what shows them agree on it.

Imports nothing. `infra/grafana/dashboard.json` shows every one of them, and no other.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One metric; counters end in `_total`, units stand in the name."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...] = ()


BUILD_METRICS = (
    Metric("infineg_candidates_total", "counter", "Candidates read.", ("source",)),
    Metric("infineg_selected_total", "counter", "Candidates selected.", ("source",)),
    Metric("infineg_rejected_total", "counter", "Candidates rejected.", ("source", "reason")),
    Metric("infineg_candidates_per_second", "gauge", "Candidates read a second, of late."),
    Metric("infineg_candidates_planned", "gauge", "Candidates that the running build will read."),
    Metric("infineg_parts_committed_total", "counter", "Parts committed.", ("source",)),
    Metric("infineg_parts_queued", "gauge", "Spans handed out whose last part is not committed."),
    Metric("infineg_last_commit_timestamp_seconds", "gauge", "When a part was last committed."),
    Metric("infineg_stage_seconds_total", "counter", "Seconds of workers, by stage.", ("stage",)),
)
TRAIN_METRICS = (
    Metric("infineg_train_samples_per_second", "gauge", "Samples trained on a second, of late."),
    Metric("infineg_train_data_wait_ratio", "gauge", "Share of time spent waiting for data, 0-1."),
    Metric("infineg_train_loss", "gauge", "Loss of the last logged step."),
    Metric("infineg_train_learning_rate", "gauge", "Learning rate of the head."),
    Metric("infineg_train_step", "gauge", "Optimizer steps done."),
    Metric("infineg_train_steps_planned", "gauge", "Optimizer steps in all."),
    Metric("infineg_train_last_step_timestamp_seconds", "gauge", "When a step last ended."),
)
METRICS = BUILD_METRICS + TRAIN_METRICS
