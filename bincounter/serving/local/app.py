"""Starlette app of the local server: /invocations, /ping, /metrics, /model, /explanation, /openapi.json and the page.

A watchdog thread ends the process once the model is stuck or broken.
"""

import asyncio
import json
import logging
import multiprocessing
import os
import re
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict
from functools import partial
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

from bincounter.number_format import format_score, score_heading
from bincounter.serving.application.answers import Problem, shorten
from bincounter.serving.application.photo_requests import expected_of
from bincounter.serving.application.served_model import ServedModel
from bincounter.serving.application.service import Reply, Service, failure
from bincounter.serving.local.access import Access
from bincounter.serving.local.explain import Explainer
from bincounter.serving.local.guards import (
    BearerToken,
    PageFiles,
    ProblemResponse,
    RequestLimiter,
    SameOrigin,
    unforeseen,
)
from bincounter.serving.local.openapi import describe_api

log = logging.getLogger(__name__)

_PAGE = Path(__file__).with_name("page")
_GONE = 499  # client closed the connection, as nginx logs it
_WATCH = 0.5  # seconds between two checks of the model
_GRACE = 5.0  # seconds beyond limits.timeout_s after which an event loop counts as stuck
_REQUEST_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30)
_WORK = {
    "photos": "Photos the model has counted.",
    "decode_seconds": "Seconds of decoding photos, over all threads.",
    "forward_seconds": "Seconds the model has computed.",
}
_BATCHES = "batches_of_"
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)

Handle = Callable[[bytes, str | None, str | None], Coroutine[Any, Any, Reply]]
"""(body, Content-Type, Accept) -> reply; never raises."""


