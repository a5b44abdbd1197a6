"""Service of one model: bytes of a request in, bytes of an answer out."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from bincounter.data.photo_bounds import PhotoError, PhotoTooLargeError
from bincounter.serving.application import photo_requests
from bincounter.serving.application.answers import JSON, AnswerFormatter, Limits, Problem, is_shortage, parse_accept
from bincounter.serving.application.batcher import Batcher
from bincounter.serving.application.decode_pool import DecodePool, decode_here
from bincounter.serving.application.photo_requests import Base64, Photo, PhotoRequest, Url
from bincounter.serving.application.served_model import ServedModel
from bincounter.serving.application.url_fetcher import Fetcher, FetchPool

log = logging.getLogger(__name__)

_LARGE_BODY = 1 << 20  # bytes; larger bodies are parsed in a thread, so that the event loop stays free


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
        self._answers = AnswerFormatter(model.name, model.counts, model.least, model.judge, model.answer)
        self._decoders = DecodePool(self._size)
        self._fetchers = FetchPool(model.limits)

    async def start(self) -> None:
        """Start; the model is warmed up when it returns."""
        await self._batcher.start(torch.zeros(3, self._size, self._size, dtype=torch.uint8))

    async def close(self) -> None:
        """Stop; cancels requests in progress."""
        await self._batcher.close()
        self._decoders.close()
        self._fetchers.shutdown(wait=False, cancel_futures=True)

    @property
    def ready(self) -> bool:
        """True while the model answers."""
        return self._batcher.ready

    def statistics(self) -> dict[str, float]:
        """Totals since the start (photos, batches by size, seconds of decoding and forward), and the queue length."""
        return {
            "photos": self._batcher.photos,
            **{f"batches_of_{size}": number for size, number in sorted(self._batcher.batches.items())},
            "decode_seconds": self._decoders.seconds,
            "forward_seconds": self._batcher.seconds,
            "queue_length": self._batcher.waiting,
        }

    async def handle(
        self, body: bytes, content_type: str | None, accept: str | None, expected: str | None = None
    ) -> Reply:
        """Answer a request; never raises.

        Args:
            body: of the request.
            content_type: its header.
            accept: its header.
            expected: from :func:`bincounter.serving.application.photo_requests.expected_of`.

        Returns:
            Status 200 with the counts, or an error status with ``{"error": message}``.
        """
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                return await self._answer(body, content_type, accept, expected)
        except Problem as problem:
            return Reply.refusing(problem)
        except TimeoutError:
            return Reply.refusing(too_late(self._limits))
        except Exception as error:
            return Reply.refusing(failure(error, "The request failed"))

    async def _answer(self, body: bytes, content_type: str | None, accept: str | None, expected: str | None) -> Reply:
        form = parse_accept(accept)
        reading = partial(photo_requests.parse_request, body, content_type, self._limits, expected)
        asked = reading() if len(body) <= _LARGE_BODY else await self._decoders.run(reading, object())
        check_expected(asked, self._answers)
        photos = [partial(self.read, photo, asked, number) for number, photo in enumerate(asked.photos)]
        rows = await self._batcher.rows(photos)
        body = self._answers.format(rows, form, several=asked.several, expected=asked.expected)
        return Reply(200, form.content_type, body)

    async def read(self, photo: Photo, request: PhotoRequest, number: int) -> Tensor:
        """Read a photo of a request into the input of the model: ``uint8[3, S, S]``.

        Args:
            photo: fetched first if it is given by URL.
            request: it is part of.
            number: of the photo in the request.

        Raises:
            Problem: 400 empty, not base64 or not fetched, 413 too large, 422 unreadable, 503 short of memory.
        """
        with photo_problems(request.where(number)):
            if isinstance(photo, Url):
                fetching = partial(self._reader.content, photo)
                photo = await asyncio.get_running_loop().run_in_executor(self._fetchers, fetching)
            return await self._decoders.decode(partial(self._reader.content, photo), id(request))


def check_expected(request: PhotoRequest, answers: AnswerFormatter) -> None:
    """Check the recorded counts of a request before its photos are read.

    Raises:
        Problem: 400, one cannot be judged.
    """
    for number, count in enumerate(request.expected):
        try:
            answers.check_expected(count)
        except Problem as problem:
            raise problem.at(request.where(number)) from None


def too_late(limits: Limits) -> Problem:
    """Problem of a request that exceeds ``limits.timeout_s``."""
    return Problem(504, f"No answer within {limits.timeout_s:g} s; send fewer photos at a time.")


def failure(error: Exception, what: str) -> Problem:
    """Problem of an unexpected error, which is logged: 503 a lack of memory or files, else 500."""
    if is_shortage(error):
        log.error("%s: %s %s", what, type(error).__name__, error)
        return Problem(503, "The server is short of memory or open files; retry in a second.")
    log.error("%s.", what, exc_info=error)
    return Problem(500, f"{what} ({type(error).__name__}); see the log of the endpoint.")


@contextmanager
def photo_problems(where: str = "") -> Iterator[None]:
    """Translate errors of reading a photo.

    Args:
        where: prefix of a problem, from :meth:`PhotoRequest.where`.

    Raises:
        Problem: 413 too large, 422 unreadable, 503 short of memory or files; or another one of the block.
    """
    try:
        try:
            yield
        except PhotoTooLargeError as error:
            raise Problem(413, f"The photo is {error}; send a smaller one.") from error
        except PhotoError as error:
            raise Problem(422, f"The photo cannot be read ({error}); send a whole JPEG, PNG or WebP.") from error
        except (MemoryError, OSError) as error:
            raise failure(error, "A photo was not read") from error
    except Problem as problem:
        raise problem.at(where) from None


class Reader:
    """Reads photos of requests.

    Args:
        model: that decodes them.
        fetcher: of photos given by URL.
    """

    def __init__(self, model: ServedModel, fetcher: Fetcher) -> None:
        self._model, self._fetcher = model, fetcher

    def pixels(self, photo: Photo, where: str = "") -> Tensor:
        """Read and decode a photo in this thread: ``uint8[3, S, S]``.

        Args:
            photo: of a request.
            where: prefix of a problem with it.

        Raises:
            Problem: as :meth:`Service.read`.
        """
        with photo_problems(where):
            return decode_here(self.content(photo), self._model.image_size)

    def content(self, photo: Photo) -> bytes:
        """Bytes of a photo.

        Raises:
            Problem: 400, it is empty, not base64 or not fetched.
        """
        match photo:
            case Url(text):
                data = self._fetcher.fetch(text)
            case Base64():
                data = photo.decoded()
            case _:
                data = photo
        if not data:
            raise Problem(400, "The photo is empty; send the bytes of a JPEG, PNG or WebP.")
        return data
