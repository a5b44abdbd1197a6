"""What an archive may not import, so that what it is checked by is what it will find on an endpoint."""

import re
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

_IN_SERVING_IMAGES = ("torch", "torchvision", "pillow", "numpy")
_NAME = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


def refused_packages(folder: Path) -> list[str]:
    """Import names of what bincounter requires and neither the serving images nor the archive's requirements bring.

    Args:
        folder: an unpacked archive.
    """
    requirements = folder / "code" / "requirements.txt"
    own = requirements.read_text(encoding="utf-8").splitlines() if requirements.is_file() else []
    found = set(_with_requirements([*_IN_SERVING_IMAGES, *_names(own)]))
    ours = _names(distribution("bincounter").requires or [])
    return sorted({name for needed in ours if needed not in found for name in _import_names(needed)})


def _with_requirements(names: Iterable[str]) -> set[str]:
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found and (installed := _installed(name)):
            found.add(name)
            waiting += _names(line for line in installed.requires or [] if "extra ==" not in line)
    return found


def _names(lines: Iterable[str]) -> Iterator[str]:
    """Normalised names (PEP 503) of the distributions that requirement lines name."""
    for line in lines:
        if found := _NAME.match(line):
            yield re.sub(r"[-_.]+", "-", found[1]).lower()


def _installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def _import_names(name: str) -> set[str]:
    """The packages and modules a distribution puts beside others, none where it is not installed."""
    installed = _installed(name)
    files = installed.files or [] if installed else []
    tops = {file.parts[0].removesuffix(".py") for file in files if file.suffix == ".py"}
    return {top for top in tops if top.isidentifier() and top != "bincounter"}
