"""What a server tells Prometheus."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from bincounter.serving.local.backend import State

_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30)
_WORK = {
    "photos": "Photos the model has counted.",
    "decode_seconds": "Seconds of decoding photos, over all threads.",
    "forward_seconds": "Seconds the model has computed.",
}
_BATCHES = "batches_of_"
_SIZES = (1, 2, 4, 8, 16, 32, 64)
_QUEUE = "queue_length", "Photos that wait for the model."


class Metrics:
    """Counts requests, and shows them beside what the model's process says it has done.

    Args:
        model: name of the model and of its precision.
    """

    def __init__(self, model: Mapping[str, str]) -> None:
        self._registry = CollectorRegistry()
        self._work = _Work()
        self._registry.register(self._work)
        ProcessCollector(registry=self._registry)
        registry = self._registry
        Info("bincounter_model", "The model that is served.", registry=registry).info(dict(model))
        self._ready = Gauge("bincounter_ready", "Whether the model answers.", registry=registry)
        self._requests = Counter(
            "bincounter_requests", "Requests to /invocations by status.", ["status"], registry=registry
        )
        self._seconds = Histogram(
            "bincounter_request_seconds",
            "Seconds from a request's headers to its answer.",
            registry=registry,
            buckets=_SECONDS,
        )
        self._in_flight = Gauge(
            "bincounter_requests_in_flight", "Requests that are being read or answered.", registry=registry
        )
        self._restarts = Counter(
            "bincounter_worker_restarts", "How often the model's process was started again.", registry=registry
        )
        self._known_restarts = 0

    @contextmanager
    def request(self) -> Iterator[list[int]]:
        """Time a request; its status is put into the list that the block is given."""
        status: list[int] = []
        with self._in_flight.track_inprogress(), self._seconds.time():
            yield status
        self._requests.labels(str(status[-1])).inc()

    def text(self, state: State, restarts: int) -> bytes:
        """Write all metrics in Prometheus's text format.

        Args:
            state: of the model's process.
            restarts: of that process.
        """
        self._ready.set(state.ready)
        self._work.statistics = state.statistics
        self._restarts.inc(restarts - self._known_restarts)
        self._known_restarts = restarts
        return generate_latest(self._registry)


class _Work(Collector):
    """What the model's process has done since it was started."""

    def __init__(self) -> None:
        self.statistics: Mapping[str, float] = {}

    def collect(self) -> Iterator[Metric]:
        """The metrics of the statistics at hand."""
        for name, what in _WORK.items():
            if name in self.statistics:
                yield CounterMetricFamily(f"bincounter_{name}", what, self.statistics[name])
        name, what = _QUEUE
        if name in self.statistics:
            yield GaugeMetricFamily(f"bincounter_{name}", what, self.statistics[name])
            yield self._batch_sizes()

    def _batch_sizes(self) -> Metric:
        batches = {
            int(name.removeprefix(_BATCHES)): number
            for name, number in self.statistics.items()
            if name.startswith(_BATCHES)
        }
        buckets = [
            (str(float(bound)), sum(number for size, number in batches.items() if size <= bound)) for bound in _SIZES
        ]
        histogram = HistogramMetricFamily("bincounter_batch_size", "Photos in a batch.")
        histogram.add_metric([], [*buckets, ("+Inf", sum(batches.values()))], self.statistics["photos"])
        return histogram
