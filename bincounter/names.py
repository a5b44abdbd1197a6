r"""Names of files as text: one line on screen, cells of tables, and output streams that accept any name.

In lines and tables a backslash is written ``\\``, a control character ``\n``, ``\r``, ``\t`` or ``\u001b``, and a byte
that is not UTF-8 ``\xe9``. In tables a text that a spreadsheet would take for a formula, or that begins with an
apostrophe, has an apostrophe in front. :func:`unescape_name` and :func:`read_cell` return the name itself.
"""

import codecs
import csv
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike, fspath
from typing import IO, Any

from bincounter.errors import ResourceError

UNENCODABLE = "bincounter.unencodable"
"""Error handler of encodings: characters that an encoding lacks become ``\\uXXXX``, which JSON reads back."""

# Control characters, separators of lines and changes of direction; surrogates stand for bytes that are not UTF-8.
_CONTROL = r"\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_IN_NAMES, _IN_SENTENCES = re.compile(rf"[\\{_CONTROL}]"), re.compile(rf"[{_CONTROL}]")
_ESCAPE = re.compile(r"\\(?:([\\nrt])|x([89a-f][0-9a-f])|u([0-9a-f]{4}))")
_SHORT = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_LONG = {escape[1]: letter for letter, escape in _SHORT.items()}
_FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"
"""First characters of formulas in spreadsheets, those of full width included."""


def escape_name(name: str | PathLike[str]) -> str:
    """Write a file's name on one line of UTF-8, reversibly; see the module."""
    return _IN_NAMES.sub(_escaped, fspath(name))


def unescape_name(text: str) -> str:
    """Return the name that :func:`escape_name` wrote."""
    return _ESCAPE.sub(_unescaped, text)


def spellings(text: str) -> list[str]:
    """Return the names that a text of a table from elsewhere may stand for, the most exact first."""
    names = [text, text.strip(), read_cell(text), unescape_name(text), text.strip().replace("\\", "/")]
    return list(dict.fromkeys(names))


def composed(name: str) -> str:
    """Return a name whose accents are one character each, not two as macOS writes them."""
    return unicodedata.normalize("NFC", name)


def one_line(sentence: str) -> str:
    """Escape line breaks and control characters in a sentence; its backslashes stay."""
    return _IN_SENTENCES.sub(_escaped, sentence)


def first_of(items: Sequence[object], most: int = 5) -> str:
    """Format the first few of many items, and the number of the others."""
    others = len(items) - most
    return ", ".join(map(str, items[:most])) + (f" and {others} more" if others > 0 else "")


def _escaped(found: re.Match[str]) -> str:
    letter = found[0]
    if "\udc80" <= letter <= "\udcff":  # as Python decodes bytes of names that are not UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return _SHORT.get(letter, f"\\u{ord(letter):04x}")


def _unescaped(found: re.Match[str]) -> str:
    short, byte, code = found.groups()
    return _LONG[short] if short else chr(0xDC00 + int(byte, 16)) if byte else chr(int(code, 16))


class TableWriter:
    """Writer of a CSV table of names and sentences; numbers are not escaped.

    Args:
        file: open for text, with ``newline=""``.
    """

    def __init__(self, file: IO[str]) -> None:
        self._rows = csv.writer(file, lineterminator="\n")

    def writerow(self, row: Iterable[Any]) -> None:
        """Write one row; texts and paths are escaped."""
        self._rows.writerow([_cell(value) for value in row])

    def writerows(self, rows: Iterable[Iterable[Any]]) -> None:
        """Write rows."""
        for row in rows:
            self.writerow(row)


def read_cell(text: str) -> str:
    """Return the text that :class:`TableWriter` wrote as a cell; texts of earlier versions stay as they are."""
    if text[:1] == "'" and text[1:2] and text[1] in f"{_FORMULA}'":
        text = text[1:]
    return unescape_name(text)


def _cell(value: Any) -> Any:
    if not isinstance(value, str | PathLike):
        return value
    text = escape_name(value)
    return f"'{text}" if text and text[0] in f"{_FORMULA}'" and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def accept_any_output() -> None:
    """Let stdout and stderr escape characters that their encoding lacks, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=UNENCODABLE)


def _unencodable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)), error.end


codecs.register_error(UNENCODABLE, _unencodable)


@contextmanager
def flushed_output() -> Iterator[None]:
    """Write out what this block prints on stdout, where an error can still be printed and have an exit code.

    Raises:
        BrokenPipeError: the pipe is closed, as by ``| head``.
        ResourceError: the output cannot be written.
    """
    try:
        yield
    finally:
        try:
            if sys.stdout is not None:  # closed by >&-
                sys.stdout.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter writes it again
            if isinstance(error, BrokenPipeError):
                raise
            raise ResourceError(
                f"the output cannot be written ({str(error.strerror).lower()}): write it to another place"
            ) from error
