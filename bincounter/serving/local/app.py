"""Starlette app: /invocations, /ping, /metrics, /model, page."""

import asyncio
import json
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from bincounter.serving.application.answers import Problem
from bincounter.serving.application.service import Reply
from bincounter.serving.local.explain import Explainer
from bincounter.serving.local.guards import Intake, Refusal, SameOrigin
from bincounter.serving.local.server import State, Worker

_PAGE = Path(__file__).with_name("page")
_STYLE = files("bincounter.report") / "templates" / "style.css"  # the reports' own
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_GONE = 499  # the status that logs know clients by who did not wait


class Front:
    """What each path answers.

    Args:
        worker: the archive's process.
        explainer: where its model looked.
        card: what the page says of the model beside what the worker knows: ``scores``, a mapping.
    """

    def __init__(self, worker: Worker, explainer: Explainer, card: Mapping[str, Any]) -> None:
        self._worker, self._explainer = worker, explainer
        self._model = {**worker.ready, **card}
        self._metrics = Metrics({name: str(worker.ready[name]) for name in ("name", "precision")})
        self._intake = Intake(worker.limits, worker.limits.max_queue)
        self._explained = Intake(worker.limits, 1)
        self._files = {path.name: path.read_bytes() for path in (*_PAGE.iterdir(), _STYLE)}

    def application(self) -> ASGIApp:
        """The ASGI application."""
        routes = [
            Route("/", self._page),
            Route("/page/{name}", self._page),
            Route("/model", self._describe),
            Route("/ping", self._ping),
            Route("/metrics", self._scrape),
            Route("/invocations", self._invoke, methods=["POST"]),
            Route("/explanation", self._explain, methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {HTTPException: _no_such_path, Exception: _unforeseen}
        return SameOrigin(Starlette(routes=routes, exception_handlers=handlers))

    async def _page(self, request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in self._files:
            raise HTTPException(404)
        return Response(self._files[name], media_type=_TYPES[Path(name).suffix])

    async def _describe(self, _: Request) -> Response:
        return JSONResponse(self._model)

    async def _ping(self, _: Request) -> Response:
        if not (await self._worker.state()).ready:
            return Refusal(Problem(503, "The model is being loaded; ask again in a few seconds."))
        return JSONResponse({"model": self._worker.ready["name"]})

    async def _scrape(self, _: Request) -> Response:
        text = self._metrics.text(await self._worker.state(), self._worker.restarts)
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _invoke(self, request: Request) -> Response:
        with self._metrics.request() as status:
            response = await _answer(request, self._intake, self._worker)
            status.append(response.status_code)
        return response

    async def _explain(self, request: Request) -> Response:
        return await _answer(request, self._explained, self._explainer)


async def _answer(request: Request, intake: Intake, backend: Worker | Explainer) -> Response:
    try:
        async with intake.body(request) as body:
            headers = request.headers
            asking = backend.ask(body, headers.get("content-type"), headers.get("accept"))
            reply = await _while_connected(request, asking)
    except Problem as problem:
        return Refusal(problem)
    except ClientDisconnect:
        return Response(status_code=_GONE)
    return Response(reply.body, reply.status, {**reply.headers, "Content-Type": reply.content_type})


async def _while_connected(request: Request, asking: Coroutine[Any, Any, Reply]) -> Reply:
    """Wait for an answer as long as the client does.

    Raises:
        ClientDisconnect: it no longer does; what was asked is cancelled.
    """
    asked = asyncio.create_task(asking)
    gone = asyncio.ensure_future(request.receive())  # the body has been read: nothing else can come
    try:
        await asyncio.wait({asked, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            raise ClientDisconnect
        return asked.result()
    finally:
        for task in (asked, gone):
            task.cancel()
        with suppress(asyncio.CancelledError):
            await gone


async def _no_such_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        problem = Problem(405, f"{request.url.path} takes {allowed}; send that.")
    else:
        problem = Problem(404, "There is nothing here; post photos to /invocations, or open / in a browser.")
    return Refusal(problem, dict(error.headers or {}))


async def _unforeseen(_: Request, error: Exception) -> Response:
    """A mistake of this server's own, which is logged with its traceback."""
    return Refusal(Problem(500, f"The server failed ({type(error).__name__}); see what it printed."))


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


_SCORES = {"accuracy": ("Accuracy", "{:.1%}"), "rmse": ("RMSE", "{:.3f}")}


def read_card(folder: Path) -> dict[str, Any]:
    """Read ``model.json`` and the front matter of the model card, where there is one.

    Args:
        folder: the unpacked archive.

    Returns:
        ``task_name``, and ``scores``: by title, with the photos they are of.
    """
    described = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    scores = {}
    for result in _results(folder / "README.md"):
        photos = f"{result['dataset']['split']} photos of {result['dataset']['name']}"
        for metric in result["metrics"]:
            title, form = _SCORES.get(metric["type"], (metric["type"], "{}"))
            scores[title] = f"{form.format(metric['value'])} on {photos}".replace("%", " %")
    return {"task_name": described.get("task_name"), "scores": scores}


def _results(card: Path) -> list[dict[str, Any]]:
    if not card.is_file():
        return []
    _, front_matter, _ = card.read_text(encoding="utf-8").split("---\n", 2)
    return [result for model in yaml.safe_load(front_matter).get("model-index", []) for result in model["results"]]
