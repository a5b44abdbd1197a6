"""Which servers run on this machine: a file for each, locked for as long as it serves.

The lock is what counts, since a process id outlives its process and is given to another.
"""

import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
def own_place(folder: Path) -> Iterator[Path]:
    """A path below ``folder`` for what this process serves; what lies there is gone after the block."""
    path = folder / str(os.getpid())
    shutil.rmtree(path, ignore_errors=True)  # of a killed process that had the same number
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def announced(server: Server, folder: Path) -> Iterator[None]:
    """Let others find a server of this process for as long as the block lasts.

    Args:
        server: that serves.
        folder: of these files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{server.pid}.json"
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
    """The servers of this machine that serve, by port; what killed ones left is cleared away."""
    found = []
    for path in folder.glob("*.json"):
        with suppress(FileNotFoundError), path.open(encoding="utf-8") as file:  # one may end meanwhile
            if _unlocked(file.fileno()):
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)
                path.unlink()
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


def _unlocked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two may look at once
    except OSError:
        return False
    return True
