"""Answer requests for one model: bytes of a request in, bytes of an answer out."""

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

from bincounter.data.photo_bounds import PhotoError, PhotoTooLargeError
from bincounter.data.preprocessing import photo_size
from bincounter.serving.application import photo_requests
from bincounter.serving.application.answers import JSON, AnswerFormatter, Problem, parse_accept
from bincounter.serving.application.batcher import Batcher
from bincounter.serving.application.photo_requests import Base64, Photo, Url
from bincounter.serving.application.served_model import ServedModel
from bincounter.serving.application.url_fetcher import Fetcher

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_LARGE_BODY = 1 << 20  # bytes; larger bodies are parsed in a thread, so that the event loop stays free
_FETCHES = 8  # photos by URL at a time, in threads of their own
_LARGE_PHOTO = 25_000_000  # pixels; larger photos are decoded one at a time, since they take up to 2 GB of memory


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        status: of HTTP.
        content_type: of the body.
        body: JSON, or CSV if requested.
        headers: beside the content type.
    """

    status: int
    content_type: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def refusing(cls, problem: Problem) -> "Reply":
        """Answer with the status and message of a problem."""
        return cls(problem.status, JSON, problem.body(), problem.headers)


class Service:
    """Answers requests for one model, many at a time.

    Args:
        model: from an archive.
        fetcher: of photos given by URL; by default one with the limits of the model.
    """

    def __init__(self, model: ServedModel, fetcher: Fetcher | None = None) -> None:
        self._limits, self._size = model.limits, model.image_size
        self._reader = Reader(model, fetcher or Fetcher(model.limits))
        self._batcher = Batcher(model.probabilities, model.limits)
        self._answers = AnswerFormatter(model.name, model.counts)
        self._decoders = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "decode")
        self._fetchers = ThreadPoolExecutor(_FETCHES, "fetch")
        self._reading_seconds = 0.0

    async def start(self) -> None:
        """Start; the model is warmed up when it returns."""
        await self._batcher.start(torch.zeros(3, self._size, self._size, dtype=torch.uint8))

    async def close(self) -> None:
        """Stop; cancels requests in progress."""
        await self._batcher.close()
        for pool in (self._decoders, self._fetchers):
            pool.shutdown(wait=False, cancel_futures=True)

    @property
    def ready(self) -> bool:
        """True while the model answers."""
        return self._batcher.ready

    def statistics(self) -> dict[str, float]:
        """Totals since the start (photos, batches by size, seconds of decoding and forward), and the queue length."""
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
            Status 200 with the counts, or an error status with ``{"error": message}``.
        """
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                return await self._answer(body, content_type, accept)
        except Problem as problem:
            return Reply.refusing(problem)
        except TimeoutError:
            late = f"No answer within {self._limits.timeout_s:g} s; send fewer photos at a time."
            return Reply.refusing(Problem(504, late))
        except Exception as error:
            log.exception("A request failed.")
            failed = f"The request failed ({type(error).__name__}); see the log of the endpoint."
            return Reply.refusing(Problem(500, failed))

    async def _answer(self, body: bytes, content_type: str | None, accept: str | None) -> Reply:
        form = parse_accept(accept)
        reading = partial(photo_requests.parse_request, body, content_type, self._limits)
        asked = reading() if len(body) <= _LARGE_BODY else await _in(self._decoders, reading)
        photos = [partial(self._pixels, photo, asked.where(number)) for number, photo in enumerate(asked.photos)]
        rows = await self._batcher.rows(photos)
        return Reply(200, form.content_type, self._answers.format(rows, form, several=asked.several))

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


class Reader:
    """Reads photos into the input of a model.

    Args:
        model: that decodes them.
        fetcher: of photos given by URL.
    """

    def __init__(self, model: ServedModel, fetcher: Fetcher) -> None:
        self._model, self._fetcher = model, fetcher
        self._alone = threading.Lock()

    def pixels(self, photo: Photo, where: str = "") -> Tensor:
        """Read a photo, fetched first where it is given by URL: ``uint8[3, S, S]``.

        Args:
            photo: of a request.
            where: prefix of a problem with it, from :meth:`PhotoRequest.where`.

        Raises:
            Problem: 400 empty, not base64 or not fetched, 413 too large, 422 unreadable.
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
