"""Which sweeper process a running trial belongs to, and whether that process lives.

Every sweeper holds the lock of a file in the sweep's folder for as long as it lives; the kernel gives it back however
the process ends. Trials are counted, asked for and taken over under one more lock, so that processes that share a
search agree on them.
"""

import fcntl
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from bincounter.errors import ResourceError
from bincounter.sweep.trials import locked


class Ownership:
    """This process among those that search in a folder.

    Args:
        folder: of the sweep; made when it is missing.

    Raises:
        ResourceError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / ".sweepers"
        self._id = uuid.uuid4().hex[:12]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path(self._id).open("w")
        except OSError as error:
            raise ResourceError(
                f"{folder} cannot be written ({error.strerror}): name another folder for the search"
            ) from None
        fcntl.lockf(self._file, fcntl.LOCK_EX)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._path(self._id).unlink(missing_ok=True)
        self._file.close()

    @property
    def mark(self) -> dict[str, str]:
        """What a trial of this process carries."""
        return {"id": self._id, "host": socket.gethostname(), "folder": str(self._folder.resolve())}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While this lasts, no other process of the search counts, asks for or takes over trials."""
        with (self._folder / "claim.lock").open("w") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            yield

    def is_mine(self, mark: Mapping[str, Any] | None) -> bool:
        """Whether a mark is this process's."""
        return mark is not None and mark["id"] == self._id

    def elsewhere(self, mark: Mapping[str, Any] | None) -> bool:
        """Whether a mark is of another machine, whose processes cannot be looked at from here."""
        return mark is not None and mark["host"] != socket.gethostname()

    def lives(self, mark: Mapping[str, Any] | None) -> bool:
        """Whether the process of a mark is known or presumed to live; none is without one, when asked alone."""
        if mark is None:
            return False
        if self.is_mine(mark) or self.elsewhere(mark):
            return True
        return locked(Path(mark["folder"]) / f"{mark['id']}.lock")

    def _path(self, id_: str) -> Path:
        return self._folder / f"{id_}.lock"
