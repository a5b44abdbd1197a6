"""A request's bytes -> an answer's bytes: what every server of an archive calls."""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from torch import Tensor

from bincounter.serving.application import requests
from bincounter.serving.application.answers import CSV, JSON, Answers, wanted
from bincounter.serving.application.batching import Batcher
from bincounter.serving.application.model import ServedModel
from bincounter.serving.application.problems import Problem
from bincounter.serving.application.urls import Fetcher

log = logging.getLogger(__name__)

_LARGE = 1 << 18  # bytes; a body beyond it is read in a thread, since others wait meanwhile
_BUSY = {"Retry-After": "1"}  # seconds
_DOWNLOADS = 8  # photos fetched by URL at a time


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        status: of HTTP.
        content_type: of the body.
        body: JSON, or CSV where that was asked for.
        headers: beside the content type.
    """

    status: int
    content_type: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class Service:
    """Answers requests for one model, many at a time.

    Args:
        model: from an archive.
        fetcher: of photos that are given by URL.
    """

    def __init__(self, model: ServedModel, fetcher: Fetcher | None = None) -> None:
        self._limits = model.limits
        self._batcher = Batcher(model)
        self._answers = Answers(model.name, model.counts)
        self._fetcher = fetcher or Fetcher(model.limits)
        self._threads = ThreadPoolExecutor(_DOWNLOADS, "request")

    async def start(self) -> None:
        """Begin; the model has computed once when it returns."""
        await self._batcher.start()

    async def close(self) -> None:
        """End; requests in hand are given up."""
        await self._batcher.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return self._batcher.running

    def statistics(self) -> dict[str, float]:
        """See :meth:`Batcher.statistics`."""
        return self._batcher.statistics()

    async def handle(self, body: bytes, content_type: str | None, accept: str | None) -> Reply:
        """Answer a request; never raises.

        Args:
            body: of the request.
            content_type: its header.
            accept: its header.

        Returns:
            Status 200 with the counts, or another one with a sentence in JSON.
        """
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                return await self._answer(body, content_type, accept)
        except Problem as problem:
            return _reply(problem)
        except TimeoutError:
            return _reply(
                Problem(504, f"There was no answer within {self._limits.timeout_s:g} s; send less at a time.")
            )
        except Exception as error:
            log.exception("A request failed.")
            return _reply(Problem(500, f"The model failed ({type(error).__name__}); see the endpoint's log."))

    async def _answer(self, body: bytes, content_type: str | None, accept: str | None) -> Reply:
        answer_type, header = wanted(accept)
        if len(body) > _LARGE:
            asked = await self._in_thread(requests.read, body, content_type, self._limits)
        else:
            asked = requests.read(body, content_type, self._limits)
        photos = await asyncio.gather(*(self._bytes_of(photo) for photo in asked.photos))
        rows = _whole(await self._batcher.rows(photos), several=asked.several)
        if answer_type == CSV:
            return Reply(200, f"{CSV}; charset=utf-8", self._answers.csv(rows, header=header))
        return Reply(200, JSON, self._answers.json(rows, several=asked.several))

    async def _bytes_of(self, photo: bytes | requests.Url) -> bytes:
        if isinstance(photo, bytes):
            return photo
        return await self._in_thread(self._fetcher.fetch, photo.text)

    async def _in_thread(self, function, *arguments):  # type: ignore[no-untyped-def]
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


def _whole(results: Sequence[Tensor | Problem], *, several: bool) -> list[Tensor]:
    """All distributions; of several photos the first that has none is named."""
    for number, result in enumerate(results):
        if isinstance(result, Problem):
            sentence = str(result)
            where = f"instances[{number}]: {sentence}" if several else sentence[:1].upper() + sentence[1:]
            raise Problem(result.status, where)
    return [result for result in results if isinstance(result, Tensor)]


def _reply(problem: Problem) -> Reply:
    return Reply(problem.status, JSON, problem.body(), dict(_BUSY) if problem.status == 503 else {})
