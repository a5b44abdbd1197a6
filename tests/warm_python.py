"""``python ARGUMENTS`` without the seconds that importing torch, Lightning and Optuna takes.

A process that has imported them forks for each command: the fork gets the command's arguments, folder, environment and
outputs, and runs the same program as ``python`` would. Tests that kill or interrupt a command start it themselves.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_WAITED_FOR = (
    "bincounter.cloud.account",
    "bincounter.inspect.report",
    "bincounter.sweep.optuna_search",
    "bincounter.sweep.page",
    "bincounter.training.run",
    "sagemaker.core.image_uris",
)
"""Modules whose imports are what commands take longest for."""
_WORDS_AT_MOST = 200_000  # bytes of a request
_LONGEST = 500.0  # seconds that a command may take


class WarmPython:
    """Runs commands, one at a time.

    Args:
        connection: to the process that forks.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def run(
        self, arguments: tuple[str, ...], folder: Path, environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Like ``subprocess.run`` of ``python ARGUMENTS`` in ``folder``."""
        request = json.dumps([arguments, str(folder), dict(environment)]).encode()
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            socket.send_fds(self._connection, [request], [out.fileno(), err.fileno()])
            code = int(self._connection.recv(100))
            said = []
            for file in (out, err):
                file.seek(0)
                said.append(file.read())
        return subprocess.CompletedProcess(["python", *arguments], code, *said)


@contextmanager
def warm_python(environment: Mapping[str, str]) -> Iterator[WarmPython]:
    """A process that has imported what commands need; whatever still runs of it ends with the block."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(_LONGEST)
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
    """Fork for each request; returns in the fork alone, with its outputs in place."""
    while True:
        request, files, _, _ = socket.recv_fds(connection, _WORDS_AT_MOST, 2)
        if not request:  # the tests are no more
            os._exit(0)
        pid = os.fork()
        if pid == 0:
            connection.close()
            for number, file in enumerate(files, start=1):
                os.dup2(file, number)
                os.close(file)
            arguments, folder, environment = json.loads(request)
            return arguments, folder, environment
        for file in files:
            os.close(file)
        _, status = os.waitpid(pid, 0)
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())


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
