"""Prometheus metrics of a build or a training, served over HTTP where a port is asked for."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.config.build import MetricsServer
from pipeline.errors import ConfigError


class Metrics:
    """Sets values by the names of the metrics; does nothing where none are served."""

    def __init__(self, series: Mapping[str, Any]) -> None:
        self._series = series

    def add(self, name: str, value: float, *labels: str) -> None:
        """To a counter."""
        if self._series:
            self._of(name, labels).inc(value)

    def set(self, name: str, value: float, *labels: str) -> None:
        """A gauge."""
        if self._series:
            self._of(name, labels).set(value)

    def _of(self, name: str, labels: Sequence[str]) -> Any:
        series = self._series[name]
        return series.labels(*labels) if labels else series


@dataclass(frozen=True)
class Metric:
    """One metric; counters end in `_total`, units stand in the name."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...] = ()


@contextlib.contextmanager
def serve_metrics(
    metrics: Sequence[Metric], server: MetricsServer, field: str
) -> Iterator[Metrics]:
    """Serves them within the block. `field` of the config names the port in messages.

    Raises ConfigError where prometheus-client is not installed, or the port is taken.
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
