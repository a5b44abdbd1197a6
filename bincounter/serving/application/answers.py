"""Limits of requests, problems (HTTP status and message), and answers as JSON or CSV."""

import errno
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from bincounter.model.answer import position

if TYPE_CHECKING:  # it imports numpy, and limits are needed without
    from bincounter.audit.posterior import RecordJudge

JSON, CSV = "application/json", "text/csv"
_ECHO = 60  # characters of a request that a message repeats
_KINDS = {JSON: JSON, "application/*": JSON, "*/*": JSON, "*": JSON, CSV: CSV, "text/*": CSV}


@dataclass(frozen=True)
class AnswerFormat:
    """Format of an answer.

    Attributes:
        kind: :data:`JSON` or :data:`CSV`.
        header: a CSV begins with the names of its columns.
    """

    kind: str = JSON
    header: bool = False

    @property
    def content_type(self) -> str:
        """Value of the Content-Type header."""
        return f"{CSV}; charset=utf-8" if self.kind == CSV else JSON


def parse_accept(accept: str | None) -> AnswerFormat:
    """Parse an Accept header.

    Args:
        accept: such as ``text/csv; header=present``; of several types the one with the largest ``q`` is taken, the
            first of equals. ``None`` or an empty string means JSON.

    Raises:
        Problem: 415, none of its types is supported.
    """
    best, form = 0.0, None
    for choice in (accept or "*/*").lower().split(","):
        name, *parameters = (part.strip() for part in choice.split(";"))
        given = dict(part.replace(" ", "").partition("=")[::2] for part in parameters)
        quality = _quality(given.get("q", "1"))
        if name in _KINDS and quality > best:
            best, form = quality, AnswerFormat(_KINDS[name], header=given.get("header") == "present")
    if form is None:
        raise Problem(415, f"Accept {shorten(accept or '')!r} is not supported; ask for {JSON} or {CSV}.")
    return form


def _quality(text: str) -> float:
    try:
        quality = float(text)
    except ValueError:
        return 0.0
    return quality if 0 <= quality <= 1 else 0.0


class AnswerFormatter:
    """Formats the answers of one model.

    Args:
        model: the model's id.
        counts: the support of the model, ascending.
        least: confidence below which an answer needs a person; ``None`` if answers do not say so.
        judge: of recorded counts; ``None`` in archives of earlier versions.
        answer: which count is answered, see :mod:`bincounter.model.answer`.
    """

    def __init__(
        self,
        model: str,
        counts: Sequence[int],
        least: float | None = None,
        judge: "RecordJudge | None" = None,
        answer: str = "mode",
    ) -> None:
        self._model, self._counts, self._least, self._judge = model, tuple(counts), least, judge
        self._position = partial(position, answer=answer)

    def check_expected(self, expected: int | None) -> None:
        """Check that a recorded count can be judged.

        Raises:
            Problem: 400, it cannot.
        """
        if expected is None:
            return
        if self._judge is None:
            raise Problem(400, "This archive judges no recorded counts; package the checkpoint again, or send none.")
        if expected not in self._counts:
            known = ", ".join(map(str, self._counts))
            raise Problem(
                400, f"The model does not know the recorded count {expected}, only {known}; send one of them."
            )

    def format(
        self,
        rows: Sequence[Sequence[float]],
        form: AnswerFormat,
        *,
        several: bool,
        expected: Sequence[int | None] = (),
    ) -> bytes:
        """Format the answers of a request.

        Args:
            rows: a distribution for each photo, ``float32[K]``.
            form: JSON or CSV.
            several: JSON is ``{"predictions": [...]}``.
            expected: checked recorded count of each photo, ``None`` without one. Answers to them have
                ``record_wrong`` and ``direction``; a CSV with one of them has these columns last.

        Raises:
            Problem: 500, a probability is not a number.
        """
        answers = [self._answer(row) for row in rows]
        for answer, row, count in zip(answers, rows, expected, strict=bool(expected)):
            if count is not None and self._judge:
                verdict = self._judge.judge([row], [count])
                answer["record_wrong"] = _short(verdict.record_wrong[0])
                answer["direction"] = str(verdict.direction[0])
        if form.kind == CSV:
            return self._table(answers, form)
        return json.dumps({"predictions": answers} if several else answers[0]).encode("ascii")

    def _answer(self, row: Sequence[float]) -> dict[str, Any]:
        if not all(map(math.isfinite, row)):
            raise Problem(500, "The model returned NaN for this photo; deploy another checkpoint, or this one in fp32.")
        at = self._position(row)
        expected = sum(count * share for count, share in zip(self._counts, row, strict=True))
        unsure = {} if self._least is None else {"needs_person": row[at] < self._least}
        return {
            "count": self._counts[at],
            "probabilities": {str(count): _short(share) for count, share in zip(self._counts, row, strict=True)},
            "expected_count": _short(expected),
            "model": self._model,
            **unsure,
        }

    def _table(self, answers: Sequence[dict[str, Any]], form: AnswerFormat) -> bytes:
        judged = [name for name in ("record_wrong", "direction") if any(name in answer for answer in answers)]
        lines = [
            [
                *(answer["count"], answer["expected_count"], *answer["probabilities"].values(), answer["model"]),
                *(("no", "yes")[answer[name]] for name in ("needs_person",) if name in answer),
                *(answer.get(name, "") for name in judged),
            ]
            for answer in answers
        ]
        if form.header:
            last = [] if self._least is None else ["needs_person"]
            names = ["count", "expected_count", *(f"p_{count}" for count in self._counts), "model", *last, *judged]
            lines.insert(0, names)
        return "".join(",".join(map(str, cells)) + "\n" for cells in lines).encode("ascii")


