"""Layout of the Amazon Bin Image Dataset (ABID), and id lists."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bincounter.data.layouts.base import LARGEST_COUNT, PHOTO_SUFFIXES, InputFile, UnusableInput, stat_file, walk
from bincounter.data.photos import failure_clause, retry
from bincounter.data.records import Candidate, Listing, PhotoFile, RejectedInput
from bincounter.errors import DataError
from bincounter.progress import track

PHOTOS = "bin-images"
METADATA = "metadata"

MISSING_PHOTO_REASONS = ("metadata without a photo", "in the id list, but no such photo")
"""Reasons for rejecting bins without a photo: without an id list, and with one."""

_ID = re.compile(r"\w[\w.-]*")
_SUFFIXES = PHOTO_SUFFIXES | {".json"}


@dataclass(frozen=True)
class Abid:
    """Photos labelled by the ``EXPECTED_QUANTITY`` of their metadata; a photo's id is its file stem.

    Attributes:
        ids: path of a list that names the photos to use (see :func:`read_photo_names`), or ``None`` for all of them.
    """

    ids: str | None = None

    def walk(self, root: Path) -> Iterator[InputFile]:
        """Yield photos, metadata and the id list."""
        if self.ids is not None:
            yield stat_file(Path(self.ids).absolute())
        yield from walk(root, PHOTOS)
        yield from walk(root, METADATA)

    def list(self, root: Path) -> Listing:
        """List the photos with count and ASINs from their metadata.

        Raises:
            DataError: one of the two folders is missing, or the id list is invalid.
        """
        for folder in (PHOTOS, METADATA):
            if not (root / folder).is_dir():
                raise DataError(
                    f"{root} has no {folder}/ folder: the ABID layout needs {PHOTOS}/ and {METADATA}/ in it."
                )
        wanted = None if self.ids is None else read_photo_names(self.ids)
        listing = Listing()
        photos = _by_id(root, PHOTOS, PHOTO_SUFFIXES, wanted, listing)
        metadata = _by_id(root, METADATA, frozenset({".json"}), wanted, listing)
        for identifier, photo in track(photos.items(), "Reading metadata", len(photos)):
            try:
                listing.candidates.append(_candidate(root, identifier, photo, metadata.pop(identifier, None)))
            except UnusableInput as reason:
                listing.refusals.append(RejectedInput(photo.name, str(reason), reason.passing))
        if wanted is None:
            listing.refusals += [RejectedInput(found.name, MISSING_PHOTO_REASONS[0]) for found in metadata.values()]
        else:
            missing = [name for identifier, name in wanted.items() if identifier not in photos]
            listing.refusals += [RejectedInput(f"{PHOTOS}/{name}", MISSING_PHOTO_REASONS[1]) for name in missing]
        return listing


def _by_id(
    root: Path, folder: str, suffixes: frozenset[str], wanted: dict[str, str] | None, listing: Listing
) -> dict[str, InputFile]:
    """Index the files of a folder by their stem; rejects other files."""
    files: dict[str, InputFile] = {}
    for found in walk(root, folder):
        name = PurePosixPath(found.name)
        if wanted is not None and name.stem not in wanted:
            continue
        if len(name.parts) != 2 or name.suffix.lower() not in suffixes:
            expected = " or ".join(sorted(suffixes))
            reason = found.problem or f"not a {expected} file right inside {folder}/"
            listing.refusals.append(RejectedInput(found.name, reason, found.passing))
        elif name.stem in files:
            listing.refusals.append(RejectedInput(found.name, f"same id as {files[name.stem].name}"))
        else:
            files[name.stem] = found
    return files


def _candidate(root: Path, identifier: str, photo: InputFile, metadata: InputFile | None) -> Candidate:
    if photo.problem:
        raise UnusableInput(photo.problem, passing=photo.passing)
    if metadata is None:
        raise UnusableInput("no metadata file")
    if metadata.problem:
        raise UnusableInput(f"metadata: {metadata.problem}", passing=metadata.passing)
    count, items = read_metadata(root / metadata.name)
    return Candidate(identifier, PhotoFile(root / photo.name), count, items)


def read_metadata(path: Path) -> tuple[int, frozenset[str] | None]:
    """Read the quantity and, if present, the ASINs.

    Raises:
        UnusableInput: the file cannot be read or has no valid quantity.
    """
    try:
        metadata = json.loads(retry(path.read_bytes))
    except (MemoryError, OSError) as error:
        raise UnusableInput(f"metadata: {failure_clause(error)}", passing=True) from error
    except (ValueError, RecursionError) as error:
        raise UnusableInput("metadata is not JSON") from error
    if not isinstance(metadata, dict) or "EXPECTED_QUANTITY" not in metadata:
        raise UnusableInput("metadata without EXPECTED_QUANTITY")
    count = metadata["EXPECTED_QUANTITY"]
    if type(count) is not int or not 0 <= count <= LARGEST_COUNT:  # bool is a subclass of int
        raise UnusableInput(f"EXPECTED_QUANTITY is not an integer from 0 to {LARGEST_COUNT}")
    items = metadata.get("BIN_FCSKU_DATA")
    # Interned: half a million bins name millions of ASINs, most of them many times.
    return count, frozenset(map(sys.intern, items)) if isinstance(items, dict) else None


def read_photo_names(path: str | Path) -> dict[str, str]:
    """Read an id list: the file name of each photo by its id, ``.jpg`` unless the list names its path.

    Two formats are read: JSON that maps each count to paths of metadata files, as the Udacity project publishes it
    (``{"1": ["data/metadata/100313.json", ...], ...}``), and text with one id per line. An id may be given as the
    path of its photo or metadata. Ids are strings: ``1`` and ``00001`` are two photos.

    Raises:
        DataError: the file cannot be read, or is not an id list.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"The id list {path} cannot be read ({error.strerror}): check data.layout.ids.") from error
    except UnicodeDecodeError as error:
        raise _no_list(path, "it is not text") from error
    if text.lstrip().startswith(("{", "[")):
        entries = _json_entries(path, text)
    else:
        entries = [line.strip() for line in text.splitlines() if line.strip()]
    names: dict[str, str] = {}
    for entry in entries:
        identifier, suffix = _id(path, entry), PurePosixPath(entry).suffix
        if suffix.lower() in PHOTO_SUFFIXES:
            names[identifier] = identifier + suffix
        names.setdefault(identifier, f"{identifier}.jpg")
    if not names:
        raise _no_list(path, "it names no photo")
    return names


def _json_entries(path: Path, text: str) -> list[str]:
    try:
        lists = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _no_list(path, "it is not valid JSON") from error
    if not isinstance(lists, dict) or not all(isinstance(entries, list) for entries in lists.values()):
        raise _no_list(path, "it does not map counts to lists")
    entries = [entry for entries in lists.values() for entry in entries]
    if not all(isinstance(entry, str) for entry in entries):
        raise _no_list(path, "its lists hold values that are not strings")
    return entries


def _id(path: Path, entry: str) -> str:
    """Return the id in an id or a path; always a plain file name."""
    name = PurePosixPath(entry)
    identifier = name.stem if name.suffix.lower() in _SUFFIXES else name.name
    if not _ID.fullmatch(identifier):
        raise _no_list(path, f"{entry[:60]!r} is not an id")
    return identifier


def _no_list(path: Path, why: str) -> DataError:
    expected = 'one id per line, or JSON like {"1": ["data/metadata/100313.json"]}'
    return DataError(f"{path} is not an id list, {why}: data.layout.ids takes {expected}.")
