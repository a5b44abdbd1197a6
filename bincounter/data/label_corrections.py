"""Effect of ``data.corrections`` on the labels of a data set."""

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from pathlib import Path, PurePosixPath

from bincounter.data.corrections import Correction, last_answers, read_corrections
from bincounter.data.layouts.base import COUNT_NAME, PHOTO_SUFFIXES
from bincounter.data.records import BinRecord, Manifest, data_digest
from bincounter.names import composed, escape_name, spellings

log = logging.getLogger(__name__)

# A photo is matched by its id or its path, else by its file name, else without the suffix: ids of ABID have none.
_EXACT: tuple[Callable[[str], str], ...] = (str, lambda name: composed(PurePosixPath(name).as_posix()))
_INEXACT: tuple[Callable[[str], str], ...] = (
    lambda name: composed(PurePosixPath(name).name),
    lambda name: composed(PurePosixPath(name).stem),
)


def correct_labels(manifest: Manifest, path: Path) -> Manifest:
    """Replace the counts of photos by those of a table of corrections; groups and the order of photos stay.

    Photos are matched by id or by path below the root, else by a file name that one photo and one correction alone
    have, unless the correction's path is that of another photo of the data set, which may have been deleted since.
    Other corrections are left out, and counted in a warning.

    Args:
        manifest: of the data set.
        path: of the table; of several answers to a photo the last counts.

    Returns:
        The manifest with its own digest, so that no cache of the uncorrected labels is taken for it.

    Raises:
        DataError: the table cannot be read.
    """
    answers = list(last_answers(read_corrections(path, "data.corrections")).values())
    places = _match(manifest, answers)
    counts = {place: answer.counted for answer, place in zip(answers, places, strict=True) if place is not None}
    changed = {place: count for place, count in counts.items() if manifest.records[place].count != count}
    log.info(
        "%s labels corrected by %s, %s confirmed",
        f"{len(changed):,}",
        escape_name(path),
        f"{len(counts) - len(changed):,}",
    )
    unmatched = [answer.photo for answer, place in zip(answers, places, strict=True) if place is None]
    if unmatched:
        log.warning(
            "%s of %s corrections are left out, %s first: they match no photo, or their names fit several photos or "
            "corrections. Check that %s is of this data set, and name photos by their paths in it.",
            f"{len(unmatched):,}",
            f"{len(answers):,}",
            escape_name(unmatched[0]),
            escape_name(path),
        )
    records = tuple(
        replace(record, count=changed[place]) if place in changed else record
        for place, record in enumerate(manifest.records)
    )
    digest = data_digest(records, manifest.content)
    return replace(manifest, records=records, digest=digest, corrected=len(changed))


def _match(manifest: Manifest, answers: Sequence[Correction]) -> list[int | None]:
    """Return the position of each answer's photo in the records; ``None`` if the photo may be another one."""
    places: list[int | None] = [None] * len(answers)
    spelt = [spellings(escape_name(answer.photo)) for answer in answers]  # as in the table
    folders = {composed(record.id.rpartition("/")[0]) for record in manifest.records}
    rounds: list[tuple[Callable[[str], str], int | None]] = [(str, 1)]  # at first the names as they are written
    rounds += [(form, None) for form in (*_EXACT, *_INEXACT)]
    for form, most in rounds:
        left = [number for number, place in enumerate(places) if place is None]
        if not left:
            break
        index: dict[str, int | None] = {}  # None: a name of several photos
        for place, record in enumerate(manifest.records):
            for name in {form(name) for name in _names(record, manifest.root)}:
                index[name] = None if name in index else place
        taken = set(places)  # by a more exact form
        found: defaultdict[str, dict[int, str]] = defaultdict(dict)  # name -> answers, and how they spell it
        for number in left:
            spelling = next((name for name in spelt[number][:most] if form(name) in index), None)
            if spelling is not None:
                found[form(spelling)][number] = spelling
        for name, spelled in found.items():
            only = index[name]
            if only is None or only in taken or len({answers[number].photo for number in spelled}) > 1:
                continue
            for number, spelling in spelled.items():
                if form in _EXACT or not _is_another(spelling, manifest.records[only].id, folders):
                    places[number] = only
    return places


def _is_another(name: str, id_: str, folders: Set[str]) -> bool:
    """Check whether a path is of another photo than the only one of its file name, such as one that was deleted.

    The recorded count cannot tell: that of an audit is the stock's, which may differ from the label.

    Args:
        name: path of the photo that was counted.
        id_: of the photo of its file name.
        folders: of the data set.
    """
    path, own = PurePosixPath(composed(name)), PurePosixPath(composed(id_))
    if path.parent == own.parent:
        return path.name != own.name and {path.suffix.lower(), own.suffix.lower()} <= PHOTO_SUFFIXES
    if str(path.parent) in folders:
        return True
    labels = [each.parent.name for each in (path, own)]
    # Deeper paths are of another place, where a number may be a day.
    return (
        len(path.parts) <= len(own.parts)
        and all(map(COUNT_NAME.fullmatch, labels))
        and int(labels[0]) != int(labels[1])
    )


def _names(record: BinRecord, root: Path) -> list[str]:
    file = record.file
    if file.bucket is not None or file.size is not None or not file.path.is_relative_to(root):
        return [record.id]
    return [record.id, file.path.relative_to(root).as_posix()]
