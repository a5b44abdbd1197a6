"""List of the servers that run on this machine: one JSON file per server, locked while its process lives.

The lock is what counts, since a process id outlives its process and is given to another.
"""

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
from bincounter.files import lock

_LONGEST_END = 90.0  # seconds; a server that is stopped still answers the requests it has accepted


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
        """Address of its page."""
        return f"http://127.0.0.1:{self.port}/"


@contextmanager
def unpack_place(folder: Path) -> Iterator[Path]:
    """Path below ``folder`` for the unpacked archive of this process; deleted after the block."""
    path = folder / str(os.getpid())
    shutil.rmtree(path, ignore_errors=True)  # of a killed process that had the same number
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def listed(server: Server, folder: Path) -> Iterator[None]:
    """Keep a server of this process in the list while the block runs.

    Args:
        server: the running server.
        folder: of the list.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{server.pid}.json"
    aside = path.with_suffix(".part")
    with aside.open("w", encoding="utf-8") as file:
        lock(file)
        json.dump(asdict(server), file)
        file.flush()
        aside.replace(path)  # locked before anyone sees it
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def running_servers(folder: Path) -> list[Server]:
    """Return the running servers, by port; deletes what killed ones left behind."""
    found = []
    for path in folder.glob("*.json"):
        with suppress(FileNotFoundError), path.open(encoding="utf-8") as file:  # one may end meanwhile
            if lock(file, wait=0, shared=True):  # shared: two may look at once
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)
                path.unlink()
            else:
                found.append(Server(**json.load(file)))
    return sorted(found, key=lambda server: server.port)


def stop_server(server: Server, folder: Path) -> None:
    """Send SIGTERM to a running server and wait until it has ended.

    Raises:
        UserError: it belongs to another user, or is still running after 90 s.
    """
    try:
        os.kill(server.pid, signal.SIGTERM)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise UserError(f"{server.url} is served by another user's process {server.pid}: ask them to end it") from error
    until = time.monotonic() + _LONGEST_END
    while server in running_servers(folder):
        if time.monotonic() > until:
            raise UserError(f"{server.url} still runs {_LONGEST_END:.0f} s after SIGTERM: look at process {server.pid}")
        time.sleep(0.05)
