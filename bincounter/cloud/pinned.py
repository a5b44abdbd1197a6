"""What a container installs: the versions that bincounter runs with here, pinned.

torch and torchvision are left to the image, which has them built for its GPUs, and so is what only they need.
"""

import json
import tomllib
from collections.abc import Collection, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bincounter.errors import ConfigError

_OF_THE_IMAGE = {"torch", "torchvision"}
_OF_SMDEBUG = {"numpy", "protobuf"}  # what it does not run beside in the versions that are installed here


def pinned_requirements(
    pyproject: Path | None, loggers: Collection[str], *, also: Collection[str] = (), smdebug: bool = False
) -> str:
    """The text of a requirements.txt with everything that a run imports.

    Versions, and what each distribution needs in turn, are those of what is installed.

    Args:
        pyproject: bincounter's ``pyproject.toml``, since the metadata of an editable installation is as old as the
            last ``pip install -e .``; ``None`` to read what was installed from a wheel.
        loggers: names of the loggers of the run; those that are an extra, as ``mlflow`` is, come along.
        also: further distributions.
        smdebug: leave what smdebug needs in older versions to the image, which has smdebug with it.

    Raises:
        ConfigError: something is not installed here, or not from a package index.
    """
    roots = _declared(pyproject, loggers) if pyproject else _installed(loggers)
    versions = {}
    of_the_image = _OF_THE_IMAGE | (_OF_SMDEBUG if smdebug else set())
    for found in _closure([*roots, *map(Requirement, also)], of_the_image):
        _refuse_local(found)
        versions[canonicalize_name(found.metadata["Name"])] = found.version
    return "".join(f"{name}=={version}\n" for name, version in sorted(versions.items()))


def _declared(pyproject: Path, extras: Collection[str]) -> list[Requirement]:
    """The dependencies of a checkout, with those of some extras."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    optional = project.get("optional-dependencies", {})
    return [Requirement(each) for each in (*project["dependencies"], *(n for e in extras for n in optional.get(e, ())))]


def _installed(extras: Collection[str]) -> list[Requirement]:
    """The dependencies of the installed bincounter, with those of some extras."""
    found = []
    for requirement in map(Requirement, distribution("bincounter").requires or ()):
        marker, requirement.marker = requirement.marker, None
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            found.append(requirement)
    return found


def _closure(roots: list[Requirement], of_the_image: Collection[str]) -> Iterator[Distribution]:
    """Every installed distribution that the requirements lead to, once; what the image has ends a path."""
    pending = [(root, "") for root in roots]
    seen: set[tuple[str, str]] = set()
    while pending:
        requirement, extra_asked = pending.pop()
        name = canonicalize_name(requirement.name)
        if name in of_the_image or (requirement.marker and not requirement.marker.evaluate({"extra": extra_asked})):
            continue
        try:
            found = distribution(name)
        except PackageNotFoundError as error:
            raise ConfigError(
                f"{name} is needed in the container and not installed here, so that its version is not known: pip "
                f"install -e . here, or pip install '{requirement.name}{requirement.specifier}'"
            ) from error
        new = {(name, extra) for extra in ("", *requirement.extras)} - seen
        if (name, "") in new:
            yield found
        seen |= new
        pending += [(Requirement(needed), extra) for _, extra in sorted(new) for needed in found.requires or ()]


def _refuse_local(found: Distribution) -> None:
    """A version that no index holds cannot be installed elsewhere."""
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    if not origin and "+" not in found.version:
        return
    name = found.metadata["Name"]
    raise ConfigError(  # the address may hold a token: not repeated
        f"{name} {found.version} is installed here from a folder, a URL or another build, where the container cannot "
        f"get it: pip install --force-reinstall {name}=={found.version.partition('+')[0]} from a package index"
    )
