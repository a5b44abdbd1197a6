"""Stand-alone script: loads an archive with nothing else of bincounter importable, answers photos, exits.

A script that stands alone, ``python -P archive_probe.py FOLDER [REFUSED,...]``, so that nothing of an installed
bincounter is seen: the standard library, what the serving images have, and the archive unpacked to ``FOLDER``.
Its stdin is a socket,
on which both sides send frames: two lengths, a head in JSON, a body::

    server -> process   {"do": "handle", "id": 7, "content_type": "image/jpeg", "accept": null}  the request's body
                        {"do": "tell", "id": 8}
                        {"do": "cancel", "id": 7}
    process -> server   {"ready": {"name": ..., "counts": ..., ...}}                             once, first
                        {"id": 7, "status": 200, "content_type": ..., "headers": {}}             the answer's body
                        {"id": 8, "ready": true, "statistics": {...}}
"""

import asyncio
import json
import os
import re
import socket
import struct
import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Protocol

MAX_HEAD, MAX_BODY = 1 << 16, 1 << 30  # bytes; more is no frame of ours
_LENGTHS = struct.Struct("!IQ")


class FrameError(ValueError):
    """Bytes that are no frame."""


class Reply(Protocol):
    """An answer, as the application gives it."""

    @property
    def status(self) -> int:
        """Of HTTP."""

    @property
    def content_type(self) -> str:
        """Of the body."""

    @property
    def body(self) -> bytes:
        """What is answered."""

    @property
    def headers(self) -> dict[str, str]:
        """Beside the content type."""


class Handler(Protocol):
    """What answers: the archive's service, or another with its methods."""

    async def start(self) -> None:
        """Begin."""

    async def handle(self, body: bytes, content_type: str | None, accept: str | None) -> Reply:
        """Answer a request; never raises."""

    @property
    def ready(self) -> bool:
        """Whether it can answer."""

    def statistics(self) -> dict[str, float]:
        """What was done so far."""


def frame(head: dict[str, Any], body: bytes = b"") -> bytes:
    """Write a frame."""
    text = json.dumps(head, separators=(",", ":")).encode()
    return b"".join((_LENGTHS.pack(len(text), len(body)), text, body))


