"""Audited tables made on the fly, and ``bincounter review`` as a process of its own."""

import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from commands import REPOSITORY, environment, warm
from local_server import Answer, send
from made_photos import photo_bytes
from warm_python import Started

from bincounter.names import TableWriter

COUNTS = [0, 1, 2, 3]
HEADER = [
    *("bin", "photo", "expected", "predicted", "expected_count", *(f"p_{count}" for count in COUNTS)),
    *("record_wrong", "direction", "units_off", "reason", "note"),
]


class Audited(NamedTuple):
    """One row of an audited table; the record is ``expected``, the model likes ``predicted``."""

    bin: str
    photo: str
    expected: int | str = 2
    predicted: int = 1
    wrong: float | str = 0.5
    reason: str = ""
    note: str = ""

    def cells(self) -> list[Any]:
        """Cells of the table."""
        if self.reason:
            return [
                self.bin,
                self.photo,
                self.expected,
                "",
                "",
                *[""] * len(COUNTS),
                "",
                "",
                "",
                self.reason,
                self.note,
            ]
        shares = [0.7 if count == self.predicted else 0.1 for count in COUNTS]
        mean = sum(count * share for count, share in zip(COUNTS, shares, strict=True))
        direction = "missing" if self.predicted < int(self.expected) else "extra"
        return [*self[:4], f"{mean:.4f}", *shares, self.wrong, direction, -0.4, "", self.note]


def write_audit(path: Path, rows: Sequence[Audited]) -> Path:
    """Write a table as an audit does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = TableWriter(file)
        writer.writerow(HEADER)
        writer.writerows(row.cells() for row in rows)
    return path


def made_audit(folder: Path, bins: int = 4) -> Path:
    """``folder/audit.csv`` of bins ``B-0``, ``B-1``, ..., and their photos ``photos/<n>.jpg`` beside it."""
    rows = [Audited(f"B-{n}", f"photos/{n}.jpg", wrong=round(0.9 - n / 10, 1)) for n in range(bins)]
    for n, row in enumerate(rows):
        photo = folder / row.photo
        photo.parent.mkdir(parents=True, exist_ok=True)
        photo.write_bytes(photo_bytes(n))
    return write_audit(folder / "audit.csv", rows)


@dataclass
class ReviewServer:
    """A server that was started.

    Attributes:
        process: the server's.
        url: ``http://127.0.0.1:PORT``.
    """

    process: Started
    url: str

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """Send one request."""
        return send(self.url, method, path, body, headers)

    def post(self, action: str, session: str, **more: Any) -> Answer:
        """Send what the page sends; the reviewer is named as the session unless given."""
        body = json.dumps({"session": session, "reviewer": session, **more}).encode()
        return self.ask("POST", f"/{action}", body)

    def next(self, session: str) -> Any:
        """The bin that is shown to a session, or ``None``."""
        reply = self.post("next", session)
        assert reply.status == 200, reply.body
        return reply.json()["bin"]


@contextmanager
def reviewed(audit: Path, *options: str) -> Iterator[ReviewServer]:
    """Run ``bincounter review`` until the block ends."""
    process = warm().start(
        ["-m", "bincounter", "review", str(audit), "--port", "0", *options], REPOSITORY, environment()
    )
    try:
        yield ReviewServer(process, process.told(r"page +(http:\S+)/\n.*\n")[1])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
