"""Serve an unpacked archive on 127.0.0.1: one uvicorn worker, restarted by uvicorn's supervisor when it dies.

The supervisor holds the listening socket, so that requests wait while a worker is replaced. The worker imports this
module before it answers its first health check: what imports torch is imported on use.
"""

import errno
import logging
import multiprocessing
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_int
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import RawValue
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import SIGNALS, Multiprocess

from bincounter.errors import ResourceError, UserError

log = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"
HEALTH_CHECK = 30
"""Seconds in which a worker has to answer a health check; a busy machine loads torch slowly."""

_HEAD_BYTES = 1 << 16  # of a request, above its body
_GRACE = 5.0  # seconds beyond limits.timeout_s in which accepted requests are answered after SIGTERM
_EXIT_CODES = {signal.SIGINT: 0, signal.SIGTERM: 143}
_DEATHS, _DEATH_WINDOW = 3, 60.0  # so many within so many seconds, and the server gives up


def serve(folder: Path, *, port: int, started: Callable[[int], None] = lambda port: None) -> int:
    """Serve an archive until Ctrl-C or SIGTERM; accepted requests are still answered.

    Its addresses are printed on stdout as soon as it answers.

    Args:
        folder: the unpacked archive.
        port: on 127.0.0.1; 0 takes a free one.
        started: called with the port as soon as the server answers.

    Returns:
        The exit code: 0 after Ctrl-C, 143 after SIGTERM.

    Raises:
        UserError: the port is taken, or the archive cannot be loaded.
        ResourceError: the worker was killed while it loaded the model, or died three times within a minute.
    """
    from bincounter.serving.application.served_model import ArchiveError, read_description

    with _listening(port) as listener:
        try:
            described = read_description(folder)
        except ArchiveError as error:
            raise UserError(f"The archive cannot be loaded: {error}") from error

        def announce() -> None:
            actual = listener.getsockname()[1]
            print(f"{described['model']} is served until Ctrl-C")
            for what, path in (("page", "/"), ("photos", "/invocations"), ("metrics", "/metrics")):
                print(f"  {what:<8} http://{ADDRESS}:{actual}{path}", flush=True)
            started(actual)

        return _supervise(folder, listener, described["limits"]["timeout_s"], announce)


def check_port(port: int) -> None:
    """Check early that a port is free.

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


def _supervise(folder: Path, listener: socket.socket, timeout_s: float, announce: Callable[[], None]) -> int:
    failures, report = multiprocessing.Pipe(duplex=False)
    restarts = RawValue("i")  # without a lock, which a killed worker might hold
    grace = int(timeout_s + _GRACE) + 1
    config = uvicorn.Config(
        partial(_load_app, folder, report, restarts),
        factory=True,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=_HEAD_BYTES,
        timeout_keep_alive=75,  # a client that comes back after seconds finds its connection open
        timeout_graceful_shutdown=grace,
        timeout_worker_healthcheck=HEALTH_CHECK,
    )
    handlers = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}
    supervisor = _Supervisor(config, listener, restarts, grace, announce)
    try:
        for number in handlers.keys() - _EXIT_CODES.keys():
            signal.signal(number, handlers[number])  # uvicorn would restart or add workers on SIGHUP and SIGTTIN
        supervisor.run()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if supervisor.processes[0].exitcode == STARTUP_FAILURE:
        reason = failures.recv() if failures.poll() else "see the error above."
        raise UserError(f"The archive cannot be loaded: {reason}")
    if supervisor.failure:
        raise ResourceError(supervisor.failure)
    return supervisor.exit_code


class _Supervisor(Multiprocess):
    """Uvicorn's supervisor with one worker; it calls back when the worker is ready, and gives up in the end.

    Args:
        config: of the worker.
        listener: the socket that workers accept connections from.
        restarts: counts the workers that were replaced.
        grace: seconds that a worker may take to end.
        announce: called once the first worker answers.

    Attributes:
        exit_code: by the signal that ended it.
        failure: sentence on why it gave up; empty where it did not.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        listener: socket.socket,
        restarts: c_int,
        grace: int,
        announce: Callable[[], None],
    ) -> None:
        super().__init__(config, [listener])
        self._restarts, self._grace, self._announce = restarts, grace, announce
        self._ready = False
        self._deaths: deque[float] = deque(maxlen=_DEATHS)
        self.exit_code, self.failure = 0, ""

    def init_processes(self) -> None:
        """Start the worker."""
        with _sigint_blocked():
            super().init_processes()

    def keep_subprocess_alive(self) -> None:
        """Replace a worker that died or hangs, unless workers die too often."""
        worker = self.processes[0]
        worker.child_conn.close()  # the worker's end: left open here, its death would look like a slow health check
        with _sigint_blocked():
            super().keep_subprocess_alive()
        if self.processes[0] is not worker:
            self._count_death(worker.exitcode or 0)
        elif not (self._ready or self.should_exit.is_set()) and worker.is_ready():
            self._ready = True
            self._announce()

    def _count_death(self, code: int) -> None:
        ending = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self._deaths.append(time.monotonic())
        if not self._ready:
            self.failure = f"The server's worker {ending} while it loaded the model; free memory, or see its log."
        elif len(self._deaths) == _DEATHS and self._deaths[-1] - self._deaths[0] < _DEATH_WINDOW:
            self.failure = f"The server's worker died {_DEATHS} times within {_DEATH_WINDOW:.0f} s; the last {ending}."
        else:
            self._restarts.value += 1
            log.warning("The server's worker %s; it is started again.", ending)
        if self.failure:
            self.should_exit.set()

    def handle_int(self) -> None:
        """End after Ctrl-C."""
        self.exit_code = _EXIT_CODES[signal.SIGINT]
        self.should_exit.set()

    def handle_term(self) -> None:
        """End after SIGTERM."""
        self.exit_code = _EXIT_CODES[signal.SIGTERM]
        self.should_exit.set()

    def join_all(self) -> None:
        """Wait for the worker, and kill it where it hangs."""
        worker = self.processes[0]
        worker.process.join(self._grace + _GRACE)
        if worker.process.is_alive():
            worker.kill()
        super().join_all()


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Start processes that never see Ctrl-C, which is for the supervisor: it ends them once they have answered."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _load_app(folder: Path, report: Connection, restarts: c_int) -> ASGIApp:
    """Build the worker's app, in the worker; ends it with uvicorn's code for a failed start where that fails."""
    from bincounter.serving.application.batcher import configure_process
    from bincounter.serving.application.served_model import ArchiveError, ServedModel
    from bincounter.serving.local.app import create_app

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.path.append(str(folder / "code"))  # a foreign backbone's files; bincounter itself is the installed one
    configure_process()
    try:
        model = ServedModel.load(folder)
    except ArchiveError as error:
        report.send(str(error))
        sys.exit(STARTUP_FAILURE)
    return create_app(model, folder, restarts=lambda: restarts.value)
