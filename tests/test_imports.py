"""Imports point one way: each room of the package knows only the rooms before it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "bincounter"
ROOMS = (
    "model",
    "data",
    "smdebug",
    "config",
    "profiler",
    "training",
    "debugger",
    "report",
    "serving",
    "cloud",
    "sweep",
    "cli",
)
FREE = {"errors", "files", "parallel", "progress", "redaction"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_before_it(room: str) -> None:
    allowed = {*ROOMS[: ROOMS.index(room) + 1], *FREE}
    found = set()
    for path in (PACKAGE / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("bincounter."):
                found.add(node.module.split(".")[1])
    assert found
    assert found <= allowed


REHEARSAL = PACKAGE.parent / "packages" / "sagemaker-rehearsal"


def importers(folder: Path, package: str) -> set[str]:
    """Modules below ``folder`` that import ``package`` or a part of it."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.partition(".")[0] == package for name in names):
                found.add(path.relative_to(folder).as_posix())
    return found


def test_the_rehearsal_is_a_package_of_its_own() -> None:
    assert importers(PACKAGE, "sagemaker_rehearsal") == {"cloud/sagemaker_launcher.py"}
    assert importers(REHEARSAL, "sagemaker_rehearsal")
    assert not importers(REHEARSAL, "bincounter")
    assert not [path for path in REHEARSAL.rglob("*.py") if "bincounter" in path.read_text()]
