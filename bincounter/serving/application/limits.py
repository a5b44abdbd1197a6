"""What an endpoint takes before it refuses."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of requests, as ``model.json`` holds them.

    Attributes:
        max_body_bytes: of one request.
        max_instances: photos of one JSON request.
        max_batch: photos the model sees at once; more of them outgrow a CPU's caches.
        max_queue: photos that wait for the model; more are refused at once.
        timeout_s: seconds until a request is given up.
        url_hosts: hosts that photos may be fetched from, see :mod:`bincounter.serving.application.urls`; none: no URLs.
    """

    max_body_bytes: int = 25_000_000
    max_instances: int = 32
    max_batch: int = 8
    max_queue: int = 128
    timeout_s: float = 30.0
    url_hosts: Sequence[str] = ()
