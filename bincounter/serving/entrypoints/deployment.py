"""The Ray Serve application of an archive: ``serve run config.yaml`` finds ``app`` here. Only this file imports ray."""

from pathlib import Path

import ray
from bincounter.serving.application.model import ServedModel
from bincounter.serving.application.problems import Problem
from bincounter.serving.application.requests import too_large
from bincounter.serving.application.service import Service
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

_FOLDER = Path(__file__).resolve().parent


@serve.deployment
class BinCounter:
    """One replica: the model, and the queue before it."""

    async def __init__(self) -> None:
        self._model = ServedModel.load(_FOLDER)
        self._service = Service(self._model)
        await self._service.start()

    async def __call__(self, request: Request) -> Response:
        """Answer ``POST /``: what the image's adapter passes on of ``POST /invocations``."""
        limits, body = self._model.limits, bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limits.max_body_bytes:
                problem: Problem = too_large(limits)
                return Response(problem.body(), problem.status, media_type="application/json")
        headers = request.headers
        reply = await self._service.handle(bytes(body), headers.get("content-type"), headers.get("accept"))
        return Response(reply.body, reply.status, {**reply.headers, "Content-Type": reply.content_type})

    def check_health(self) -> None:
        """Raise where nothing is answered any more, so that Ray starts another replica."""
        if not self._service.ready:
            raise RuntimeError("the model answers no more")


# One replica computes on all cores; what it cannot take is refused at once instead of queueing without bound.
_gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
app = BinCounter.options(
    max_ongoing_requests=256, max_queued_requests=64, ray_actor_options={"num_cpus": 1, "num_gpus": _gpus}
).bind()
