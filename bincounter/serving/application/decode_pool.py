"""Decoding beside other work: quick photos in threads, large and slow ones in processes that can be killed."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TypeVar

from torch import Tensor

from bincounter.data.photo_bounds import PhotoError
from bincounter.data.photo_decoder import FAILED, PIXELS, REFUSED, Header, decode_square, read_header
from bincounter.data.preprocessing import as_tensor
from bincounter.parallel import count_cpus
from bincounter.serving.application.answers import Problem

SECONDS = 20.0
"""Processor time that a process may take for a photo; the largest photos of good encoders take 6."""

_QUICK = 6_000_000  # work of a photo that threads decode, see `_work`: about 50 ms
_MOST_WAITING, _MOST_BYTES = 64, 100_000_000  # photos that wait for a process, and their bytes together
_MOST_OF_ONE = 4  # of them of one request, which holds its others back
_MODULE = "bincounter.data.photo_decoder"
_PATH = os.pathsep.join(map(os.path.abspath, sys.path))  # of this bincounter; the local server puts others first
# glibc then returns the memory of large photos at once, and a process that waits is as small as a new one.
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}

_T = TypeVar("_T")


class DecodePool:
    """Pool of decoding threads and processes with fair scheduling between requests.

    Processes have a low priority, and there is one for every two cores, at most two. They import neither torch nor a
    model, start with the first photo that needs one, and end with this process.

    Args:
        size: side of the square photos, in pixels.

    Attributes:
        seconds: spent on decoding since the start, in threads and processes.
    """

    def __init__(self, size: int) -> None:
        cores = count_cpus()
        processes = max(1, min(2, cores // 2))
        self._size = size
        self._threads, self._thread_turns = ThreadPoolExecutor(cores, "decode"), _Turns(cores)
        self._waiters, self._process_turns = ThreadPoolExecutor(processes, "decoding"), _Turns(processes)
        self._idle: list[_Process] = []
        self._waiting, self._waiting_bytes = 0, 0
        self._admissions: dict[object, _Turns] = {}  # by request
        self.seconds = 0.0

    def close(self) -> None:
        """Stop; abandons photos that processes are decoding, and their requests."""
        for pool in (self._threads, self._waiters):
            pool.shutdown(wait=False, cancel_futures=True)
        for process in self._idle:
            process.kill()

    async def run(self, function: Callable[[], _T], request: object) -> _T:
        """Call a quick function in a thread, when it is the request's turn."""
        async with self._thread_turns.turn(request):
            return await _in(self._threads, function)

    async def decode(self, read: Callable[[], bytes], request: object) -> Tensor:
        """Decode a photo.

        Args:
            read: returns its bytes; called in a thread.
            request: any hashable id of the request, by which photos take turns.

        Returns:
            ``uint8[3, S, S]``.

        Raises:
            Problem: 503, too many large photos wait; also raises the errors of ``read``.
            PhotoError: the photo is unreadable, or takes too much time.
            MemoryError: there is too little memory.
        """
        begun = await self.run(partial(self._begin, read), request)
        if not isinstance(begun, bytes):
            return begun
        admission = self._admissions.setdefault(request, _Turns(_MOST_OF_ONE))
        try:
            async with admission.turn(request):
                return as_tensor(await self._decode_apart(begun, request), self._size)
        finally:
            if admission.is_free(_MOST_OF_ONE):
                self._admissions.pop(request, None)

    def _begin(self, read: Callable[[], bytes]) -> Tensor | bytes:
        """Decode a quick photo; return the bytes of others."""
        data = read()
        started = time.perf_counter()
        if _work(read_header(data), len(data), self._size) > _QUICK:
            return data
        pixels = as_tensor(decode_square(data, self._size), self._size)
        self.seconds += time.perf_counter() - started
        return pixels

    async def _decode_apart(self, data: bytes, request: object) -> bytes:
        full = self._waiting >= _MOST_WAITING or self._waiting_bytes + len(data) > _MOST_BYTES
        if self._waiting and full:  # an idle pool takes a photo of any size
            raise Problem(503, f"{self._waiting} large photos wait to be decoded; retry in a second.")
        self._waiting += 1
        self._waiting_bytes += len(data)
        try:
            async with self._process_turns.turn(request):
                self._idle = [each for each in self._idle if each.is_alive]  # one may have been killed for its memory
                process = self._idle.pop() if self._idle else _Process(self._size)
                started = time.perf_counter()
                try:
                    return await _in(self._waiters, partial(process.decode, data))
                except asyncio.CancelledError:
                    process.kill()
                    raise
                finally:
                    self.seconds += time.perf_counter() - started
                    if process.is_alive:
                        self._idle.append(process)
        finally:
            self._waiting -= 1
            self._waiting_bytes -= len(data)