def _short(number: float) -> float:
    """Round to nine digits, which keep any two float32 values distinct."""
    return float(f"{number:.9g}")


@dataclass(frozen=True)
class Limits:
    """Bounds of requests, as ``model.json`` holds them.

    Attributes:
        max_body_bytes: of one request.
        max_instances: photos of one JSON request.
        max_batch: photos the model sees at once; more of them outgrow a CPU's caches.
        max_queue: photos that wait for the model; further ones are refused at once.
        timeout_s: seconds until a request is abandoned.
        url_hosts: hosts that photos may be fetched from, as patterns of
            :class:`bincounter.serving.application.url_fetcher.Fetcher`; empty refuses URLs.
    """

    max_body_bytes: int = 25_000_000
    max_instances: int = 32
    max_batch: int = 8
    max_queue: int = 128
    timeout_s: float = 30.0
    url_hosts: Sequence[str] = ()


def shorten(text: str) -> str:
    """Shorten text of a request that a message repeats."""
    return text if len(text) <= _ECHO else f"{text[:_ECHO]}..."


_SHORTAGES = {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOBUFS, errno.ENOSPC}
_LACKS = ("allocate memory", "start new thread", os.strerror(errno.EMFILE))


def is_shortage(error: BaseException) -> bool:
    """Return True if an error is a transient lack of memory, files or threads, not a fault of the request."""
    words = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # of torch, which not all that import this file have loaded
        or (isinstance(error, OSError) and error.errno in _SHORTAGES)
        or (isinstance(error, (RuntimeError, ImportError)) and any(lack in words for lack in _LACKS))
    )


class Problem(Exception):
    """A request that is refused or failed.

    Args:
        status: 400 malformed, 413 too large, 415 of an unknown type, 422 the photo is unreadable; 503 overload,
            504 timeout, 500 any other failure of the server.
        sentence: message that ends with the next step.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence

    @property
    def headers(self) -> dict[str, str]:
        """Headers beside the content type: Retry-After on overload."""
        return {"Retry-After": "1"} if self.status == 503 else {}

    def at(self, where: str) -> "Problem":
        """Copy the problem with a prefix that names the photo, such as ``instances[2]: ``."""
        return Problem(self.status, f"{where}{self.sentence[:1].lower()}{self.sentence[1:]}") if where else self

    def body(self) -> bytes:
        """``{"error": sentence}`` as ASCII JSON."""
        return json.dumps({"error": self.sentence}).encode("ascii")
