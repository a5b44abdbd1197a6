"""Bytes of a request -> bytes of an answer."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from bincounter.data.preprocessing import PhotoError, PhotoTooLargeError, photo_size
from bincounter.serving.application import photo_requests
from bincounter.serving.application.answers import JSON, Answers, Problem, wanted
from bincounter.serving.application.batcher import Batcher
from bincounter.serving.application.photo_requests import Base64, Photo, Url
from bincounter.serving.application.served_model import ServedModel
from bincounter.serving.application.url_fetcher import Fetcher

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
        reading = partial(photo_requests.read, body, content_type, self._limits)
        asked = reading() if len(body) <= _LARGE else await _in(self._decoders, reading)
        photos = [partial(self._pixels, photo, asked.where(number)) for number, photo in enumerate(asked.photos)]
        rows = await self._batcher.rows(photos)
        return Reply(200, form.content_type, self._answers.written(rows, form, several=asked.several))

    async def _pixels(self, photo: photo_requests.Photo, where: str) -> Tensor:
        pool = self._fetchers if isinstance(photo, photo_requests.Url) else self._decoders
        pixels, seconds = await _in(pool, partial(_timed, partial(self._reader.pixels, photo, where)))
        self._reading_seconds += seconds
        return pixels


def _timed(function: Callable[[], _T]) -> tuple[_T, float]:
    started = time.perf_counter()
    return function(), time.perf_counter() - started


async def _in(pool: ThreadPoolExecutor, function: Callable[[], _T]) -> _T:
    return await asyncio.get_running_loop().run_in_executor(pool, function)


_LARGE_PHOTO = 25_000_000
"""Pixels of a photo beyond which it is decoded alone: the largest take 2 GB, which every core at once has not."""


class Reader:
    """Reads photos as a model wants them.

    Args:
        model: that sees them.
        fetcher: of those that are given by URL.
    """

    def __init__(self, model: ServedModel, fetcher: Fetcher) -> None:
        self._model, self._fetcher = model, fetcher
        self._alone = threading.Lock()

    def pixels(self, photo: Photo, where: str = "") -> Tensor:
        """Read a photo: ``uint8[3, S, S]``; one that is given by URL is fetched meanwhile.

        Args:
            photo: of a request.
            where: what introduces a problem with it, see :meth:`Asked.where`.

        Raises:
            Problem: 400 it is empty, no base64 or cannot be fetched, 413 too large, 422 it cannot be read.
        """
        try:
            return self._decoded(self._bytes(photo))
        except Problem as problem:
            raise problem.at(where) from None

    def _decoded(self, data: bytes) -> Tensor:
        if not data:
            raise Problem(400, "The photo is empty; send the bytes of a JPEG, PNG or WebP.")
        try:
            width, height = photo_size(data)
            with self._alone if width * height > _LARGE_PHOTO else nullcontext():
                return self._model.decode(data)
        except PhotoTooLargeError as error:
            raise Problem(413, f"The photo is {error}; send a smaller one.") from error
        except PhotoError as error:
            raise Problem(422, f"The photo cannot be read ({error}); send a whole JPEG, PNG or WebP.") from error

    def _bytes(self, photo: Photo) -> bytes:
        match photo:
            case Url(text):
                return self._fetcher.fetch(text)
            case Base64():
                return photo.decoded()
            case _:
                return photo
