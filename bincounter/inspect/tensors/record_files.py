"""Files that a killed run goes on with: no line twice, and none lost of those that its checkpoint knows of."""

import logging
import re
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from bincounter.inspect.tensors.record import FILES, Record

log = logging.getLogger(__name__)

_PLACE = re.compile(r"\d+,(\d+),.*\n")  # a whole line's epoch and step
_KEPT = 4 * 2**20  # bytes at the end of a file that go into checkpoints; older ones are in the file alone


class RecordFiles:
    """Appends records to the files of a folder.

    A checkpoint keeps where each file ended, and its last 4 to 8 MB. What a file holds beyond that when the run is gone
    on with was written by the part of the run that was lost, and is cut off; what it lacks, because storage that keeps
    a run's folder file by file brought back an older one, is put back. A checkpoint of a run that recorded nothing at
    the time knows nothing of the files: then lines of steps up to it are kept, and later ones cut off.

    Args:
        folder: ``RUN/debugger``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tails = dict.fromkeys(FILES, "")
        self._before = dict.fromkeys(FILES, 0)  # bytes of each file in front of its tail

    def begin(self, step: int = 0) -> None:
        """Make the files what the restored state says, or without one what there is of earlier steps, with heads.

        Args:
            step: optimizer steps that the run has taken.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, columns in FILES.items():
            head = ",".join(columns) + "\n"
            if not self._tails[name]:
                self._tails[name] = head + _lines_before(step, self.folder / name)
            path, before = self.folder / name, self._before[name]
            with path.open("r+b" if path.exists() else "w+b") as file:
                size = file.seek(0, 2)
                if size < before:
                    log.warning(
                        "%s has lost records: %d bytes in front of those in the checkpoint.", path, before - size
                    )
                    before = self._before[name] = _end_of_last_line(path, size)
                    if not before:
                        self._tails[name] = head + self._tails[name]
                file.truncate(before)
                file.seek(before)
                file.write(self._tails[name].encode())

    def add(self, record: Record) -> None:
        """Append a record's lines, those of a file in one piece."""
        for name, lines in record.rows().items():
            text = "".join(f"{line}\n" for line in lines)
            if not text:
                continue
            with (self.folder / name).open("ab", buffering=0) as file:
                file.write(text.encode())
            self._tails[name] += text
        self._forget()

    def _forget(self) -> None:
        """Keep twice of what is needed at most, so that texts are cut rarely."""
        for name, tail in self._tails.items():
            if len(tail) > 2 * _KEPT:
                cut = tail.index("\n", len(tail) - _KEPT) + 1
                self._before[name] += len(tail[:cut].encode())
                self._tails[name] = tail[cut:]

    def state_dict(self) -> dict[str, Any]:
        """Where each file ends, and its end."""
        return {name: {"before": self._before[name], "tail": self._tails[name]} for name in FILES}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Take up what :meth:`state_dict` told; :meth:`begin` brings the files there."""
        for name in FILES:
            self._before[name], self._tails[name] = state[name]["before"], state[name]["tail"]


def _lines_before(step: int, path: Path) -> str:
    """Whole lines of steps before ``step``; all of them begin with epoch and step."""
    if not step or not path.is_file():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)[1:]
    places = (_PLACE.match(line) for line in lines)
    kept = takewhile(lambda place: place is not None and int(place[1]) < step, places)
    return "".join(place.string for place in kept if place)


def _end_of_last_line(path: Path, size: int) -> int:
    return path.read_bytes()[:size].rfind(b"\n") + 1
