"""Objects that cannot be files of this machine, or not beside each other."""

import logging
from collections.abc import Iterator, Mapping, Sequence

from bincounter.data.s3.address import refusal
from bincounter.data.s3.catalogue import Catalogue
from bincounter.data.s3.mirror import Mirror
from bincounter.data.s3.objects import Listed

log = logging.getLogger(__name__)

_NAMED = 5  # objects named in one line of the log
_REMEMBERED = 10_000  # folders of which is known that no object has their name


def leave_out_what_cannot_be_here(catalogue: Catalogue, mirror: Mirror) -> None:
    """Take objects that cannot be local files out of what has to be fetched, and name them in the log.

    Of an object and others in a folder of its name the object is left out; its file, should it be here, makes way.
    """
    refused: dict[str, str] = {}
    folders: set[str] = set()
    for page in catalogue.jobs():
        for item in page:
            if item.key.endswith("/") and not item.size:
                catalogue.drop([item.key])  # what consoles make to show an empty folder
            elif reason := refusal(item.key):
                refused[item.key] = reason
            elif catalogue.has_listed_below(item.key):
                refused[item.key] = "is a folder of other objects" if item.size else ""
            else:
                refused |= dict.fromkeys(_in_the_way(item, catalogue, folders), "is a folder of other objects")
    catalogue.drop(refused)
    mirror.forget(refused)
    warn_of_refused(refused)


def warn_of_refused(reasons: Mapping[str, str]) -> None:
    """Log the keys that cannot be local files, but those without a reason, which nobody misses."""
    named = [f"{key!r} {reason}" for key, reason in reasons.items() if reason]
    warn("%d objects cannot be local files and are left out: %s", named)


def warn(message: str, items: Sequence[str]) -> None:
    """Log a warning that takes a number and names; of many only the first are named."""
    if items:
        log.warning(message, len(items), ", ".join(items[:_NAMED]) + (", ..." if len(items) > _NAMED else ""))


def _in_the_way(item: Listed, catalogue: Catalogue, folders: set[str]) -> Iterator[str]:
    """Objects with the name of a folder that the item is in."""
    folder = item.key
    while (cut := folder.rfind("/")) >= 0 and (folder := folder[:cut]) not in folders:
        if catalogue.is_listed(folder):
            yield folder
        if len(folders) == _REMEMBERED:
            folders.clear()
        folders.add(folder)
