"""Stand-alone script that counts photos by an archive: ``python -P archive_probe.py ARCHIVE PHOTOS OUT``.

It can import the standard library, the packages of the serving images and the archive's own code, but no installed
bincounter. ``ARCHIVE`` is an unpacked archive, ``PHOTOS`` a folder of photos, ``OUT`` the file to write::

    {"precision": "fp32", "answers": {FILE NAME: {"status": 200, "body": {"count": 3, ...}}, ...}}

If the archive cannot be loaded, it exits with code 1, and the last line on stderr is the reason.
"""

import asyncio
import json
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

_IN_SERVING_IMAGES = ("torch", "torchvision", "pillow", "numpy")
_NAME = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


def refused_packages(folder: Path) -> list[str]:
    """Import names of bincounter's requirements that neither the serving images nor the archive's requirements install.

    Args:
        folder: an unpacked archive.
    """
    requirements = folder / "code" / "requirements.txt"
    own = requirements.read_text(encoding="utf-8").splitlines() if requirements.is_file() else []
    found = set(_with_requirements([*_IN_SERVING_IMAGES, *_names(own)]))
    bincounter = _installed("bincounter")
    ours = _names(bincounter.requires or [] if bincounter else [])
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
    """Top-level packages and modules of a distribution; none if it is not installed."""
    installed = _installed(name)
    files = installed.files or [] if installed else []
    tops = {file.parts[0].removesuffix(".py") for file in files if file.suffix == ".py"}
    return {top for top in tops if top.isidentifier() and top != "bincounter"}


class _Guard(MetaPathFinder):
    """Replacement of ``PathFinder`` that hides some packages.

    It does not raise, since torch looks for optional packages.
    """

    def __init__(self, refused: Iterable[str]) -> None:
        self._refused = set(refused)

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """Find an installed module; ``None`` for packages that are blocked."""
        return None if fullname.partition(".")[0] in self._refused else PathFinder.find_spec(fullname, path, target)


def _load(archive: Path) -> tuple[Any, str]:
    """Load an archive by its own code: its service, and the model's precision."""
    import bincounter

    if not Path(bincounter.__file__).resolve().is_relative_to(archive):
        raise ImportError("the archive lacks code/bincounter")
    from bincounter.serving.application.batcher import configure_process
    from bincounter.serving.application.served_model import ServedModel
    from bincounter.serving.application.service import Service

    configure_process()
    model = ServedModel.load(archive)
    # Photos of the run are compared whatever users may send, and however long this machine takes.
    model.limits = replace(model.limits, max_body_bytes=sys.maxsize, timeout_s=max(60.0, model.limits.timeout_s))
    return Service(model), model.precision


async def _answers(service: Any, photos: Path) -> dict[str, Any]:
    await service.start()
    answers = {}
    for path in sorted(photos.iterdir()):
        reply = await service.handle(path.read_bytes(), None, "application/json")
        answers[path.name] = {"status": reply.status, "body": json.loads(reply.body)}
    return answers


def main() -> None:
    """Load the archive, count the photos and write the answers."""
    archive, photos, out = (Path(argument).resolve() for argument in sys.argv[1:4])
    guard = _Guard(refused_packages(archive))
    sys.path[:0] = [str(archive), str(archive / "code")]  # as PYTHONPATH of the serving images
    sys.meta_path[:] = [guard if finder is PathFinder else finder for finder in sys.meta_path]
    try:
        service, precision = _load(archive)
    except Exception as error:
        traceback.print_exc()
        known = type(error).__name__ == "ArchiveError"  # a sentence with its next step
        sys.exit(str(error) if known else f"{type(error).__name__}: {error}; package the checkpoint again.")
    answers = asyncio.run(_answers(service, photos))
    out.write_text(json.dumps({"precision": precision, "answers": answers}), encoding="utf-8")
    sys.stderr.flush()
    os._exit(0)  # without waiting for stuck threads


if __name__ == "__main__":
    main()
