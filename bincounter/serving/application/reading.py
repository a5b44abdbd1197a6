"""A photo of a request -> pixels, or a sentence about what is wrong with it."""

import threading
from contextlib import nullcontext

from torch import Tensor

from bincounter.data.preprocessing import PhotoError, PhotoTooLargeError, photo_size
from bincounter.serving.application.model import ServedModel
from bincounter.serving.application.problems import Problem
from bincounter.serving.application.requests import Base64, Photo, Url
from bincounter.serving.application.urls import Fetcher

_LARGE = 25_000_000
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
            with self._alone if width * height > _LARGE else nullcontext():
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
