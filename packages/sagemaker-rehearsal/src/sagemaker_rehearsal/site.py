"""State shared by all jobs of a control plane, and child processes that end with it."""

import os
import signal
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class ProcessGroups:
    """Starts processes, each in a group of its own, and can end all of them for good."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def start(self, command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start ``command`` in ``folder``, its stdout and stderr in one pipe.

        Raises:
            RuntimeError: :meth:`close` was called.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("the control plane is shutting down")
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._running.add(process)
        return process

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Kill what is left of a process and its group."""
        with self._lock:
            if process in self._running:
                self._running.remove(process)
                _kill(process)
        process.wait()

    def close(self) -> None:
        """Kill all groups; none can be started any more."""
        with self._lock:
            self._closed = True
            for process in self._running:
                _kill(process)
            self._running.clear()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):  # the whole group is gone
        os.killpg(process.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Site:
    """The place where jobs run.

    Attributes:
        folder: each job has a folder in it.
        endpoint: the plane's own address, which jobs use as well.
        grace: seconds between SIGTERM and SIGKILL.
        s3: boto3 client of the plane's own S3, over HTTP like everybody's.
        logs: boto3 client of its CloudWatch Logs.
        groups: the processes of all jobs.
    """

    folder: Path
    endpoint: str
    grace: float
    s3: Any
    logs: Any
    groups: ProcessGroups
