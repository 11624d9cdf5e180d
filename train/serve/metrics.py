"""Prometheus metrics of the server, and whether its pictures differ from those of val.

`infineg_serve_logit` is a histogram of the logits that were given, `infineg_serve_val_logit` one of
val's, with the same buckets. As long as pictures are like those of val, the first is a mixture of
the second's two parts: of pictures that show the target, and of others.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from train.serve.model import Prediction

ValLogits = Mapping[tuple[str, bool], NDArray[np.float64]]

_NUM_BUCKETS = 20
# Counted by name; all others as one, since anyone can ask for any.
_PATHS = ("/", "/predict", "/healthz", "/metrics", "/openapi.json")
_INTERRUPTED = 499  # the client has left; as nginx counts it


class ServeMetrics:
    """What /metrics shows."""

    def __init__(self, targets: Sequence[str], val_logits: ValLogits) -> None:
        self.registry = CollectorRegistry()
        edges = bucket_edges(val_logits)
        self.requests = Counter(
            "infineg_serve_requests",
            "Requests, by path and status.",
            ("path", "status"),
            registry=self.registry,
        )
        self.latency = Histogram(
            "infineg_serve_latency_seconds",
            "From the first byte of a request for a prediction to the last of its answer.",
            buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
            registry=self.registry,
        )
        self.batch_size = Histogram(
            "infineg_serve_batch_size",
            "Pictures in a batch.",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self.registry,
        )
        self.predictions = Counter(
            "infineg_serve_predictions",
            'Predictions, by label; "" is none of the targets.',
            ("label",),
            registry=self.registry,
        )
        self.logits = Histogram(
            "infineg_serve_logit",
            "Logits given, before calibration.",
            ("target",),
            buckets=edges,
            registry=self.registry,
        )
        for target in targets:  # a series that is there from the start can be watched
            self.logits.labels(target)
        self.registry.register(_ValLogits(val_logits, edges))

    def watch_queue(self, num_pictures: Callable[[], float]) -> None:
        gauge = Gauge(
            "infineg_serve_pictures_held",
            "Pictures that are being uploaded, wait or are looked at.",
            registry=self.registry,
        )
        gauge.set_function(num_pictures)

    def add(self, prediction: Prediction) -> None:
        self.predictions.labels(prediction.label).inc()
        for target, logit in prediction.logits.items():
            self.logits.labels(target).observe(logit)


class _ValLogits(Collector):
    """The histogram of val, which does not change."""

    def __init__(self, val_logits: ValLogits, edges: Sequence[float]) -> None:
        family = HistogramMetricFamily(
            "infineg_serve_val_logit",
            "Logits of val, by whether the picture shows the target.",
            labels=("target", "shows"),
        )
        for (target, shows), logits in val_logits.items():
            counts = [(f"{edge:g}", float((logits <= edge).sum())) for edge in edges]
            family.add_metric(
                (target, "yes" if shows else "no"),
                [*counts, ("+Inf", float(len(logits)))],
                sum_value=float(logits.sum()),
            )
        self._family = family

    def collect(self) -> Iterator[Metric]:
        yield self._family


def bucket_edges(val_logits: ValLogits) -> list[float]:
    """Upper bounds of the buckets: even steps over the logits of val, for all targets the same."""
    known = [logits for logits in val_logits.values() if len(logits)]
    if not known:
        return [float(edge) for edge in range(-20, 21, 2)]
    low, high = min(map(np.min, known)), max(map(np.max, known))
    edges = np.linspace(low, high, _NUM_BUCKETS + 1)
    return [float(f"{edge:.4g}") for edge in edges]


class CountRequests:
    """ASGI middleware that counts requests by path and status, and times predictions."""

    def __init__(self, app: ASGIApp, metrics: ServeMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, begun = _INTERRUPTED, time.monotonic()

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        finally:
            path = scope["path"] if scope["path"] in _PATHS else "other"
            self._metrics.requests.labels(path, str(status)).inc()
            if path == "/predict":
                self._metrics.latency.observe(time.monotonic() - begun)
