"""The server on 127.0.0.1: an endpoint's paths, and a page to drop photos on."""

import asyncio
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from bincounter.serving.application.problems import Problem
from bincounter.serving.application.service import Reply
from bincounter.serving.local.backend import Worker
from bincounter.serving.local.explaining import Explainer
from bincounter.serving.local.intake import Intake
from bincounter.serving.local.metrics import Metrics
from bincounter.serving.local.refusal import Refusal
from bincounter.serving.local.same_origin import SameOrigin

_PAGE = Path(__file__).with_name("page")
_STYLE = files("bincounter.inspect") / "templates" / "style.css"  # the reports' own
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
