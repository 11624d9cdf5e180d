"""Prometheus metrics of a build or a training, served over HTTP where a port is asked for."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field

from pipeline.errors import ConfigError
from pipeline.metric_names import Metric


class MetricsServer(BaseModel, frozen=True, extra="forbid"):
    """Where http://HOST:PORT/metrics is; `port: null` serves nothing."""

    port: int | None = Field(None, ge=1, le=65535)
    host: str = "127.0.0.1"  # 0.0.0.0 where Prometheus is on another machine: anyone may read them


class Metrics:
    """Sets values by the names of `pipeline.metric_names`; does nothing where none are served."""

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
