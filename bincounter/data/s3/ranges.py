"""Concurrent range requests for photos in objects.

The threads of obstore do not survive a fork, and a request in a forked process would wait forever. So processes that
read photos have to be started by ``forkserver`` or ``spawn``; a forked one gets an error.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from bincounter.data.records import PhotoFile
from bincounter.data.s3.bucket import Bucket
from bincounter.errors import DataError

_GAP = 1 << 18  # bytes between two photos that are read in one request
_SPAN = 1 << 23  # bytes of one request
_THREADS = 32  # most requests that one batch of photos makes at a time


def limit_requests(connections: int) -> None:
    """Limit the concurrent requests of this process, and read the AWS settings again."""
    global _reader  # noqa: PLW0603  # connections belong to a process
    _reader = _Reader(connections)


def loader_options(workers: int, connections: int) -> dict[str, Any]:
    """DataLoader options for workers that read from a bucket: not forked, and with a shared request limit."""
    if not workers:
        return {}
    forks = "forkserver" in multiprocessing.get_all_start_methods()  # not on Windows
    context = multiprocessing.get_context("forkserver" if forks else "spawn")
    context.set_forkserver_preload(["bincounter.data.sampler"])  # torch is imported once, not by each of them
    initialize = partial(_limit_requests_of_worker, max(connections // workers, 1))
    return {"multiprocessing_context": context, "worker_init_fn": initialize}


def _limit_requests_of_worker(connections: int, _worker: int) -> None:
    limit_requests(connections)


def open_bucket(name: str) -> Bucket:
    """Open a bucket for this process, once.

    Raises:
        DataError: the address or the settings are wrong, or this process was forked.
    """
    return _reader_here().bucket(name)


def read_objects(files: Sequence[PhotoFile]) -> list[bytes]:
    """Read photos out of shards in a bucket, neighbours by one request, and requests concurrently.

    Raises:
        DataError: a shard is missing or may not be read, or this process was forked.
        ResourceError: a shard is too short, or the network or the server failed.
    """
    reader = _reader_here()
    spans = list(_spans(files))
    bodies = reader.threads.map(reader.read, spans) if len(spans) > 1 else map(reader.read, spans)
    photos = [b""] * len(files)
    for span, body in zip(spans, bodies, strict=True):
        for row in span.rows:
            start = files[row].offset - span.start
            photos[row] = body[start : start + (files[row].size or 0)]
    return photos


class _Span(NamedTuple):
    """One request: the bytes from ``start`` to ``end`` of an object, and the rows of the photos in them."""

    bucket: str
    key: str
    start: int
    end: int
    rows: list[int]


class _Reader:
    """Buckets and threads of one process."""

    def __init__(self, connections: int) -> None:
        self.connections = connections
        self.process = os.getpid()
        self.buckets: dict[str, Bucket] = {}
        self.threads = ThreadPoolExecutor(min(connections, _THREADS), thread_name_prefix="photos")
        self._requests = threading.BoundedSemaphore(connections)
        self._opening = threading.Lock()

    def bucket(self, name: str) -> Bucket:
        """Open a bucket, once for all threads."""
        with self._opening:
            if name not in self.buckets:
                self.buckets[name] = Bucket(name, self.connections)
            return self.buckets[name]

    def read(self, span: _Span) -> bytes:
        """Make one request, when it is its turn."""
        bucket = self.bucket(span.bucket)
        with self._requests:
            return bucket.read_range(span.key, span.start, span.end - span.start)


_reader = _Reader(64)


def _reader_here() -> _Reader:
    if _reader.process != os.getpid():
        if _reader.buckets:
            raise DataError(
                "photos cannot be streamed in a process that was forked from one that did: set data.sync.stream=false, "
                "or start processes anew, as trainer.strategy=ddp does"
            )
        limit_requests(_reader.connections)
    return _reader


def _spans(files: Sequence[PhotoFile]) -> Iterator[_Span]:
    """Join photos that are near each other in one object."""
    span: _Span | None = None
    for row in sorted(range(len(files)), key=lambda row: (str(files[row].path), files[row].offset)):
        file = files[row]
        bucket, key, end = file.bucket or "", str(file.path), file.offset + (file.size or 0)
        if not file.size:
            continue
        if span and span[:2] == (bucket, key) and file.offset - span.end <= _GAP and end - span.start <= _SPAN:
            span = span._replace(end=max(end, span.end), rows=[*span.rows, row])
            continue
        if span:
            yield span
        span = _Span(bucket, key, file.offset, end, [row])
    if span:
        yield span
