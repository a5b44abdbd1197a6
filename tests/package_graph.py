"""The modules of bincounter and the imports between them, read from the source."""

import ast
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "bincounter"


@cache
def modules() -> dict[str, Path]:
    """Path of every module, by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports() -> dict[str, set[str]]:
    """Modules of bincounter that each module imports, lazily and for type checking included."""
    return {name: _imported(name, path) for name, path in modules().items()}


def _imported(name: str, path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "bincounter":
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in modules() else str(node.module))
    return found - {name, "bincounter"}


def room(module: str) -> str:
    """The folder below bincounter/ that a module is in; empty for those of the ground floor."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else ""
