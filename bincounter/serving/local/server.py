"""``serve``: an unpacked archive on 127.0.0.1, until it is told to stop."""

import asyncio
import errno
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from bincounter.errors import ResourceError, UserError
from bincounter.serving.local.backend import GRACE, Worker
from bincounter.serving.local.card import read_card
from bincounter.serving.local.connection import Connection
from bincounter.serving.local.explaining import Explainer
from bincounter.serving.local.front import Front

ADDRESS = "127.0.0.1"
_EXIT_CODES = {signal.SIGINT: 0, signal.SIGTERM: 143}


def serve(folder: Path, *, port: int, started: Callable[[int], None] = lambda port: None) -> int:
    """Serve an archive until Ctrl-C or SIGTERM; what was asked before is still answered.

    Its addresses are printed on stdout as soon as it answers.

    Args:
        folder: the unpacked archive.
        port: on 127.0.0.1; 0 takes a free one.
        started: called with the port as soon as it answers.

    Returns:
        The exit code: 0 after Ctrl-C, 143 after SIGTERM.

    Raises:
        UserError: the port is taken, or the archive cannot be loaded.
        ResourceError: memory or time gave out, or the model's process died and could not be started again.
    """
    with _listening(port) as listener:
        return asyncio.run(_serve(folder, listener, started))


def check_port(port: int) -> None:
    """Find out early whether a port is free.

    Raises:
        UserError: it is not.
    """
    _listening(port).close()


def _listening(port: int) -> socket.socket:
    # asyncio turns Nagle's algorithm off only where the protocol is named; on, it holds every answer for 40 ms.
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((ADDRESS, port))
    except OSError as error:
        listener.close()
        taken = error.errno == errno.EADDRINUSE
        reason = "is taken by another program" if taken else f"cannot be used ({error.strerror})"
        raise UserError(f"Port {port} {reason}; set target.port to another, or to 0 for a free one.") from error
    listener.listen(1024)
    return listener


async def _serve(folder: Path, listener: socket.socket, started: Callable[[int], None]) -> int:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    code = 0

    def stop(number: signal.Signals) -> None:
        nonlocal code
        code = _EXIT_CODES[number]
        stopped.set()

    for number in _EXIT_CODES:
        loop.add_signal_handler(number, stop, number)
    stopping = asyncio.create_task(stopped.wait())
    starting = asyncio.create_task(Worker.start(folder))
    ends: set[asyncio.Future[Any]] = {starting, stopping}
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting})
        return code
    worker, explainer = starting.result(), Explainer(folder)
    try:
        server = _Server(worker, explainer, folder)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        _announce(worker.ready["name"], listener.getsockname()[1], started)
        ends = {serving, stopping, worker.given_up}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
    finally:
        await worker.close()
        await explainer.close()
    if worker.given_up.done():
        raise ResourceError(f"The model's process died and could not be started again. {worker.given_up.result()}")
    return code


def _announce(model: str, port: int, started: Callable[[int], None]) -> None:
    base = f"http://{ADDRESS}:{port}"
    print(f"{model} is served until Ctrl-C")
    for what, path in (("page", "/"), ("photos", "/invocations"), ("metrics", "/metrics")):
        print(f"  {what:<8} {base}{path}", flush=True)
    started(port)


class _Server(uvicorn.Server):
    """uvicorn without its own ideas of signals and logs."""

    def __init__(self, worker: Worker, explainer: Explainer, folder: Path) -> None:
        config = uvicorn.Config(
            Front(worker, explainer, read_card(folder)).application(),
            loop="asyncio",
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=75,  # a client that comes back after seconds finds its connection open
            timeout_graceful_shutdown=int(worker.limits.timeout_s + GRACE) + 1,
        )
        super().__init__(config)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them to :func:`serve`."""
        yield
