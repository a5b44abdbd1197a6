"""Many clients at a time, good and bad, and a worker that dies under them: every request ends, and memory stays."""

import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psutil
from archives import photo
from local_server import Answer, LocalServer

CLIENTS = 8
GROWTH = 25_000_000  # bytes; a photo that stayed behind with each request would be more


def soak(server: LocalServer, requests: int) -> Counter[int]:
    """Send good and bad requests by several clients at a time, and count the statuses of the answers."""
    bodies = [photo(seed, side=600) for seed in range(6)] + [b"no photo", photo()[:500], bytes(2_100_000)]

    def ask(number: int) -> Answer:
        return server.count(bodies[number % len(bodies)])

    with ThreadPoolExecutor(CLIENTS) as clients:
        return Counter(answer.status for answer in clients.map(ask, range(requests)))


def test_requests_end_and_memory_stays_while_a_worker_dies(served: LocalServer) -> None:
    served.wait_until_ready()
    soak(served, 90)
    front, worker = psutil.Process(served.process.pid), served.worker()
    before = [process.memory_info().rss for process in (front, worker)]
    assert set(soak(served, 300)) == {200, 413, 422}
    after = [process.memory_info().rss for process in (front, worker)]
    assert all(late - early < GROWTH for early, late in zip(before, after, strict=True))
    killer = threading.Timer(0.2, lambda: worker.send_signal(signal.SIGKILL))
    killer.start()
    seen = soak(served, 300)
    killer.join()
    assert set(seen) <= {200, 413, 422, 503}
    assert seen[503]
    served.wait_until_ready()
    assert served.count(photo()).status == 200