def create_app(
    model: ServedModel, folder: Path, identity: Mapping[str, str | int], restarts: int, access: Access
) -> ASGIApp:
    """Build the ASGI application that serves a model.

    Args:
        model: of the archive.
        folder: the unpacked archive, for its model card.
        identity: of the server, for ``/ping``.
        restarts: number of workers before this one, for ``/metrics``.
        access: to the server.
    """
    endpoints = _Endpoints(model, folder, identity, restarts, token=access.token is not None)
    routes = [
        Route("/", endpoints.files.page),
        Route("/page/{name}", endpoints.files.page),
        Route("/model", endpoints.describe),
        Route("/ping", endpoints.ping),
        Route("/metrics", endpoints.scrape),
        Route("/openapi.json", endpoints.describe_api),
        Route("/invocations", endpoints.invoke, methods=["POST"]),
        Route("/explanation", endpoints.explain, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {HTTPException: _no_such_path, Exception: unforeseen}
    app: ASGIApp = Starlette(routes=routes, exception_handlers=handlers, lifespan=endpoints.lifespan)
    if access.token is not None:
        app = BearerToken(app, access.token, _is_open)
    return SameOrigin(app, access)


def _is_open(path: str) -> bool:
    """Return True if a path takes no token: the health check, and the page, which prompts for it."""
    return path in ("/ping", "/") or path.startswith("/page/")


class _Endpoints:
    """Handlers of the paths, and the service behind them."""

    def __init__(
        self, model: ServedModel, folder: Path, identity: Mapping[str, str | int], restarts: int, *, token: bool
    ) -> None:
        self._identity, self._timeout_s = identity, model.limits.timeout_s
        self._service = Service(model)
        self._explainer = Explainer(model, self._service)
        described = {name: getattr(model, name) for name in ("name", "counts", "image_size", "precision")}
        self._model = {**described, "limits": asdict(model.limits), **read_card(folder)}
        self._api = describe_api(model.limits, model.counts, token=token)
        self._metrics = Metrics(model, self._service, restarts)
        self._limiter = RequestLimiter(model.limits, model.limits.max_queue)
        self._explain_limiter = RequestLimiter(model.limits, 1)
        self.files = PageFiles(_PAGE)
        if token:  # a link sends none
            closed = rb'<a href="(/metrics|/openapi\.json)">[^<]*</a>'
            self.files["index.html"] = re.sub(closed, rb"<code>\1</code> (with the token)", self.files["index.html"])

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Run the service, and watch it."""
        await self._service.start()
        stopping = threading.Event()
        watched = self._service, asyncio.get_running_loop(), self._timeout_s + _GRACE, stopping
        threading.Thread(target=_watch, args=watched, daemon=True).start()
        yield
        stopping.set()
        self._explainer.close()
        await self._service.close()

    async def describe(self, _: Request) -> Response:
        """Return the model, its limits and its scores."""
        return JSONResponse(self._model)

    async def describe_api(self, request: Request) -> Response:
        """Return the OpenAPI description of these paths."""
        return JSONResponse(self._api)

    async def ping(self, _: Request) -> Response:
        """Health check: 200 with the identity of this server while the model answers."""
        if not self._service.ready:
            return ProblemResponse(Problem(503, "The model does not answer and is restarted; retry in a second."))
        return JSONResponse(dict(self._identity))

    async def scrape(self, _: Request) -> Response:
        """Return the metrics for Prometheus."""
        return Response(self._metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def invoke(self, request: Request) -> Response:
        """Count photos."""
        with self._metrics.request() as status:
            handle = partial(self._service.handle, expected=expected_of(request.headers))
            response = await _answer(request, self._limiter, handle)
            status.append(response.status_code)
        return response

    async def explain(self, request: Request) -> Response:
        """Explain one photo by Grad-CAM."""
        return await _answer(request, self._explain_limiter, self._explainer.handle)


def _watch(service: Service, loop: asyncio.AbstractEventLoop, timeout_s: float, stopping: threading.Event) -> None:
    """End this process once its model is broken, its model or event loop is stuck, or its supervisor is gone."""
    parent = multiprocessing.parent_process()

    async def is_ready() -> bool:
        return service.ready

    while not stopping.wait(_WATCH):
        if parent and not parent.is_alive():
            os._exit(1)
        try:
            ready = asyncio.run_coroutine_threadsafe(is_ready(), loop).result(timeout_s)
        except TimeoutError:
            ready = False
        if not ready and not stopping.is_set():
            log.error("The model no longer answers; its process is ended.")
            os._exit(1)


async def _answer(request: Request, limiter: RequestLimiter, handle: Handle) -> Response:
    try:
        async with limiter.body(request) as body:
            headers = request.headers
            reply = await _while_connected(request, handle(body, headers.get("content-type"), headers.get("accept")))
    except Problem as problem:
        return ProblemResponse(problem)
    except ClientDisconnect:
        return Response(status_code=_GONE)
    except Exception as error:  # such as a lack of memory for the body
        return ProblemResponse(failure(error, "The request failed"))
    return Response(reply.body, reply.status, {**reply.headers, "Content-Type": reply.content_type})


async def _while_connected(request: Request, asking: Coroutine[Any, Any, Reply]) -> Reply:
    """Wait for an answer while the client is connected.

    Raises:
        ClientDisconnect: it has disconnected; the work is cancelled.
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
        problem = Problem(405, f"{shorten(request.url.path)} accepts {allowed}; send that.")
    else:
        problem = Problem(404, "Unknown path; post photos to /invocations, or open / in a browser.")
    return ProblemResponse(problem, dict(error.headers or {}))


class Metrics(Collector):
    """Metrics of requests, of the service and of this process, for Prometheus.

    Args:
        model: name and precision of the model.
        service: that answers.
        restarts: number of workers before this one.
    """

    def __init__(self, model: ServedModel, service: Service, restarts: int) -> None:
        self._service, self._restarts = service, restarts
        self._registry = registry = CollectorRegistry()
        registry.register(self)
        ProcessCollector(registry=registry)
        described = {"name": model.name, "precision": model.precision}
        Info("bincounter_model", "The model that is served.", registry=registry).info(described)
        self._requests = Counter(
            "bincounter_requests", "Requests to /invocations by status.", ["status"], registry=registry
        )
        self._seconds = Histogram(
            "bincounter_request_seconds",
            "Seconds from a request's headers to its answer.",
            registry=registry,
            buckets=_REQUEST_SECONDS,
        )
        self._in_flight = Gauge(
            "bincounter_requests_in_flight", "Requests that are being read or answered.", registry=registry
        )

    @contextmanager
    def request(self) -> Iterator[list[int]]:
        """Time a request; the block appends its status to the yielded list."""
        status: list[int] = []
        with self._in_flight.track_inprogress(), self._seconds.time():
            yield status
        self._requests.labels(str(status[-1])).inc()

    def text(self) -> bytes:
        """Write all metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the service since the worker started."""
        done = self._service.statistics()
        yield GaugeMetricFamily("bincounter_ready", "1 while the model answers.", self._service.ready)
        yield CounterMetricFamily("bincounter_worker_restarts", "Times the worker was replaced.", self._restarts)
        for name, description in _WORK.items():
            yield CounterMetricFamily(f"bincounter_{name}", description, done[name])
        yield GaugeMetricFamily("bincounter_queue_length", "Photos that wait for the model.", done["queue_length"])
        batches = {int(name.removeprefix(_BATCHES)): n for name, n in done.items() if name.startswith(_BATCHES)}
        buckets = [
            (str(float(bound)), sum(n for size, n in batches.items() if size <= bound)) for bound in _BATCH_SIZES
        ]
        histogram = HistogramMetricFamily("bincounter_batch_size", "Photos in a batch.")
        histogram.add_metric([], [*buckets, ("+Inf", sum(batches.values()))], done["photos"])
        yield histogram


def read_card(folder: Path) -> dict[str, Any]:
    """Read ``model.json`` and the front matter of the model card, if there is one.

    Args:
        folder: the unpacked archive.

    Returns:
        ``task_name``, and ``scores``: text by title, which names the photos.
    """
    described = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    scores = {}
    for result in _results(folder / "README.md"):
        photos = f"{result['dataset']['split']} photos of {result['dataset']['name']}"
        for metric in result["metrics"]:
            kind = metric["type"]
            scores[score_heading(kind)] = f"{format_score(kind, metric['value'])} on {photos}"
    return {"task_name": described.get("task_name"), "scores": scores}


def _results(card: Path) -> list[dict[str, Any]]:
    if not card.is_file():
        return []
    _, front_matter, _ = re.split("^---$", card.read_text(encoding="utf-8"), maxsplit=2, flags=re.MULTILINE)
    return [result for model in yaml.safe_load(front_matter).get("model-index", []) for result in model["results"]]
