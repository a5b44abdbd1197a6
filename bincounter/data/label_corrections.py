"""Effect of ``data.corrections`` on the labels of a data set."""

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from bincounter.data.corrections import Correction, last_answers, read_corrections
from bincounter.data.records import BinRecord, Manifest, data_digest
from bincounter.names import escape_name

log = logging.getLogger(__name__)

# A photo is matched by its id or its path, else by its file name, else without the suffix: ids of ABID have none.
_FORMS: tuple[Callable[[str], str], ...] = (
    str,
    lambda name: PurePosixPath(name).name,
    lambda name: PurePosixPath(name).stem,
)


def correct_labels(manifest: Manifest, path: Path) -> Manifest:
    """Replace the counts of photos by those of a table of corrections; groups and the order of photos stay.

    Photos are matched by id or by path below the root, else by a file name that one photo and one correction alone
    have. Other corrections are left out, and counted in a warning.

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
    for form in _FORMS:
        left = [number for number, place in enumerate(places) if place is None]
        if not left:
            break
        index: dict[str, int | None] = {}  # None: a name of several photos
        for place, record in enumerate(manifest.records):
            for name in {form(name) for name in _names(record, manifest.root)}:
                index[name] = None if name in index else place
        taken = set(places)  # by a more exact form
        reviewed: defaultdict[str, set[str]] = defaultdict(set)
        for number in left:
            reviewed[form(answers[number].photo)].add(answers[number].photo)
        for number in left:
            name = form(answers[number].photo)
            if len(reviewed[name]) == 1 and index.get(name) not in taken:
                places[number] = index.get(name)
    return places


def _names(record: BinRecord, root: Path) -> list[str]:
    file = record.file
    if file.bucket is not None or file.size is not None or not file.path.is_relative_to(root):
        return [record.id]
    return [record.id, file.path.relative_to(root).as_posix()]
