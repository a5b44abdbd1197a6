"""What clients may have in hand at a time: requests, bytes of one body and of all, seconds to send one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from bincounter.serving.application.limits import Limits
from bincounter.serving.application.problems import Problem

_LARGEST_BODIES = 8
"""Bodies of the largest size that are held in memory at a time."""


class Intake:
    """Admits requests and reads their bodies.

    Args:
        limits: of the archive.
        requests: that may be in hand at a time.
    """

    def __init__(self, limits: Limits, requests: int) -> None:
        self._limits, self._requests = limits, requests
        self._bytes = 0
        self.in_flight = 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Admit a request for as long as the block lasts, and read its body.

        Raises:
            Problem: 503 where too much is in hand, before anything of the body is read; 413, also by the announced
                length alone; 408 where the body comes too slowly.
            ClientDisconnect: the client went away.
        """
        if self.in_flight >= self._requests:
            raise Problem(503, f"{self._requests} requests are being answered; ask again in a second.")
        announced = request.headers.get("content-length", "")
        if announced.isdecimal():
            self._check(int(announced))
        self.in_flight += 1
        taken = bytearray()
        try:
            await self._read(request, taken)
            yield bytes(taken)
        finally:
            self._bytes -= len(taken)
            self.in_flight -= 1

    async def _read(self, request: Request, taken: bytearray) -> None:
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                async for chunk in request.stream():
                    self._check(len(taken) + len(chunk), new=len(chunk))
                    taken += chunk
                    self._bytes += len(chunk)
        except TimeoutError as error:
            sentence = f"The body did not come within {self._limits.timeout_s:g} s; send it at once."
            raise Problem(408, sentence) from error

    def _check(self, length: int, new: int | None = None) -> None:
        largest = self._limits.max_body_bytes
        if length > largest:
            raise Problem(
                413, f"The body has more than {largest / 1e6:g} MB; send a smaller photo, or fewer in one request."
            )
        if self._bytes + (length if new is None else new) > _LARGEST_BODIES * largest:
            raise Problem(503, "Too many large requests are being answered; ask again in a second.")