def decode_here(data: bytes, size: int) -> Tensor:
    """Decode a photo in this thread, or, if it is not quick, in a process that is killed after :data:`SECONDS`.

    Args:
        data: the content of the file.
        size: side S of the square, in pixels.

    Returns:
        ``uint8[3, S, S]``.

    Raises:
        PhotoError: the photo is unreadable, or takes too much time.
        MemoryError: there is too little memory.
    """
    if _work(read_header(data), len(data), size) <= _QUICK:
        return as_tensor(decode_square(data, size), size)
    process = _Process(size)
    try:
        return as_tensor(process.decode(data), size)
    finally:
        process.kill()


def _work(header: Header, size: int, side: int) -> int:
    """Estimate the decoding time of a photo by its coded bytes and pixels, in units of 8 ns on one core of 2023.

    A JPEG with both sides several times as long as the square's is decoded at an eighth, a quarter or a half. One of
    several scans is decoded twice more, as a whole.
    """
    pixels = header.width * header.height
    if not header.is_jpeg:
        return size + 3 * pixels
    smaller = min(header.width, header.height) // side
    scale = next((each for each in (8, 4, 2) if smaller >= each), 1)
    coded = size + pixels * header.scans // 8
    return coded + 3 * pixels // scale**2 + (0 if header.scans == 1 else 2 * (coded + 3 * pixels))


async def _in(pool: ThreadPoolExecutor, function: Callable[[], _T]) -> _T:
    return await asyncio.get_running_loop().run_in_executor(pool, function)


class _Turns:
    """Fair semaphore, round-robin over requests: one with many photos delays others by one photo only."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: dict[object, deque[asyncio.Future[None]]] = {}  # by request, the next one first

    @asynccontextmanager
    async def turn(self, request: object) -> AsyncIterator[None]:
        """Hold a place while the block runs."""
        if self._free:
            self._free -= 1
        else:
            mine = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(request, deque()).append(mine)
            try:
                await mine
            except asyncio.CancelledError:
                if mine.done() and not mine.cancelled():  # the place came at the same moment
                    self._pass_on()
                raise
        try:
            yield
        finally:
            self._pass_on()

    def is_free(self, places: int) -> bool:
        """Return True if all of ``places`` are free."""
        return self._free == places

    def _pass_on(self) -> None:
        while self._waiting:
            request = next(iter(self._waiting))
            photos = self._waiting.pop(request)
            first = photos.popleft()
            if photos:
                self._waiting[request] = photos  # behind all others
            if not first.done():
                first.set_result(None)
                return
        self._free += 1


class _Process:
    """Process that decodes photos one by one, see :func:`bincounter.data.photo_decoder.main`."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False

    @property
    def is_alive(self) -> bool:
        """True if it can take another photo."""
        return not self._killed and self._process is not None and self._process.poll() is None

    def decode(self, data: bytes) -> bytes:
        """Decode a photo; starts the process on first use.

        Raises:
            PhotoError: the photo is unreadable, or takes too much time.
            MemoryError: there is too little memory.
            OSError: the process cannot be started.
        """
        kind = answer = b""
        process = self._started()
        assert process.stdin
        assert process.stdout
        with suppress(OSError):  # a broken pipe: it has ended
            process.stdin.write(len(data).to_bytes(8, "big"))
            process.stdin.write(data)
            process.stdin.flush()
            kind = process.stdout.read(1)
            answer = process.stdout.read(int.from_bytes(process.stdout.read(8), "big"))
        match kind:
            case b"":
                raise self._ending(process)
            case _ if kind == PIXELS:
                return answer
            case _ if kind == REFUSED:
                raise PhotoError(answer.decode())
        assert kind == FAILED
        raise MemoryError(answer.decode())

    def kill(self) -> None:
        """Kill the process, or prevent its start."""
        with self._starting:
            self._killed = True
            if self._process:
                self._process.kill()
                self._process.wait()

    def _started(self) -> subprocess.Popen[bytes]:
        with self._starting:
            if self._killed:
                raise MemoryError("given up")
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", _MODULE, str(self._size), str(SECONDS)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": _PATH},
                )
            return self._process

    def _ending(self, process: subprocess.Popen[bytes]) -> Exception:
        code = process.wait()
        if code == -signal.SIGPROF:
            return PhotoError(f"it takes more than {SECONDS:g} s to decode")
        if code == -signal.SIGSEGV:
            return PhotoError("damaged")
        return MemoryError(f"a decoding process ended with code {code}")
