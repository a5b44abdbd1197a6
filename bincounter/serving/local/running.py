"""Which servers run on this machine: a file for each, locked for as long as it serves.

The lock is what counts, since a process id outlives its process and is given to another.
"""

import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from bincounter.errors import UserError

_LONGEST_END = 90.0  # seconds: requests that were taken are still answered


@dataclass(frozen=True)
class Server:
    """A server of an archive on 127.0.0.1.

    Attributes:
        name: of the endpoint.
        port: it listens on.
        pid: of its process.
        model: id of the model it serves.
        archive: the file it serves.
    """

    name: str
    port: int
    pid: int
    model: str
    archive: str

    @property
    def url(self) -> str:
        """Where its page is."""
        return f"http://127.0.0.1:{self.port}/"


@contextmanager
def announced(server: Server, folder: Path) -> Iterator[None]:
    """Let others find a server of this process for as long as the block lasts.

    Args:
        server: that serves.
        folder: of these files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = _file(server, folder)
    aside = path.with_suffix(".part")
    with aside.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        json.dump(asdict(server), file)
        file.flush()
        aside.replace(path)  # locked before anyone sees it
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def running(folder: Path) -> list[Server]:
    """The servers of this machine that serve, by port; files of killed ones are cleared away."""
    found = []
    for path in folder.glob("*.json"):
        with path.open(encoding="utf-8") as file:
            if _unlocked(file.fileno()):
                path.unlink(missing_ok=True)
            else:
                found.append(Server(**json.load(file)))
    return sorted(found, key=lambda server: server.port)


def end(server: Server, folder: Path) -> None:
    """Ask a running server to end, and wait until it has.

    Raises:
        UserError: it is another user's, or goes on.
    """
    try:
        os.kill(server.pid, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise UserError(f"{server.url} is served by another user's process {server.pid}: ask them to end it") from error
    until = time.monotonic() + _LONGEST_END
    while server in running(folder):
        if time.monotonic() > until:
            raise UserError(f"{server.url} was asked to end and goes on: see what process {server.pid} does")
        time.sleep(0.05)


def _file(server: Server, folder: Path) -> Path:
    return folder / f"{server.pid}.json"


def _unlocked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
