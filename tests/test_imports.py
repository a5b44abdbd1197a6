"""Imports point one way: each room of the package imports only rooms before it, and no files import each other."""

import ast
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from commands import REPOSITORY
from package_graph import PACKAGE, imports, room

from hydra_plugins import bincounter as plugins

ROOMS = (
    "model",
    "data",
    "smdebug",
    "config",
    "profiler",
    "training",
    "debugger",
    "report",
    "audit",
    "serving",
    "review",
    "cloud",
    "sweep",
    "cli",
)
SMDEBUG_IMPORTERS = {
    "bincounter.config.train_schema",
    "bincounter.config.debugger_schema",
    "bincounter.config.validate",
    "bincounter.debugger.rule_runner",
    "bincounter.cloud.debugger_rules",
}
REHEARSAL = PACKAGE.parent / "packages" / "sagemaker-rehearsal"


def test_the_rooms_are_the_folders() -> None:
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} == set(ROOMS)


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_only_rooms_before_it(name: str) -> None:
    imported = {room(target) for module, targets in imports().items() if room(module) == name for target in targets}
    assert imported - {""} <= set(ROOMS[: ROOMS.index(name) + 1])


def test_the_ground_floor_imports_no_room() -> None:
    ground = {module: targets for module, targets in imports().items() if room(module) == ""}
    del ground["bincounter.__main__"]  # the console script
    del ground["bincounter.api"]  # above all rooms
    assert {room(target) for targets in ground.values() for target in targets} == {""}


def test_only_the_package_itself_imports_its_api() -> None:
    assert {module for module, targets in imports().items() if "bincounter.api" in targets} == {"bincounter"}


def test_no_files_import_each_other() -> None:
    left = {module: set(targets) for module, targets in imports().items()}
    while ends := {module for module, targets in left.items() if not targets & set(left)}:
        left = {module: targets for module, targets in left.items() if module not in ends}
    assert not left, f"in a circle, or above one: {sorted(left)}"


def test_smdebug_is_a_plug_in() -> None:
    importers = {m for m, targets in imports().items() if room(m) != "smdebug" and "smdebug" in map(room, targets)}
    assert importers <= SMDEBUG_IMPORTERS


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


@pytest.mark.parametrize(
    ("private", "home"),
    [
        ("hydra._internal", {"cli/hydra_internals.py"}),
        ("verride._", set()),
        ("._return_value", set()),
        ("optuna._", {"sweep/study.py"}),
        ("trial._trial_id", {"sweep/study.py"}),
        ("import portalocker", {"files.py"}),  # locks
        ("import fcntl", set()),
        ("import msvcrt", set()),
    ],
)
def test_private_apis_and_locks_have_one_home(private: str, home: set[str]) -> None:
    users = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if private in path.read_text()}
    assert users <= home


def test_plugins_are_declared_for_hydra_1_4() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    declared = project["entry-points"]["hydra.plugins"]
    found = {EntryPoint(name, value, "hydra.plugins").load() for name, value in declared.items()}
    assert found == {plugins.SageMakerLauncher, plugins.OptunaSweeper, plugins.TunerSweeper}
