"""Code of a model outside of bincounter: a distribution becomes a requirement, source files go into the archive."""

import ast
import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, distribution, packages_distributions
from pathlib import Path

from hydra.utils import get_object

from bincounter.data.layouts.base import walk
from bincounter.errors import UserError
from bincounter.model.trust import OWN_PARTS

_GIVEN = frozenset({"torch", "torchvision", "PIL", "numpy", "bincounter"})  # installed in images; the last, archived
_TAKEN = frozenset({"bincounter", "inference", "deployment"})  # modules of the archive


@dataclass
class ForeignCode:
    """Files and requirements of an archive beside bincounter's own code.

    Attributes:
        files: source files by their path below ``code/``.
        requirements: ``name==version`` of distributions.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    requirements: set[str] = field(default_factory=set)


def foreign_code(targets: Iterable[str]) -> ForeignCode:
    """Collect the code of callables outside of bincounter, and of everything their source files import.

    Args:
        targets: dotted names of importable callables.

    Raises:
        UserError: code is not in source files, or has the name of a module of the archive.
    """
    code = ForeignCode()
    waiting = [(name, True) for target in targets for name in _modules_of(target)]
    seen, distributions = set(_GIVEN), packages_distributions()
    while waiting:
        name, required = waiting.pop()
        if name in seen or name in sys.stdlib_module_names:
            continue
        seen.add(name)
        spec = importlib.util.find_spec(name)
        if spec is None and not required:
            continue  # perhaps an optional import; the parity gate detects required ones
        if (installed := _from_index(distributions.get(name, ()))) is not None:
            code.requirements.add(f"{installed.name}=={installed.version.partition('+')[0]}")
            continue
        files = dict(_sources(name, spec))
        code.files |= files
        waiting += [(imported, False) for source in files.values() for imported in _imports(source)]
    return code


def _modules_of(target: str) -> set[str]:
    """Top-level modules of a callable: those of its name and of its definition."""
    defined = getattr(get_object(target), "__module__", target)
    for module in (target, defined):
        if f"{module}.".startswith("bincounter.") and not f"{module}.".startswith(OWN_PARTS):
            raise UserError(
                f"The model is built by {target}, which is in bincounter but not one of its backbones and objectives: "
                "move it to a file of your own, and train or score from there"
            )
    return {target.partition(".")[0], defined.partition(".")[0]}


def _from_index(names: Iterable[str]) -> Distribution | None:
    """First of these distributions that came from a package index; ``None`` for local source files."""
    for name in names:
        installed = distribution(name)
        origin = json.loads(installed.read_text("direct_url.json") or "{}")
        if not str(origin.get("url", "")).startswith("file:"):  # installed from a folder
            return installed
    return None


def _sources(name: str, spec: ModuleSpec | None) -> Iterator[tuple[str, bytes]]:
    """Yield the source files of a module or package, by their path relative to its parent."""
    if name in _TAKEN:
        raise UserError(
            f"The model's own module {name} has the name of a module of the archive: rename it, and train again"
        )
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    paths = {
        f"{name}/{found.name}": folder / found.name
        for folder in folders
        for found in walk(folder)
        if found.name.endswith(".py") and found.problem is None
    }
    if spec and not folders and spec.origin and spec.origin.endswith(".py"):
        paths = {f"{name}.py": Path(spec.origin)}
    if not paths:
        raise UserError(
            f"The code of {name}, which builds the model, is not in source files that could go into the archive: "
            "run this command in the folder of its files"
        )
    for path in sorted(paths):
        yield path, paths[path].read_bytes()


def _imports(source: bytes) -> Iterator[str]:
    """Yield the top-level names that a source file imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
