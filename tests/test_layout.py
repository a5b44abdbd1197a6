"""A file holds a whole idea, and is found by its name alone."""

import ast
from collections import Counter
from pathlib import Path

from package_graph import PACKAGE, imports, modules

LONGEST, SHORTEST = 350, 60  # lines
EXPORTING = {"bincounter", "bincounter.config", "bincounter.data.layouts"}  # the other __init__.py are a docstring
VAGUE = {"utils", "helpers", "common", "misc", "tools"}


def lines(module: str) -> int:
    return len(modules()[module].read_text().splitlines())


def test_file_names_are_unique() -> None:
    names = Counter(path.name for path in modules().values() if path.name != "__init__.py")
    assert [name for name, files in names.items() if files > 1] == []
    assert not VAGUE & {path.stem for path in modules().values()}


def test_no_file_is_too_long() -> None:
    assert {module: lines(module) for module in modules() if lines(module) > LONGEST} == {}


def test_a_short_file_serves_several_others() -> None:
    importers = Counter(target for targets in imports().values() for target in targets)
    files = [module for module, path in modules().items() if path.name not in ("__init__.py", "__main__.py")]
    assert [each for each in files if importers[each] == 1 and lines(each) < SHORTEST] == []


def test_packages_hold_no_code() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        module = ".".join(path.parent.relative_to(PACKAGE.parent).parts)
        body = ast.parse(path.read_text()).body
        assert module in EXPORTING or len(body) == 1, f"{module}: only a docstring"


def test_module_docstrings_are_noun_phrases() -> None:
    for module, path in modules().items():
        assert _first_word(path), f"{module} has no docstring"
    folders = ("bincounter", "packages", "hydra_plugins", "benchmarks", "tests")
    files = [path for folder in folders for path in (PACKAGE.parent / folder).rglob("*.py")]
    assert [str(path) for path in files if _first_word(path) in ("What", "Who", "Where", "Whether", "Which")] == []


def _first_word(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text())) or "").split(" ")[0]
