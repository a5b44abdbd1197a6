"""Amazon Bin Image Dataset, and id lists."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bincounter.data.layouts.base import LARGEST_COUNT, PHOTO_SUFFIXES, Found, Refused, look_at, walk
from bincounter.data.records import Candidate, Listing, PhotoFile, Refusal
from bincounter.errors import DataError
from bincounter.progress import track

PHOTOS = "bin-images"
METADATA = "metadata"

WITHOUT_A_PHOTO = ("metadata without a photo", "in the id list, but no such photo")
"""Why bins without a photo are refused, without an id list and with one."""

_ID = re.compile(r"\w[\w.-]*")
_SUFFIXES = frozenset({".json", ".jpg"})


@dataclass(frozen=True)
class Abid:
    """Photos labelled by the ``EXPECTED_QUANTITY`` of their metadata; a photo's id is its file stem.

    Attributes:
        ids: path of a list that names the photos to use (see :func:`ids_from`), or ``None`` for all of them.
    """

    ids: str | None = None

    def walk(self, root: Path) -> Iterator[Found]:
        """Go through photos, metadata and the id list."""
        if self.ids is not None:
            yield look_at(Path(self.ids).absolute())
        yield from walk(root, PHOTOS)
        yield from walk(root, METADATA)

    def list(self, root: Path) -> Listing:
        """List the photos with count and ASINs from their metadata.

        Raises:
            DataError: one of the two folders is missing, or the id list is none.
        """
        for folder in (PHOTOS, METADATA):
            if not (root / folder).is_dir():
                raise DataError(
                    f"{root} has no {folder}/ folder: the ABID layout needs {PHOTOS}/ and {METADATA}/ there."
                )
        wanted = None if self.ids is None else dict.fromkeys(ids_from(self.ids))
        listing = Listing()
        photos = _by_id(root, PHOTOS, PHOTO_SUFFIXES, wanted, listing)
        metadata = _by_id(root, METADATA, frozenset({".json"}), wanted, listing)
        for identifier, photo in track(photos.items(), "Reading metadata", len(photos)):
            try:
                listing.candidates.append(_candidate(root, identifier, photo, metadata.pop(identifier, None)))
            except Refused as reason:
                listing.refusals.append(Refusal(photo.name, str(reason)))
        if wanted is None:
            listing.refusals += [Refusal(found.name, WITHOUT_A_PHOTO[0]) for found in metadata.values()]
        else:
            missing = [identifier for identifier in wanted if identifier not in photos]
            listing.refusals += [Refusal(f"{PHOTOS}/{name}.jpg", WITHOUT_A_PHOTO[1]) for name in missing]
        return listing


def _by_id(
    root: Path, folder: str, suffixes: frozenset[str], wanted: dict[str, None] | None, listing: Listing
) -> dict[str, Found]:
    """Index the files of a folder by their stem; refuse what is no such file."""
    files: dict[str, Found] = {}
    for found in walk(root, folder):
        name = PurePosixPath(found.name)
        if wanted is not None and name.stem not in wanted:
            continue
        if len(name.parts) != 2 or name.suffix.lower() not in suffixes:
            expected = " or ".join(sorted(suffixes))
            reason = found.problem or f"not a {expected} file right inside {folder}/"
            listing.refusals.append(Refusal(found.name, reason))
        elif name.stem in files:
            listing.refusals.append(Refusal(found.name, f"same id as {files[name.stem].name}"))
        else:
            files[name.stem] = found
    return files


def _candidate(root: Path, identifier: str, photo: Found, metadata: Found | None) -> Candidate:
    if photo.problem:
        raise Refused(photo.problem)
    if metadata is None:
        raise Refused("no metadata file")
    if metadata.problem:
        raise Refused(f"metadata: {metadata.problem}")
    count, items = read_metadata(root / metadata.name)
    return Candidate(identifier, PhotoFile(root / photo.name), count, items)


def read_metadata(path: Path) -> tuple[int, frozenset[str] | None]:
    """Read the quantity and, where they are given, the ASINs."""
    try:
        metadata = json.loads(path.read_bytes())
    except OSError as error:
        raise Refused(f"metadata that cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise Refused("metadata is no JSON") from error
    if not isinstance(metadata, dict) or "EXPECTED_QUANTITY" not in metadata:
        raise Refused("metadata without EXPECTED_QUANTITY")
    count = metadata["EXPECTED_QUANTITY"]
    if type(count) is not int or not 0 <= count <= LARGEST_COUNT:  # true is an int to Python, but no quantity
        raise Refused(f"EXPECTED_QUANTITY is no whole number from 0 to {LARGEST_COUNT}")
    items = metadata.get("BIN_FCSKU_DATA")
    # Interned: the same ASINs lie in many bins, and half a million bins name millions of them.
    return count, frozenset(map(sys.intern, items)) if isinstance(items, dict) else None


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
    if text.lstrip().startswith(("{", "[")):
        entries = _json_entries(path, text)
    else:
        entries = [line.strip() for line in text.splitlines() if line.strip()]
    ids = list(dict.fromkeys(_id(path, entry) for entry in entries))
    if not ids:
        raise _no_list(path, "it names no photo")
    return ids


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
