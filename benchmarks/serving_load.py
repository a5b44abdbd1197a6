"""Clients that keep a server busy: threads with a kept-alive connection each."""

import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from typing import NamedTuple
from urllib.parse import urlsplit

TIMEOUT = 120.0  # seconds after which a request counts as hung


class Load(NamedTuple):
    """Measurements of clients: median and 99th percentile of the seconds to an answer, and answers per second."""

    p50: float
    p99: float
    rate: float


class Flood(NamedTuple):
    """Number of simultaneous requests by status, and seconds to the slowest refusal."""

    statuses: dict[int | str, int]
    slowest_refusal: float


def load(
    url: str, jpegs: Sequence[bytes], *, clients: int, seconds: float | None = None, requests: int | None = None
) -> Load:
    """Send photos by several clients at a time, for a number of seconds or requests.

    Raises:
        RuntimeError: an answer was not 200.
    """
    place, numbers = urlsplit(url), count()
    until = time.perf_counter() + (seconds or 1e9)
    taken: list[list[float]] = [[] for _ in range(clients)]
    failures: list[str] = []

    def client(mine: list[float]) -> None:
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=TIMEOUT)
        while time.perf_counter() < until and (number := next(numbers)) < (requests or 1e9) and not failures:
            started = time.perf_counter()
            connection.request("POST", place.path, jpegs[number % len(jpegs)], {"Content-Type": "image/jpeg"})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                failures.append(f"{answer.status}: {body[:300]!r}")
            mine.append(time.perf_counter() - started)
        connection.close()

    started = time.perf_counter()
    _together([lambda mine=mine: client(mine) for mine in taken])
    wall = time.perf_counter() - started
    if failures:
        raise RuntimeError(f"{url} answered {failures[0]}")
    times = sorted(one for mine in taken for one in mine)
    return Load(times[len(times) // 2], times[min(len(times) - 1, int(0.99 * len(times)))], len(times) / wall)


def overload(url: str, jpegs: Sequence[bytes], *, clients: int, meanwhile: Callable[[], None] | None = None) -> Flood:
    """Send one request by each of many clients at once, and count the statuses.

    Args:
        url: of the server.
        jpegs: photos to send.
        clients: number of clients.
        meanwhile: called as soon as all of them are sent.
    """
    place = urlsplit(url)
    statuses: list[tuple[int | str, float]] = []

    def client(number: int) -> None:
        started = time.perf_counter()
        status: int | str
        try:
            connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=TIMEOUT)
            connection.request("POST", place.path, jpegs[number % len(jpegs)], {"Content-Type": "image/jpeg"})
            answer = connection.getresponse()
            answer.read()
            status = answer.status
        except (OSError, http.client.HTTPException) as error:
            status = type(error).__name__
        statuses.append((status, time.perf_counter() - started))

    jobs: list[Callable[[], None]] = [lambda number=number: client(number) for number in range(clients)]
    if meanwhile is not None:
        jobs.append(lambda: (time.sleep(0.05), meanwhile())[-1])
    _together(jobs)
    refusals = [seconds for status, seconds in statuses if status in (429, 503)]
    return Flood(dict(Counter(status for status, _ in statuses)), max(refusals, default=0.0))


def during(
    url: str, body: bytes, content_type: str, *, clients: int, work: Callable[[], Load]
) -> tuple[Load, dict[int | str, int]]:
    """Send one body again and again by some clients while ``work`` runs; returns its result and their statuses."""
    place, statuses, over = urlsplit(url), Counter[int | str](), threading.Event()
    seen: list[Load] = []

    def client() -> None:
        while not over.is_set():
            connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=TIMEOUT)
            try:
                connection.request("POST", place.path, body, {"Content-Type": content_type})
                answer = connection.getresponse()
                answer.read()
                statuses[answer.status] += 1
            except (OSError, http.client.HTTPException) as error:
                statuses[type(error).__name__] += 1
            connection.close()

    def worker() -> None:
        time.sleep(1)  # the clients are at work
        try:
            seen.append(work())
        finally:
            over.set()

    _together([*[client] * clients, worker])
    return seen[0], dict(statuses)


def _together(jobs: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
