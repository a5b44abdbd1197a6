"""``python ARGUMENTS`` without the seconds that importing torch, Lightning and Optuna takes.

A process that has imported them forks for each command: the fork gets the command's arguments, folder, environment and
files, and runs the same program as ``python`` would. It can be killed like any process. There are two: one has imported
bincounter too; of the other there is an interpreter, ``WarmPython.executable``, for programs that start
``sys.executable`` with a bincounter of their own. Tests that need a terminal or a process group start a command
themselves.
"""

import atexit
import gc
import importlib
import json
import multiprocessing.process
import os
import re
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Literal, TextIO

import psutil

_OF_OTHERS = (
    "boto3",
    "captum.attr",
    "hydra.main",
    "lightning.pytorch",
    "matplotlib.pyplot",
    "moto.server",
    "obstore",
    "optuna",
    "sagemaker.core.image_uris",
    "scipy.ndimage",
    "torch.utils.tensorboard",
)
_OURS = (
    "bincounter.cli.composition",
    "bincounter.cloud.account",
    "bincounter.report.report",
    "bincounter.sweep.optuna_search",
    "bincounter.sweep.sweep_report",
    "bincounter.training.run",
)
"""Modules whose imports are what commands take longest for."""
_WORDS_AT_MOST = 200_000  # bytes of a request
_LOOKED_AFTER = 5.0  # seconds between looks whether the tests still run
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

    def told(self, pattern: str) -> re.Match[str]:
        """Where ``pattern`` is found in what it prints, as soon as it is."""
        until = time.monotonic() + _LONGEST / 5
        while True:
            ended = self.poll() is not None or time.monotonic() > until
            said = os.pread(self._outputs[0].fileno(), 1_000_000, 0).decode()  # whose place is the command's, too
            if found := re.search(pattern, said):
                return found
            assert not ended, (said, os.pread(self._outputs[1].fileno(), 100_000, 0))
            time.sleep(0.01)

    def poll(self) -> int | None:
        """The exit code of a command that has ended."""
        with suppress(BlockingIOError):
            return self.wait(0)
        return None

    def communicate(self, timeout: float = _LONGEST) -> tuple[str, str]:
        """Its output, once it has ended."""
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
        folder: an environment whose interpreter has them run; in it listens the process that has imported bincounter.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.executable = str(folder / "bin" / "python")
        self._socket = folder / "socket"

    def start(
        self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], stderr: IO[str] | None = None
    ) -> Started:
        """Like ``subprocess.Popen`` of ``python ARGUMENTS`` in ``folder``."""
        outputs = tempfile.TemporaryFile("w+"), stderr or tempfile.TemporaryFile("w+")  # noqa: SIM115
        with Path(os.devnull).open() as nothing:
            return Started(_ask(self._socket, arguments, folder, environment, (nothing, *outputs)), outputs)

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
    with tempfile.TemporaryDirectory(prefix="warm-") as name, ExitStack() as stack:
        python = WarmPython(_environment(Path(name)))
        theirs, ours = (stack.enter_context(_listener(Path(name) / path)) for path in ("bin/socket", "socket"))
        process = subprocess.Popen(
            [python.executable, __file__, *_OF_OTHERS],  # by this name it finds its packages, and starts others
            executable=sys.executable,
            env=environment,
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()  # should the process end, clients are refused
        stack.callback(process.wait)
        stack.callback(os.killpg, process.pid, signal.SIGKILL)
        alive = _ask(
            Path(name) / "bin/socket", [__file__, *_OURS], Path.cwd(), environment, (ours, *2 * [sys.__stderr__])
        )
        ours.close()
        with alive:
            yield python


def _environment(folder: Path) -> Path:
    """Make an environment of the packages of this one, whose interpreter is the client of a warm one."""
    python, client = folder / "bin" / "python", Path(__file__).with_name("warm_client.py")
    python.parent.mkdir()
    (folder / "lib").symlink_to(Path(sys.prefix) / "lib")
    for script in Path(sys.prefix).glob("bin/*"):
        if script.name != python.name:
            (python.parent / script.name).symlink_to(script)
    (folder / "pyvenv.cfg").symlink_to(Path(sys.prefix) / "pyvenv.cfg")
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{client}" "$0" "$@"\n')
    python.chmod(0o755)
    return folder


def _listener(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen(100)
    return listener


def _ask(
    path: Path, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], files: Sequence[Any]
) -> socket.socket:
    """Have a command run that ends with the connection, by which its process id comes, then its exit code."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(str(path))
    request = json.dumps([arguments, str(folder), dict(environment)]).encode()
    socket.send_fds(connection, [request], [file.fileno() for file in files])
    return connection


def _asked(listener: socket.socket) -> tuple[list[str], str, dict[str, str]]:
    """Fork for each request; returns in the forks alone, with their files in place."""
    asking: dict[int, socket.socket] = {}
    parent = os.getppid()
    waiting = selectors.DefaultSelector()
    waiting.register(listener, selectors.EVENT_READ, 0)
    while True:
        ready = waiting.select(_LOOKED_AFTER)
        if os.getppid() != parent:  # the tests were killed
            os.killpg(0, signal.SIGKILL)
        for key, _ in ready:
            if key.data:
                with suppress(KeyError):
                    waiting.unregister(key.fileobj)
                if isinstance(key.fileobj, int):
                    os.close(key.fileobj)
                    connection = asking.pop(key.data)
                    with suppress(KeyError):
                        waiting.unregister(connection)
                    _tell_end(key.data, connection)
                elif key.data in asking:
                    _end(key.data)
                continue
            connection, _ = listener.accept()
            request = b""
            with suppress(ConnectionError):
                request, files, _, _ = socket.recv_fds(connection, _WORDS_AT_MOST, 3)
            if not request:  # the client has ended
                connection.close()
                continue
            pid = os.fork()
            if pid == 0:
                waiting.close()
                for socket_ in (listener, connection, *asking.values()):
                    socket_.close()
                for number, file in enumerate(files):
                    os.dup2(file, number)
                    os.close(file)
                arguments, folder, environment = json.loads(request)
                return arguments, folder, environment
            for file in files:
                os.close(file)
            with suppress(ConnectionError):  # the client has been killed meanwhile: its command is, in the next round
                connection.send(str(pid).encode())
            asking[pid] = connection
            for end in (connection, os.pidfd_open(pid)):
                waiting.register(end, selectors.EVENT_READ, pid)


def _end(pid: int) -> None:
    """Kill a command that nobody waits for, and what it has started."""
    with suppress(psutil.NoSuchProcess):
        command = psutil.Process(pid)
        for process in (command, *command.children(recursive=True)):
            process.kill()


def _tell_end(pid: int, connection: socket.socket) -> None:
    _, status = os.waitpid(pid, 0)
    with connection, suppress(ConnectionError):  # nobody may wait for it
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())


def _opened(stream: TextIO, mode: Literal["r", "w"]) -> TextIO:
    """A standard stream as Python opens it, since what is behind its number has changed."""
    number, unbuffered = stream.fileno(), "PYTHONUNBUFFERED" in os.environ
    opened = open(number, mode, encoding=stream.encoding, errors=stream.errors, closefd=False)  # noqa: SIM115
    opened.reconfigure(line_buffering=number == 2 or opened.isatty(), write_through=unbuffered)
    return opened


def _run(arguments: list[str], folder: str, environment: dict[str, str]) -> int:
    """Do what ``python ARGUMENTS`` does once it is up; returns the exit code."""
    os.chdir(folder)
    setattr(multiprocessing.process, "ORIGINAL_DIR", folder)  # noqa: B010 - where processes of its own start
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin, sys.stdout = _opened(sys.stdin, "r"), _opened(sys.stdout, "w")
    sys.stderr = _opened(sys.stderr, "w")
    sys.path[1:1] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    try:
        if arguments[0] == "-c":
            sys.argv, sys.path[0] = ["-c", *arguments[2:]], ""
            main = sys.modules["__main__"] = ModuleType("__main__")
            exec(arguments[1], main.__dict__)
        elif arguments[0] == "-m":
            sys.argv, sys.path[0] = arguments[1:], folder
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[0] == "-P":
            sys.argv = arguments[1:]
            del sys.path[0]
            runpy.run_path(arguments[1], run_name="__main__")
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
    for module in sys.argv[1:]:
        importlib.import_module(module)
    if "bincounter.report.page" in sys.modules:  # what each command would import, read and compile once
        torch = sys.modules["torch"]
        torch.onnx.export(torch.nn.Identity().eval(), (torch.zeros(1),), dynamo=True, verbose=False)
        sys.modules["bincounter.report.page"].environment("bincounter.report").get_template("report.html")
        sys.modules["bincounter.data.photo_store"].decoder_digest()
        sys.modules["bincounter.cli.composition"].compose(
            ["data=folders", "model=cnn", "trainer=cpu", "callbacks=[none]", "trainer.max_epochs=1"]
        )
    gc.freeze()  # a fork that looked for garbage in all this would copy it
    _leave(_run(*_asked(socket.socket(fileno=os.dup(0)))))
