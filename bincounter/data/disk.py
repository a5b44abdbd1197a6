"""A full disk, answered in one sentence."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bincounter.errors import ResourceError


@contextmanager
def full_disk_answered(folder: Path) -> Iterator[None]:
    """Turn the system's "no space left" in this block into a sentence that names the folder.

    Raises:
        ResourceError: the disk or the quota is used up.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"no space is left on the disk of {folder}: free some, or name a folder on another disk."
            ) from error
        raise
