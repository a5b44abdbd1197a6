"""Entry point ``deployment.py`` for Ray Serve: one replica that serves the archive, built by ``serve run config.yaml``.

Ray's ``/-/healthz`` returns 200 as soon as the application is built, even if its replica fails. The model is therefore
loaded once before the application exists, so that a damaged archive is never healthy. The replica then loads it again;
requests wait meanwhile.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from bincounter.serving.application import photo_requests
from bincounter.serving.application.answers import Limits, Problem

FOLDER = Path(__file__).resolve().parent
LIMITS = Limits(**json.loads((FOLDER / "model.json").read_text(encoding="utf-8"))["limits"])

_IN_HAND = 2 * (LIMITS.max_queue + LIMITS.max_batch)
"""Concurrent requests of a replica: more than its queue holds, so that the replica itself refuses, with a message."""


def _gpus() -> int:
    return int(ray.is_initialized() and ray.cluster_resources().get("GPU", 0) > 0)


@serve.deployment(
    name="bincounter",
    max_ongoing_requests=_IN_HAND,
    max_queued_requests=_IN_HAND,
    ray_actor_options={"num_gpus": _gpus()},
    health_check_period_s=5,
    logging_config={"enable_access_log": False},
)
class Replica:
    """Answers requests with the model beside this file."""

    async def __init__(self) -> None:  # type: ignore[misc]  # Ray awaits it, in the loop that requests run in
        # Ray also imports this file in processes that need no torch.
        from bincounter.serving.application.batcher import configure_process
        from bincounter.serving.application.served_model import ServedModel
        from bincounter.serving.application.service import Service, failure

        configure_process()
        self._decompressing = asyncio.Lock()  # one at a time: its result takes memory beside the body
        self._service, self._failure = Service(ServedModel.load(FOLDER)), failure
        await self._service.start()

    async def __call__(self, request: Request) -> Response:
        """Handle ``POST /``."""
        headers = request.headers
        try:
            body = await self._body(request)
        except Exception as error:
            problem = error if isinstance(error, Problem) else self._failure(error, "The request failed")
            return Response(problem.body(), problem.status, problem.headers, photo_requests.JSON)
        expected = photo_requests.expected_of(headers)
        reply = await self._service.handle(body, headers.get("content-type"), headers.get("accept"), expected)
        return Response(reply.body, reply.status, {**reply.headers, "Content-Type": reply.content_type})

    async def _body(self, request: Request) -> bytes:
        taken = bytearray()
        async for chunk in request.stream():
            taken += chunk
            if len(taken) > LIMITS.max_body_bytes:
                raise photo_requests.too_large(LIMITS)
        coding = ", ".join(request.headers.getlist("content-encoding"))
        if coding.strip().lower() in ("", "identity"):
            return bytes(taken)
        async with self._decompressing:
            return await asyncio.to_thread(photo_requests.decompress, bytes(taken), coding, LIMITS)

    def check_health(self) -> None:
        """Raise once the model no longer answers, so that Ray replaces this replica."""
        if not self._service.ready:
            raise RuntimeError("the model no longer answers")


def app(_: dict[str, Any]) -> serve.Application:
    """Build the application, after checking that the model loads."""
    from bincounter.serving.application.served_model import ServedModel

    ServedModel.load(FOLDER)
    return Replica.bind()  # type: ignore[attr-defined]  # Ray's decorator is typed as if it did nothing
