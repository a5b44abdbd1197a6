"""An archive -> a folder, checked: what it says of its contents is true, and nothing lands outside."""

import gzip
import hashlib
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from bincounter.errors import ResourceError, UserError
from bincounter.serving.packing.tarball import CHECKSUMS

_ADVICE = "package the checkpoint anew with action=package"


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack an archive into a new folder, whole or not at all.

    Args:
        archive: a ``model.tar.gz``.
        folder: to make; it must not be there yet, or be empty.

    Returns:
        The folder.

    Raises:
        UserError: there is no such archive, it is damaged, or it holds what no archive holds.
        ResourceError: there is no place for it.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: name a new folder to unpack {archive} into")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as aside:
            whole = Path(aside) / "archive"
            whole.mkdir()
            with _opened(archive) as tar:
                for name, content in _members(tar, archive):
                    (whole / name).parent.mkdir(parents=True, exist_ok=True)
                    (whole / name).write_bytes(content)
            _verify(whole, archive)
            whole.replace(folder)
    except OSError as error:
        raise ResourceError(
            f"{archive} cannot be unpacked into {folder} ({(error.strerror or str(error)).lower()}): free the place, "
            "or name another by paths.cache_dir"
        ) from error
    return folder


def read_member(archive: Path, wanted: str) -> bytes:
    """The content of one file of an archive.

    Raises:
        UserError: there is no such archive, it is damaged, or it holds no such file.
    """
    with _opened(archive) as tar:
        for name, content in _members(tar, archive):
            if name == wanted:
                return content
    raise UserError(f"{archive} is no archive of bincounter, since it holds no {wanted}: {_ADVICE}")


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    if not archive.is_file():
        raise UserError(f"There is no archive {archive}: make it with action=package, or correct the path")
    try:
        with tarfile.open(archive, "r:gz") as tar:
            yield tar
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{archive} is truncated or no archive: {_ADVICE}") from error


def _members(tar: tarfile.TarFile, archive: Path) -> Iterator[tuple[str, bytes]]:
    seen: set[str] = set()
    for member in tar:
        path = PurePosixPath(member.name)
        inside = not path.is_absolute() and ".." not in path.parts and "\\" not in member.name
        if not (member.isreg() and inside and path.as_posix() == member.name) or member.name in seen:
            raise UserError(f"{archive} holds {member.name}, which is no plain file of its own: {_ADVICE}")
        seen.add(member.name)
        content = tar.extractfile(member)
        assert content is not None  # a regular file has content
        yield member.name, content.read()


def _verify(folder: Path, archive: Path) -> None:
    listing = folder / CHECKSUMS
    if not listing.is_file():
        raise UserError(f"{archive} is no archive of bincounter, since it holds no {CHECKSUMS}: {_ADVICE}")
    lines = listing.read_text(encoding="utf-8").splitlines()
    stated = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {CHECKSUMS}
    wrong = sorted(stated.keys() ^ found) or sorted(
        name for name in found if hashlib.sha256((folder / name).read_bytes()).hexdigest() != stated[name]
    )
    if wrong:
        raise UserError(f"{archive} was changed after it was made ({wrong[0]} is not as its checksum says): {_ADVICE}")
