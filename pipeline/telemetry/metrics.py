"""Prometheus metrics of a build or a training, served over HTTP if a port is set."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.config.build import MetricsServer
from pipeline.errors import ConfigError


class Metrics:
    """Sets values by metric name; does nothing if none are served."""

    def __init__(self, series: Mapping[str, Any]) -> None:
        self._series = series

    def add(self, name: str, value: float, *labels: str) -> None:
        """Adds to a counter."""
        if self._series:
            self._of(name, labels).inc(value)

    def set(self, name: str, value: float, *labels: str) -> None:
        """Sets a gauge."""
        if self._series:
            self._of(name, labels).set(value)

    def _of(self, name: str, labels: Sequence[str]) -> Any:
        series = self._series[name]
        return series.labels(*labels) if labels else series


@dataclass(frozen=True)
class Metric:
    """One metric; counters end in `_total`, and the unit is part of the name."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...] = ()


@contextlib.contextmanager
def serve_metrics(
    metrics: Sequence[Metric], server: MetricsServer, field: str
) -> Iterator[Metrics]:
    """Serves them within the block; `field` is the name of the port's setting in messages.

    Raises ConfigError if prometheus-client is not installed or the port is taken.
    """
    if server.port is None:
        yield Metrics({})
        return
    try:
        from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server
    except ImportError:
        raise ConfigError(f"{field}: prometheus-client is not installed; pip install it") from None
    registry = CollectorRegistry()
    kinds: dict[str, Any] = {"counter": Counter, "gauge": Gauge}
    series = {
        each.name: kinds[each.kind](each.name, each.help, each.labels, registry=registry)
        for each in metrics
    }
    try:
        http, thread = start_http_server(server.port, server.host, registry)
    except OSError as error:
        raise ConfigError(
            f"{field}: cannot serve on {server.host}:{server.port} ({error.strerror}); choose "
            "another port"
        ) from None
    try:
        yield Metrics(series)
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


BUILD_METRICS = (
    Metric("infineg_candidates_total", "counter", "Candidates read.", ("source",)),
    Metric("infineg_selected_total", "counter", "Candidates selected.", ("source",)),
    Metric("infineg_rejected_total", "counter", "Candidates rejected.", ("source", "reason")),
    Metric("infineg_candidates_per_second", "gauge", "Candidates read per second, recently."),
    Metric("infineg_candidates_planned", "gauge", "Candidates that this build will read."),
    Metric("infineg_parts_committed_total", "counter", "Parts committed.", ("source",)),
    Metric("infineg_parts_queued", "gauge", "Spans dispatched whose last part is not committed."),
    Metric("infineg_last_commit_timestamp_seconds", "gauge", "When a part was last committed."),
    Metric("infineg_stage_seconds_total", "counter", "Worker seconds, by stage.", ("stage",)),
)

TRAIN_METRICS = (
    Metric("infineg_train_samples_per_second", "gauge", "Samples trained on per second, recently."),
    Metric("infineg_train_data_wait_ratio", "gauge", "Share of time spent waiting for data, 0-1."),
    Metric("infineg_train_loss", "gauge", "Loss of the last logged step."),
    Metric("infineg_train_learning_rate", "gauge", "Learning rate of the head."),
    Metric("infineg_train_step", "gauge", "Optimizer steps done."),
    Metric("infineg_train_steps_planned", "gauge", "Optimizer steps planned in total."),
    Metric("infineg_train_last_step_timestamp_seconds", "gauge", "When a step last ended."),
)

METRICS = BUILD_METRICS + TRAIN_METRICS
