"""List of the servers that run on this machine: one JSON file per name, and one that is locked while its process lives.

The lock decides, since process ids are reused. It is not that of the JSON file: on Windows nobody else could read that.
"""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bincounter.errors import BinCounterError, UserError
from bincounter.files import lock, lock_folder, write_json
from bincounter.serving.local.access import reached_at

DEFAULT_PORT = 8080
_IDENTITY_TIMEOUT = 5.0  # seconds
_LONGEST_IDENTITY = 10_000  # bytes
_LONGEST_END = 90.0  # seconds; a server that is stopped still answers the requests it has accepted


@dataclass(frozen=True)
class Server:
    """A server of an archive on this machine.

    Attributes:
        name: of the endpoint.
        port: it listens on; 0 until it answers.
        pid: of its process.
        model: id of the model it serves.
        archive: the file it serves; empty if it is not in the list.
        host: address it listens on.
    """

    name: str
    port: int
    pid: int
    model: str = ""
    archive: str = ""
    host: str = "127.0.0.1"

    @property
    def url(self) -> str:
        """Address of its page."""
        return f"http://{reached_at(self.host)}:{self.port}/"


@contextmanager
def claimed(name: str, folder: Path) -> Iterator[tuple[Path, Callable[[Server], None]]]:
    """Reserve a name for a server of this process while the block runs.

    Args:
        name: of the server.
        folder: of the list.

    Yields:
        A path for the unpacked archive, deleted after the block; and the function that enters the server in the list.

    Raises:
        UserError: a server of that name runs.
    """
    path = folder / f"{name}.json"
    with lock_folder(folder):
        file = path.with_suffix(".lock").open("a")
        if not lock(file, wait=0):
            other = _read(path)
            file.close()
            where = f"runs at {other.url}" if other.port else "is being started"
            raise UserError(
                f"A server named {name} {where} (process {other.pid}): stop it with bincounter deploy action=delete "
                f"name={name}, or add name= with another name"
            )
        write_json(path, asdict(Server(name, 0, os.getpid())))
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)  # of a killed process

    def enter(server: Server) -> None:
        with lock_folder(folder):
            write_json(path, asdict(server))

    try:
        yield path.with_suffix(""), enter
    finally:
        with lock_folder(folder):
            file.close()  # Windows deletes no open file
            _delete(path)


def running_servers(folder: Path) -> list[Server]:
    """Return the running servers, by port; deletes files of killed ones.

    Args:
        folder: of the list.
    """
    found = []
    if folder.is_dir():
        with lock_folder(folder):
            for locked in folder.glob("?*.lock"):  # the folder's own is .lock
                with locked.open() as file:
                    dead = lock(file, wait=0, shared=True)  # a shared lock needs read access only
                path = locked.with_suffix(".json")
                if dead:
                    _delete(path)
                else:
                    found.append(_read(path))
    return sorted((server for server in found if server.port), key=lambda server: server.port)


def find_server(name: str, folder: Path, port: int | None = None, host: str = "127.0.0.1") -> Server:
    """Find a running server by its name, and check that it responds at its port.

    Args:
        name: of the server.
        folder: of the list. A server of another list is found at ``port``, by the name it reports.
        port: it must listen on; ``None`` or 0 if any.
        host: address that a server of another list listens on.

    Raises:
        BinCounterError: there is none, with the names of those that run; or it listens on another port, or another
            program does on its.
    """
    listed = running_servers(folder)
    server = next((server for server in listed if server.name == name), None)
    if server and port and server.port != port:
        raise UserError(f"The server named {name} listens on port {server.port}, not {port}: remove target.port")
    asked = server.port if server else port or DEFAULT_PORT
    answering = identify(asked, server.host if server else host)
    if server is None and answering and answering["name"] == name:
        return Server(name, asked, answering["process"], answering["model"], host=host)
    if server is None:
        others = ", ".join(f"{each.name} at {each.url}" for each in listed)
        runs = f"what runs is {others}" if others else "none runs"
        raise BinCounterError(
            f"No server named {name} runs on this machine; {runs}: start it with bincounter deploy "
            f"ckpt_path=... name={name}" + (", or add name= with one of these" if others else "")
        )
    if answering and (answering["name"], answering["process"]) != (name, server.pid):
        raise BinCounterError(
            f"{server.url} is answered by the server named {answering['name']} of process {answering['process']}, not "
            f"by {name} of process {server.pid}: look at both processes, and end one"
        )
    return server


def identify(port: int, host: str = "127.0.0.1") -> dict[str, Any] | None:
    """Identify the server of bincounter that listens on a port.

    Args:
        port: that it listens on.
        host: address that it listens on.

    Returns:
        ``name``, ``process`` and ``model`` of the server; ``None`` if nothing answers within 5 s, or another program.
    """
    from http.client import HTTPConnection, HTTPException  # imports ssl and email

    connection = HTTPConnection(reached_at(host), port, timeout=_IDENTITY_TIMEOUT)
    try:
        connection.request("GET", "/ping")
        answer = json.loads(connection.getresponse().read(_LONGEST_IDENTITY))
        name, process, model = answer["name"], int(answer["process"]), answer["model"]
        known = all(re.fullmatch(r"[\w.-]{1,100}", text) for text in (name, model))
        return {"name": name, "process": process, "model": model} if known else None
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return None
    finally:
        connection.close()


def stop_server(server: Server, folder: Path) -> None:
    """Send SIGTERM to a running server and wait until it has ended.

    Args:
        server: of the list.
        folder: of the list.

    Raises:
        UserError: it is in another list, belongs to another user, or is still running after 90 s.
    """
    if not server.archive:
        raise UserError(
            f"{server.url} was started with another paths.cache_dir: add that to action=delete, or end process "
            f"{server.pid}"
        )
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


def _read(path: Path) -> Server:
    return Server(**json.loads(path.read_text(encoding="utf-8")))


def _delete(path: Path) -> None:
    """Delete an entry of the list; the lock comes last, by which what is left of the others is found."""
    shutil.rmtree(path.with_suffix(""), ignore_errors=True)
    path.unlink(missing_ok=True)
    path.with_suffix(".lock").unlink(missing_ok=True)
