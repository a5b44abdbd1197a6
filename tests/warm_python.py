"""``python ARGUMENTS`` without the seconds that importing torch, Lightning and Optuna takes.

A process that has imported them forks for each command: the fork gets the command's arguments, folder, environment and
outputs, and runs the same program as ``python`` would. It can be killed like any process. Tests that need a terminal, a
process group or live outputs start a command themselves.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_WAITED_FOR = (
    "bincounter.cloud.account",
    "bincounter.report.report",
    "bincounter.sweep.optuna_search",
    "bincounter.sweep.sweep_report",
    "bincounter.training.run",
    "sagemaker.core.image_uris",
)
"""Modules whose imports are what commands take longest for."""
_WORDS_AT_MOST = 200_000  # bytes of a request
_LONGEST = 500.0  # seconds that a command may take


class Started:
    """A command that runs, with the part of ``subprocess.Popen`` that tests need.

    Args:
        connection: on which the process id comes first, then the exit code.
        outputs: files that take what it says.
    """

    def __init__(self, connection: socket.socket, outputs: tuple[IO[str], IO[str]]) -> None:
        self._connection, self._outputs = connection, outputs
        connection.settimeout(_LONGEST)
        self.pid = int(connection.recv(100))
        self.returncode: int | None = None

    def wait(self, timeout: float = _LONGEST) -> int:
        """The exit code; negative for the signal that ended it."""
        if self.returncode is None:
            self._connection.settimeout(timeout)
            self.returncode = int(self._connection.recv(100))
            self._connection.close()
        return self.returncode

    def poll(self) -> int | None:
        """The exit code of a command that has ended."""
        with suppress(BlockingIOError):
            return self.wait(0)
        return None

    def communicate(self, timeout: float = _LONGEST) -> tuple[str, str]:
        """What it has said, once it has ended."""
        self.wait(timeout)
        for file in self._outputs:
            file.seek(0)
        out, err = (file.read() for file in self._outputs)
        return out, err

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


class WarmPython:
    """Runs commands.

    Args:
        connection: to the process that forks.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def start(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Started:
        """Like ``subprocess.Popen`` of ``python ARGUMENTS`` in ``folder``."""
        request = json.dumps([arguments, str(folder), dict(environment)]).encode()
        outputs = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")  # noqa: SIM115
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            numbers = [file.fileno() for file in (*outputs, theirs)]
            socket.send_fds(self._connection, [request], numbers)
        return Started(ours, outputs)

    def run(
        self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Like ``subprocess.run`` of ``python ARGUMENTS`` in ``folder``."""
        started = self.start(arguments, folder, environment)
        out, err = started.communicate()
        return subprocess.CompletedProcess(["python", *arguments], started.wait(), out, err)


@contextmanager
def warm_python(environment: Mapping[str, str]) -> Iterator[WarmPython]:
    """A process that has imported what commands need; whatever still runs of it ends with the block."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, __file__, str(theirs.fileno())],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
        start_new_session=True,
    )
    theirs.close()
    try:
        yield WarmPython(ours)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        ours.close()


def _asked(connection: socket.socket) -> tuple[list[str], str, dict[str, str]]:
    """Fork for each request; returns in the forks alone, with their outputs in place."""
    waiting = selectors.DefaultSelector()
    waiting.register(connection, selectors.EVENT_READ)
    while True:
        for key, _ in waiting.select():
            if key.data:
                _tell_end(*key.data)
                waiting.unregister(key.fd)
                os.close(key.fd)
                continue
            request, files, _, _ = socket.recv_fds(connection, _WORDS_AT_MOST, 3)
            if not request:  # the tests are no more
                os._exit(0)
            out, err, reply = files
            pid = os.fork()
            if pid == 0:
                connection.close()
                waiting.close()
                os.dup2(out, 1)
                os.dup2(err, 2)
                for file in files:
                    os.close(file)
                arguments, folder, environment = json.loads(request)
                return arguments, folder, environment
            for file in (out, err):
                os.close(file)
            told = socket.socket(fileno=reply)
            told.send(str(pid).encode())
            waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, told))


def _tell_end(pid: int, told: socket.socket) -> None:
    _, status = os.waitpid(pid, 0)
    with told, suppress(BrokenPipeError):  # nobody may wait for it
        told.send(str(os.waitstatus_to_exitcode(status)).encode())


def _run(arguments: list[str], folder: str, environment: dict[str, str]) -> int:
    """Do what ``python ARGUMENTS`` does once it is up; returns the exit code."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    try:
        if arguments[0] == "-m":
            sys.argv, sys.path[0] = arguments[1:], folder
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).resolve().parent)
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _leave(code: int) -> None:
    """End as Python does, except that what was imported is not taken apart: that would take a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this bincounter, wherever another is installed
    for module in _WAITED_FOR:
        importlib.import_module(module)
    gc.freeze()  # a fork that looked for garbage in all this would copy it
    _leave(_run(*_asked(socket.socket(fileno=int(sys.argv[1])))))
