"""State shared by all jobs of a control plane, and its child processes."""

import os
import signal
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class ProcessGroups:
    """Child processes in groups of their own, killed at the latest at the end of the control plane."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def start(self, command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start ``command`` in ``folder``, with stdout and stderr in one pipe.

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
        """Kill a process and the rest of its group."""
        with self._lock:
            if process in self._running:
                self._running.remove(process)
                _kill(process)
        process.wait()

    def close(self) -> None:
        """Kill all groups and start no more."""
        with self._lock:
            self._closed = True
            for process in self._running:
                _kill(process)
            self._running.clear()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):  # the whole group has ended
        os.killpg(process.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Site:
    """State shared by all jobs.

    Attributes:
        folder: parent of the folders of running jobs.
        endpoint: address of the control plane.
        grace: seconds between SIGTERM and SIGKILL.
        s3: boto3 client of the plane's S3.
        logs: boto3 client of the plane's CloudWatch Logs.
        groups: processes of all jobs.
    """

    folder: Path
    endpoint: str
    grace: float
    s3: Any
    logs: Any
    groups: ProcessGroups
