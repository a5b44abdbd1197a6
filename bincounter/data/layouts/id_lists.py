"""Lists of ABID photos: the Udacity ``file_list.json``, or a text file of ids."""

import json
import re
from pathlib import Path, PurePosixPath

from bincounter.errors import DataError

_ID = re.compile(r"\w[\w.-]*")
_SUFFIXES = frozenset({".json", ".jpg"})


def ids_from(path: str | Path) -> list[str]:
    """Read the ids of a list, in its order, each once.

    Two forms are read: JSON that maps each count to paths of metadata files, as the Udacity project publishes it
    (``{"1": ["data/metadata/100313.json", ...], ...}``), and text with an id per line. An id may stand as the path of
    its photo or metadata. Ids are strings: ``1`` and ``00001`` are two photos.

    Raises:
        DataError: there is no such file, or it is no such list.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"the id list {path} cannot be read ({error.strerror}): check data.layout.ids.") from error
    except UnicodeDecodeError as error:
        raise _no_list(path, "it is not text") from error
    entries = _json_entries(path, text) if text.lstrip().startswith(("{", "[")) else _lines(text)
    ids = list(dict.fromkeys(_id(path, entry) for entry in entries))
    if not ids:
        raise _no_list(path, "it names no photo")
    return ids


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _json_entries(path: Path, text: str) -> list[str]:
    try:
        lists = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _no_list(path, "it is broken JSON") from error
    if not isinstance(lists, dict) or not all(isinstance(entries, list) for entries in lists.values()):
        raise _no_list(path, "it does not map counts to lists")
    entries = [entry for entries in lists.values() for entry in entries]
    if not all(isinstance(entry, str) for entry in entries):
        raise _no_list(path, "its lists hold something else than names")
    return entries


def _id(path: Path, entry: str) -> str:
    """Take the id out of an id or a path; the result is always a plain file name."""
    name = PurePosixPath(entry)
    identifier = name.stem if name.suffix.lower() in _SUFFIXES else name.name
    if not _ID.fullmatch(identifier):
        raise _no_list(path, f"{entry[:60]!r} is no id")
    return identifier


def _no_list(path: Path, why: str) -> DataError:
    expected = 'a line per id, or JSON like {"1": ["data/metadata/100313.json"]}'
    return DataError(f"{path} is no list of ids, {why}: data.layout.ids takes {expected}.")
