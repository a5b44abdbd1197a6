"""Server of the review page on 127.0.0.1: bins, their photos, and answers.

Photos are those of the table's rows, named below the folder of photos. Links in it are followed, as the audit did.
"""

import asyncio
import errno
import json
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from bincounter.data.corrections import CorrectionsLog
from bincounter.data.layouts.base import LARGEST_COUNT
from bincounter.errors import ConfigError, DataError, UserError
from bincounter.files import checkpoint_file
from bincounter.names import escape_name, one_line
from bincounter.review.audit_table import AuditRow, AuditTable
from bincounter.review.review_queue import Reviewer, ReviewQueue
from bincounter.serving.application.answers import Limits, Problem
from bincounter.serving.local.access import Access
from bincounter.serving.local.connections import UVICORN, raise_file_limit
from bincounter.serving.local.guards import PageFiles, ProblemResponse, RequestLimiter, SameOrigin, unforeseen

_PAGE = Path(__file__).with_name("page")
_LIMITS = Limits(max_body_bytes=10_000)
_REQUESTS = 64  # answered at a time
_LONGEST_NAME = 100  # characters of a reviewer's name
_LARGEST_PHOTO = 100_000_000  # bytes


def serve_review(table: AuditTable, photos: Path, log: CorrectionsLog, port: int, attention: "Attention | None") -> int:
    """Serve the page until Ctrl-C or SIGTERM; its address is printed on stdout.

    Args:
        table: the bins to review.
        photos: folder that the table's photos are relative to.
        log: of the answers.
        port: to listen on; 0 takes a free one.
        attention: of the model that is shown; ``None`` for none.

    Returns:
        The exit code 0, after Ctrl-C.

    Raises:
        DataError: none of the photos is in the folder.
        UserError: the port is taken.
    """
    rows = table.reviewable.values()
    if not any(_is_photo(photos, row) for row in rows):
        raise DataError(f"{photos} has no photo that {table.path} names: name their folder by --photos")
    with _listening(port) as listener:
        queue = ReviewQueue(table, log)
        config = uvicorn.Config(
            create_app(table, queue, photos, attention),
            **UVICORN,
            lifespan="off",
            timeout_graceful_shutdown=5,
        )
        raise_file_limit()
        progress = queue.progress()
        print(f"{progress['done']:,} of {progress['bins']:,} bins are answered; they are reviewed until Ctrl-C")
        pictured = sum(bool(row.photo) for row in table.lines)
        left_out = {
            "without a photo": len(table.lines) - pictured,
            "with the bin and photo of another line": pictured - len(rows),
        }
        if named := " and ".join(f"{number:,} {which}" for which, number in left_out.items() if number):
            print(f"  left out {named}: see the column reason in {escape_name(table.path)}")
        if queue.outdated:
            bins = "1 bin whose answer is" if queue.outdated == 1 else f"{queue.outdated:,} bins whose answers are"
            print(f"  asks again for {bins} of other records than this table's")
        print(f"  page     http://{Access().host}:{listener.getsockname()[1]}/")
        print(f"  answers  {escape_name(log.path)}", flush=True)
        with suppress(KeyboardInterrupt):  # raised again by uvicorn, after it has answered what it had accepted
            uvicorn.Server(config).run([listener])
    return 0


