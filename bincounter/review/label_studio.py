"""Label Studio's JSON: tasks from an audited table, and answers from annotated tasks.

Format: https://labelstud.io/guide/task_format and https://labelstud.io/guide/predictions; a count is the result of a
``Number`` tag (``{"type": "number", "value": {"number": 3}}``) or of a ``Choices`` tag (``{"choices": ["3"]}``).
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from bincounter.data.corrections import Correction, CorrectionsLog, parse_count
from bincounter.data.layouts.base import LARGEST_COUNT
from bincounter.errors import DataError
from bincounter.files import write_json
from bincounter.names import escape_name, one_line, unescape_name
from bincounter.review.audit_table import AuditRow, AuditTable

LABELING = '<View><Image name="image" value="$image" zoom="true"/><Number name="count" toName="image" min="0"/></View>'
"""Labeling interface of a project for these tasks."""

_COUNT, _IMAGE = "count", "image"  # names of its tags
_NEVER = -math.inf  # time of an answer without one
_UPLOADED = re.compile(r"[0-9a-f]{8}-")  # what Label Studio puts in front of the names of uploaded files


def export_tasks(path: Path, table: AuditTable, photos: Path) -> int:
    """Write a task for each bin with a photo, the model's count as its prediction; return their number.

    Photos are named as Label Studio serves local files, below the folder that holds ``photos``.
    """
    folder = photos.resolve().name
    tasks = [_task(row, table.counts, folder) for row in table.reviewable.values()]
    write_json(path, tasks)
    return len(tasks)


def _task(row: AuditRow, counts: tuple[int, ...], folder: str) -> dict[str, Any]:
    data: dict[str, Any] = {
        _IMAGE: f"/data/local-files/?d={quote(os.fsencode(f'{folder}/{row.photo}'))}",
        "bin": escape_name(row.bin),
        "photo": escape_name(row.photo),
        "expected": one_line(row.record) or None if row.expected is None else row.expected,
        "record_wrong": row.record_wrong,
        "direction": one_line(row.direction),
        "reason": one_line(row.reason),
    }
    data |= {one_line(name): one_line(note) for name, note in row.notes.items() if name not in data}
    if row.predicted is None:
        return {"data": data}
    result = {
        "id": row.id,
        "from_name": _COUNT,
        "to_name": _IMAGE,
        "type": "number",
        "value": {"number": row.predicted},
    }
    share = dict(zip(counts, row.probabilities, strict=bool(row.probabilities))).get(row.predicted)
    return {"data": data, "predictions": [{"model_version": "bincounter", "score": share, "result": [result]}]}


@dataclass
class Imported:
    """Numbers of tasks that were read.

    Attributes:
        written: answers added to the table.
        known: answers that the table has already, or a newer one in place of them.
        unanswered: tasks without a count.
        unmatched: tasks that no bin of the audited table matches.
    """

    written: int = 0
    known: int = 0
    unanswered: int = 0
    unmatched: int = 0


def import_annotations(path: Path, table: AuditTable, log: CorrectionsLog) -> Imported:
    """Append the counts of annotated tasks to a table of corrections; of several annotations of a task the newest.

    Args:
        path: Label Studio's export as JSON.
        table: the bins; tasks match by their ``bin`` and ``photo``, those without by the file name of their image.
        log: of the corrections.

    Raises:
        DataError: the file cannot be read, is not such an export, or matches no bin.
    """
    imported = Imported()
    rows = _Rows(table)
    last = {given.key: given for given in log.corrections}
    for task in _read_tasks(path):
        row = rows.find(task["data"])
        answer = None if row is None else _answer(task, row)
        if row is None:
            imported.unmatched += 1
        elif answer is None:
            imported.unanswered += 1
        elif row.key in last and _is_known(answer, last[row.key]):
            imported.known += 1
        else:
            log.append(answer)
            last[row.key] = answer
            imported.written += 1
    if not (imported.written or imported.known or imported.unanswered):
        raise DataError(f"{path} has no task of a bin in {table.path}: name the export of the tasks made from it")
    return imported


def _is_known(answer: Correction, last: Correction) -> bool:
    """Return True if a bin's last row in the table is this answer, or newer than it."""
    same = (answer.expected, answer.counted, False) == (last.expected, last.counted, last.undone)
    return same or _NEVER < _seconds(answer.time) <= _seconds(last.time)


