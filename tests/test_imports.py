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