def _listening(port: int) -> socket.socket:
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((Access().host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        taken = getattr(error, "errno", None) == errno.EADDRINUSE
        reason = "is taken by another program" if taken else f"cannot be used ({_reason(error)})"
        raise UserError(f"Port {port} {reason}: name another by --port, or 0 for a free one.") from error
    listener.listen(128)
    return listener


class Attention:
    """Grad-CAM of photos by the model of a checkpoint, on the CPU; one thread at a time may use it.

    Args:
        checkpoint: its file, a run's folder, or ``hf://owner/name``.
        trust: modules or packages of your own that may define its model.

    Raises:
        UserError: the checkpoint cannot be used.
    """

    def __init__(self, checkpoint: Path, trust: Sequence[str]) -> None:
        from bincounter.data.preprocessing import Normalize
        from bincounter.model.build import load_counter

        self._model, description = load_counter(checkpoint_file(checkpoint), trust)
        self._size: int = description["image_size"]
        self._normalize = Normalize()

    def explain(self, data: bytes) -> dict[str, object]:
        """Explain the photo of a file's bytes, see :mod:`bincounter.serving.local.explain`.

        Raises:
            Problem: 422 it cannot be decoded; 501 the model cannot be explained.
        """
        from bincounter.data.photo_bounds import PhotoError
        from bincounter.data.preprocessing import decode
        from bincounter.serving.local.explain import explanation

        try:
            return explanation(self._model, self._normalize(decode(data, self._size)[None]), self._model.counts)
        except PhotoError as error:
            raise Problem(422, f"The photo cannot be read ({error}); it is not explained.") from error
        except ConfigError as error:
            raise Problem(501, str(error)) from error


def create_app(table: AuditTable, queue: ReviewQueue, photos: Path, attention: Attention | None = None) -> ASGIApp:
    """Build the ASGI application of a review.

    Args:
        table: the bins.
        queue: of them.
        photos: folder of their photos.
        attention: of the model that is shown; ``None`` for none.
    """
    endpoints = _Endpoints(table, queue, photos, attention)
    routes = [
        Route("/", endpoints.files.page),
        Route("/page/{name}", endpoints.files.page),
        Route("/photo/{id}", endpoints.photo),
        Route("/attention/{id}", endpoints.look),
        *(Route(f"/{name}", endpoints.act, methods=["POST"]) for name in ("next", "answer", "renew", "skip", "undo")),
    ]
    handlers: dict[Any, Any] = {HTTPException: _no_such_path, Problem: _problem, Exception: unforeseen}
    return SameOrigin(Starlette(routes=routes, exception_handlers=handlers), Access())


class _Endpoints:
    """Handlers of the paths."""

    def __init__(self, table: AuditTable, queue: ReviewQueue, photos: Path, attention: Attention | None) -> None:
        self._table, self._queue, self._photos, self._attention = table, queue, photos, attention
        self._limiter = RequestLimiter(_LIMITS, _REQUESTS)
        self._looking = asyncio.Lock()  # waited for on the event loop: threads that wait would be missing for photos
        self.files = PageFiles(_PAGE)

    async def photo(self, request: Request) -> Response:
        """Return the photo of a row."""
        row, data = await self._read(request)
        return Response(data, media_type=_photo_type(data, row))

    async def look(self, request: Request) -> Response:
        """Return where the model looked in the photo of a row."""
        if self._attention is None:
            raise Problem(404, "No model was given; start the review with --ckpt-path.")
        async with self._looking:
            if await request.is_disconnected():  # the page shows another bin by now
                return Response(status_code=499)
            _, data = await self._read(request)
            return JSONResponse(await asyncio.to_thread(self._attention.explain, data))

    async def _read(self, request: Request) -> tuple[AuditRow, bytes]:
        row = self._queue.row(request.path_params["id"])
        if row is None:
            raise HTTPException(404)
        return row, await asyncio.to_thread(read_photo, self._photos, row)

    async def act(self, request: Request) -> Response:
        """Give, skip or take back an answer, and return the bin to show; or keep the bin on screen."""
        try:
            async with self._limiter.body(request) as body:
                given = _parsed(body)
                reviewer = Reviewer(_text(given, "session"), _text(given, "reviewer"))
                action = request.url.path
                # On the event loop: one answer at a time is on its way to the disk.
                if action == "/answer":
                    self._queue.answer(reviewer, _text(given, "id"), _count(given))
                elif action == "/renew":  # nothing that it leased would be on a screen
                    return JSONResponse({"held": self._queue.renew(reviewer, _text(given, "id"))})
                elif action == "/skip":
                    self._queue.skip(reviewer, _text(given, "id"))
                elif action == "/undo":
                    self._queue.undo(reviewer)
                id_ = self._queue.next(reviewer)
        except ClientDisconnect:
            return Response(status_code=499)
        row = None if id_ is None else self._queue.row(id_)
        shown = None if row is None else _described(row, self._table.counts)
        names = {"table": escape_name(self._table.path.name), "answers": escape_name(self._queue.path.name)}
        progress = {**self._queue.progress(), **names, "explained": self._attention is not None}
        return JSONResponse({"bin": shown, "progress": progress})


def _described(row: AuditRow, counts: tuple[int, ...]) -> dict[str, Any]:
    return {
        "id": row.id,
        "bin": escape_name(row.bin),
        "photo": escape_name(row.photo),
        "record": one_line(row.record),
        "expected": row.expected,
        "predicted": row.predicted,
        "expected_count": row.expected_count,
        "probabilities": dict(zip(counts, row.probabilities, strict=bool(row.probabilities))),
        "record_wrong": row.record_wrong,
        "direction": one_line(row.direction),
        "units_off": row.units_off,
        "reason": one_line(row.reason),
        "notes": {one_line(name): one_line(text) for name, text in row.notes.items()},
    }


def read_photo(folder: Path, row: AuditRow) -> bytes:
    """Read the photo of a row.

    Raises:
        Problem: 403 it is outside of the folder; 404 it is missing; 422 it cannot be read.
    """
    name = escape_name(row.photo)
    if not _is_below(row.photo):
        raise Problem(403, f"{name} leads out of the folder of photos; it is not shown.")
    path = folder / row.photo
    try:
        if not path.is_file():
            raise Problem(404, f"{name} is not in the folder of photos; name that folder by --photos.")
        if path.stat().st_size > _LARGEST_PHOTO:
            raise Problem(422, f"{name} is larger than {_LARGEST_PHOTO // 1_000_000} MB; it is not shown.")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise Problem(422, f"{name} cannot be read ({_reason(error)}); check the file.") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _is_below(name: str) -> bool:
    path = Path(name)
    return not path.anchor and ".." not in path.parts


def _is_photo(folder: Path, row: AuditRow) -> bool:
    try:
        return _is_below(row.photo) and (folder / row.photo).is_file()
    except (OSError, ValueError):
        return False


def _photo_type(data: bytes, row: AuditRow) -> str:
    """Media type by the first bytes; nothing else is served, since a browser runs scripts of other files."""
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    raise Problem(422, f"{escape_name(row.photo)} is not a JPEG, PNG or WebP image; it is not shown.")


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Problem(400, "The body is not JSON; send what the page sends.") from error
    if not isinstance(given, dict):
        raise Problem(400, "The body is not a JSON object; send what the page sends.")
    return given


def _text(given: dict[str, Any], name: str) -> str:
    text = given.get(name)
    if not isinstance(text, str) or not text.strip() or len(text) > _LONGEST_NAME:
        raise Problem(400, f"{name} is not a text of 1 to {_LONGEST_NAME} characters; send one.")
    return text.strip()


def _count(given: dict[str, Any]) -> int:
    count = given.get("counted")
    if type(count) is not int or not 0 <= count <= LARGEST_COUNT:
        raise Problem(400, f"counted is not a whole number from 0 to {LARGEST_COUNT}; send one.")
    return count


async def _problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return ProblemResponse(error)


async def _no_such_path(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = "This path takes POST; open / in a browser." if error.status_code == 405 else "Unknown path; open /."
    return ProblemResponse(Problem(error.status_code, sentence), dict(error.headers or {}))