def _seconds(time: str) -> float:
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        return _NEVER
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _read_tasks(path: Path) -> list[dict[str, Any]]:
    advice = "export the project from Label Studio as JSON (not JSON-MIN), and name that file"
    try:
        tasks = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): {advice}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {advice}") from error
    tasks = tasks if isinstance(tasks, list) else [tasks]
    for number, task in enumerate(tasks):
        made = isinstance(task, dict) and isinstance(task.get("data"), dict)
        if not made or not isinstance(task.get("annotations", []), list):
            raise DataError(f"{path} holds no task of Label Studio at place {number + 1}: {advice}")
    return tasks


class _Rows:
    """Rows of a table, found by the data of tasks."""

    def __init__(self, table: AuditTable) -> None:
        self._by_key = {row.key: row for row in table.reviewable.values()}
        self._by_name: dict[str, AuditRow | None] = {}  # None: a name of several photos
        for row in table.reviewable.values():
            name = PurePosixPath(row.photo).name
            self._by_name[name] = None if name in self._by_name else row

    def find(self, data: Mapping[str, Any]) -> AuditRow | None:
        if "bin" in data and "photo" in data:
            return self._by_key.get((unescape_name(str(data["bin"])), unescape_name(str(data["photo"]))))
        image = str(data.get(_IMAGE) or "")
        try:
            address = urlsplit(image)
            place = parse_qs(address.query, errors="surrogateescape").get("d", [address.path])[0]
        except ValueError:
            return None
        names = [PurePosixPath(place).name]
        if address.scheme not in ("http", "https"):  # the key of an object may hold ?, # and %
            names.insert(0, image.rpartition("/")[2])
        names += [unquote(name, errors="surrogateescape") for name in names]
        names += [_UPLOADED.sub("", name, count=1) for name in names]
        return next(filter(None, map(self._by_name.get, names)), None)


def _answer(task: Mapping[str, Any], row: AuditRow) -> Correction | None:
    given = [each for each in task.get("annotations", []) if isinstance(each, dict) and not each.get("was_cancelled")]
    answers = [(str(each.get("updated_at") or each.get("created_at") or ""), _count(each), each) for each in given]
    counted = [(when, count, each) for when, count, each in answers if count is not None]
    if not counted:
        return None
    when, count, annotation = max(counted, key=lambda answer: _seconds(answer[0]))
    by = annotation.get("completed_by")
    by = (by.get("email") or by.get("id")) if isinstance(by, dict) else by
    return Correction(row.bin, row.photo, row.expected, count, "" if by is None else str(by), when)


def _count(annotation: Mapping[str, Any]) -> int | None:
    """Count of an annotation: that of the tag named ``count``, else the first."""
    results = annotation.get("result")
    found = [each for each in results if isinstance(each, dict)] if isinstance(results, list) else []
    found.sort(key=lambda each: each.get("from_name") != _COUNT)
    return next(_counts(found), None)


def _counts(results: list[dict[str, Any]]) -> Iterator[int]:
    for result in results:
        value = result.get("value")
        if not isinstance(value, dict):
            continue
        number, choices = value.get("number"), value.get("choices")
        if isinstance(number, int | float) and not isinstance(number, bool) and 0 <= number <= LARGEST_COUNT:
            if number == int(number):
                yield int(number)
        elif isinstance(choices, list) and len(choices) == 1:
            count = parse_count(str(choices[0]).strip())
            if count is not None:
                yield count
