"""Soak test: many clients, good and bad requests, and a worker that dies under them; memory stays flat."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException

import psutil
from archives import photo
from local_server import LocalServer

CLIENTS = 8
GROWTH = 25_000_000  # bytes; a photo that stayed behind with each request would be more
BODIES = [photo(seed, side=600) for seed in range(6)] + [b"no photo", photo()[:500], bytes(2_100_000)]


def soak(server: LocalServer, requests: int, *, killed: psutil.Process | None = None) -> Counter[int]:
    """Send good and bad requests by several clients at a time, and count the statuses of the answers; 0 is a reset.

    Args:
        server: to ask.
        requests: number of requests.
        killed: process to kill after a quarter of them.
    """

    def ask(number: int) -> int:
        if killed and number == requests // 4:
            killed.kill()
        try:
            return server.count(BODIES[number % len(BODIES)]).status
        except (OSError, HTTPException):
            return 0

    with ThreadPoolExecutor(CLIENTS) as clients:
        return Counter(clients.map(ask, range(requests)))


def test_requests_end_and_memory_stays_while_a_worker_dies(served: LocalServer) -> None:
    served.wait_until_ready()
    soak(served, 90)
    supervisor, worker = psutil.Process(served.process.pid), served.worker()
    before = [process.memory_info().rss for process in (supervisor, worker)]
    assert set(soak(served, 300)) == {200, 413, 422}
    after = [process.memory_info().rss for process in (supervisor, worker)]
    assert all(late - early < GROWTH for early, late in zip(before, after, strict=True))
    seen = soak(served, 300, killed=worker)
    assert set(seen) <= {0, 200, 413, 422}
    assert 0 < seen[0] <= CLIENTS  # those in hand; others wait for the next worker
    assert served.worker().pid != worker.pid
    assert served.count(photo()).status == 200
