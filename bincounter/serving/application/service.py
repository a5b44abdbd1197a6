"""A request's bytes -> an answer's bytes: what every server of an archive calls."""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from bincounter.serving.application import requests
from bincounter.serving.application.answers import JSON, Answers, wanted
from bincounter.serving.application.batching import Batcher
from bincounter.serving.application.model import ServedModel
from bincounter.serving.application.problems import Problem
from bincounter.serving.application.reading import Reader
from bincounter.serving.application.urls import Fetcher

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_LARGE = 1 << 20  # bytes; a body beyond it is parsed in a thread, since others wait meanwhile
_FETCHES = 8  # photos by URL at a time; none of them keeps others from being decoded


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

    @classmethod
    def refusing(cls, problem: Problem) -> "Reply":
        """The answer that says why there is none."""
        return cls(problem.status, JSON, problem.body(), problem.headers)


class Service:
    """Answers requests for one model, many at a time.

    Args:
        model: from an archive.
        fetcher: of photos that are given by URL.
    """

    def __init__(self, model: ServedModel, fetcher: Fetcher | None = None) -> None:
        self._limits, self._size = model.limits, model.image_size
        self._reader = Reader(model, fetcher or Fetcher(model.limits))
        self._batcher = Batcher(model.probabilities, model.limits)
        self._answers = Answers(model.name, model.counts)
        self._decoders = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "decode")
        self._fetchers = ThreadPoolExecutor(_FETCHES, "fetch")
        self._reading_seconds = 0.0

    async def start(self) -> None:
        """Begin; the model has computed once when it returns."""
        await self._batcher.start(torch.zeros(3, self._size, self._size, dtype=torch.uint8))

    async def close(self) -> None:
        """End; requests in hand are given up."""
        await self._batcher.close()
        for pool in (self._decoders, self._fetchers):
            pool.shutdown(wait=False, cancel_futures=True)

    @property
    def ready(self) -> bool:
        """Whether the model answers."""
        return self._batcher.ready

    def statistics(self) -> dict[str, float]:
        """Since the start: photos, batches by size, seconds of reading (all threads) and computing; and who waits."""
        return {
            "photos": self._batcher.photos,
            **{f"batches_of_{size}": number for size, number in sorted(self._batcher.batches.items())},
            "decode_seconds": self._reading_seconds,
            "forward_seconds": self._batcher.seconds,
            "queue_length": self._batcher.waiting,
        }

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
            return Reply.refusing(problem)
        except TimeoutError:
            late = f"There was no answer within {self._limits.timeout_s:g} s; send fewer at a time."
            return Reply.refusing(Problem(504, late))
        except Exception as error:
            log.exception("A request failed.")
            failed = f"The request failed ({type(error).__name__}); see the log of the endpoint."
            return Reply.refusing(Problem(500, failed))

    async def _answer(self, body: bytes, content_type: str | None, accept: str | None) -> Reply:
        form = wanted(accept)
        reading = partial(requests.read, body, content_type, self._limits)
        asked = reading() if len(body) <= _LARGE else await _in(self._decoders, reading)
        photos = [partial(self._pixels, photo, asked.where(number)) for number, photo in enumerate(asked.photos)]
        rows = await self._batcher.rows(photos)
        return Reply(200, form.content_type, self._answers.written(rows, form, several=asked.several))

    async def _pixels(self, photo: requests.Photo, where: str) -> Tensor:
        pool = self._fetchers if isinstance(photo, requests.Url) else self._decoders
        pixels, seconds = await _in(pool, partial(_timed, partial(self._reader.pixels, photo, where)))
        self._reading_seconds += seconds
        return pixels


def _timed(function: Callable[[], _T]) -> tuple[_T, float]:
    started = time.perf_counter()
    return function(), time.perf_counter() - started


async def _in(pool: ThreadPoolExecutor, function: Callable[[], _T]) -> _T:
    return await asyncio.get_running_loop().run_in_executor(pool, function)