async def read_frame(reader: asyncio.StreamReader) -> tuple[dict[str, Any], bytes] | None:
    """Read a frame; ``None`` once the other side is gone.

    Raises:
        FrameError: what came is none.
    """
    try:
        head_length, body_length = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
        if head_length > MAX_HEAD or body_length > MAX_BODY:
            raise FrameError(f"a frame of {head_length} and {body_length} bytes")
        text, body = await reader.readexactly(head_length), await reader.readexactly(body_length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    try:
        head = json.loads(text)
    except ValueError as error:
        raise FrameError("a frame whose head is no JSON") from error
    if not isinstance(head, dict):
        raise FrameError("a frame whose head is no object")
    return head, body


async def answer_frames(connection: socket.socket, handler: Handler, ready: dict[str, Any]) -> None:
    """Answer until the other side is gone; several requests are in hand at a time.

    Args:
        connection: to the server.
        handler: what answers.
        ready: what the server is told about the model.

    Raises:
        FrameError: what came is no frame.
    """
    reader, writer = await asyncio.open_connection(sock=connection)
    running: dict[int, asyncio.Task[None]] = {}
    await handler.start()
    writer.write(frame({"ready": ready}))

    async def handle(number: int, head: dict[str, Any], body: bytes) -> None:
        try:
            reply = await handler.handle(body, head["content_type"], head["accept"])
            answer = {"status": reply.status, "content_type": reply.content_type, "headers": reply.headers}
            writer.write(frame({"id": number, **answer}, reply.body))
        finally:
            del running[number]

    while (received := await read_frame(reader)) is not None:
        head, body = received
        match head:
            case {"do": "handle", "id": int(number), "content_type": _, "accept": _} if number not in running:
                running[number] = asyncio.create_task(handle(number, head, body))
            case {"do": "cancel", "id": int(number)}:
                if number in running:
                    running[number].cancel()
            case {"do": "tell", "id": int(number)}:
                writer.write(frame({"id": number, "ready": handler.ready, "statistics": handler.statistics()}))
            case _:
                raise FrameError(f"a frame that asks for nothing known: {head}")


def take_stdin() -> socket.socket:
    """The socket that the server passed on as stdin; what is printed goes to stderr from here on."""
    connection = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return connection


def answer(connection: socket.socket, handler: Handler, ready: dict[str, Any]) -> None:
    """:func:`answer_frames`, and the end of this process with it: whatever its threads still do, nobody waits for."""

    async def to_the_end() -> None:
        code = 0
        try:
            await answer_frames(connection, handler, ready)
        except FrameError as error:
            print(f"The server sent {error}.", file=sys.stderr)
            code = 1
        finally:
            sys.stderr.flush()
        os._exit(code)

    asyncio.run(to_the_end())


class _Refusal(MetaPathFinder):
    """Takes the place of the finder of what is installed, and finds all but some packages.

    Raising from a finder of its own would not do: torch looks for packages that it can do without.
    """

    def __init__(self, names: list[str]) -> None:
        self._names = set(names)

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """What is installed, ``None`` where the package is one of those."""
        return None if fullname.partition(".")[0] in self._names else PathFinder.find_spec(fullname, path, target)


def main() -> None:
    """Load the archive and answer."""
    folder, refused = Path(sys.argv[1]).resolve(), sys.argv[2:]
    connection = take_stdin()
    sys.path[:0] = [str(folder), str(folder / "code")]  # as PYTHONPATH of the serving images
    if refused:
        refusal = _Refusal(refused[0].split(","))
        sys.meta_path[:] = [refusal if finder is PathFinder else finder for finder in sys.meta_path]
    try:
        service, ready = _load(folder)
    except Exception as error:
        traceback.print_exc()
        known = type(error).__name__ == "ArchiveError"  # a sentence with its next step
        sys.exit(str(error) if known else f"{type(error).__name__}: {error}; package the checkpoint again.")
    answer(connection, service, ready)


def _load(folder: Path) -> tuple[Handler, dict[str, Any]]:
    import bincounter

    if not Path(bincounter.__file__).resolve().is_relative_to(folder):
        raise ImportError("the archive lacks code/bincounter")
    from bincounter.serving.application.batcher import before_loading
    from bincounter.serving.application.served_model import ServedModel
    from bincounter.serving.application.service import Service

    before_loading()
    model = ServedModel.load(folder)
    ready = {name: getattr(model, name) for name in ("name", "counts", "image_size", "precision")}
    return Service(model), {**ready, "limits": asdict(model.limits)}


if __name__ == "__main__":
    main()


_IN_SERVING_IMAGES = ("torch", "torchvision", "pillow", "numpy")
_NAME = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


def refused_packages(folder: Path) -> list[str]:
    """Import names of what bincounter requires and neither the serving images nor the archive's requirements bring.

    Args:
        folder: an unpacked archive.
    """
    requirements = folder / "code" / "requirements.txt"
    own = requirements.read_text(encoding="utf-8").splitlines() if requirements.is_file() else []
    found = set(_with_requirements([*_IN_SERVING_IMAGES, *_names(own)]))
    ours = _names(distribution("bincounter").requires or [])
    return sorted({name for needed in ours if needed not in found for name in _import_names(needed)})


def _with_requirements(names: Iterable[str]) -> set[str]:
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found and (installed := _installed(name)):
            found.add(name)
            waiting += _names(line for line in installed.requires or [] if "extra ==" not in line)
    return found


def _names(lines: Iterable[str]) -> Iterator[str]:
    """Normalised names (PEP 503) of the distributions that requirement lines name."""
    for line in lines:
        if found := _NAME.match(line):
            yield re.sub(r"[-_.]+", "-", found[1]).lower()


def _installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def _import_names(name: str) -> set[str]:
    """The packages and modules a distribution puts beside others, none where it is not installed."""
    installed = _installed(name)
    files = installed.files or [] if installed else []
    tops = {file.parts[0].removesuffix(".py") for file in files if file.suffix == ".py"}
    return {top for top in tops if top.isidentifier() and top != "bincounter"}
