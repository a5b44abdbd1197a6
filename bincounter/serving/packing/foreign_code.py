"""Code of a model that is not bincounter's: a distribution becomes a requirement, one's own files travel along."""

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

from bincounter.errors import UserError
from bincounter.model.build import OWN_PARTS

_GIVEN = frozenset({"torch", "torchvision", "PIL", "numpy", "bincounter"})  # images bring them, the archive the last
_TAKEN = frozenset({"bincounter", "inference", "deployment"})  # modules of the archive's own


@dataclass
class ForeignCode:
    """What an archive needs beside bincounter's own code.

    Attributes:
        files: source files by their path below ``code/``.
        requirements: ``name==version`` of distributions.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    requirements: set[str] = field(default_factory=set)


def foreign_code(targets: Iterable[str]) -> ForeignCode:
    """Collect what callables need that are not part of bincounter, with all that their own files import.

    Args:
        targets: dotted names of callables that can be imported here.

    Raises:
        UserError: code that cannot be found as files, or has a name that the archive's own code has.
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
            continue  # an import that is tried; what is really missing, the parity gate finds
        if (installed := _from_index(distributions.get(name, ()))) is not None:
            code.requirements.add(f"{installed.name}=={installed.version.partition('+')[0]}")
            continue
        files = dict(_sources(name, spec))
        code.files |= files
        waiting += [(imported, False) for source in files.values() for imported in _imports(source)]
    return code


def _modules_of(target: str) -> set[str]:
    """Top-level modules of a callable: where it is named, and where it is defined."""
    defined = getattr(get_object(target), "__module__", target)
    for module in (target, defined):
        if f"{module}.".startswith("bincounter.") and not f"{module}.".startswith(OWN_PARTS):
            raise UserError(
                f"The model is built by {target}, which lies in bincounter but not among its backbones and objectives: "
                "move it to a file of your own, and train or score from there"
            )
    return {target.partition(".")[0], defined.partition(".")[0]}


def _from_index(names: Iterable[str]) -> Distribution | None:
    """The first of these distributions that a package index has; ``None`` where a module is a file of one's own."""
    for name in names:
        installed = distribution(name)
        origin = json.loads(installed.read_text("direct_url.json") or "{}")
        if not str(origin.get("url", "")).startswith("file:"):  # an index cannot bring what was installed from a folder
            return installed
    return None


def _sources(name: str, spec: ModuleSpec | None) -> Iterator[tuple[str, bytes]]:
    """The source files of a module or a package, by their path beside it."""
    if name in _TAKEN:
        raise UserError(
            f"The model's own module {name} has the name of one of the archive's: rename it, and train anew"
        )
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    paths = {
        f"{name}/{path.relative_to(folder).as_posix()}": path for folder in folders for path in folder.rglob("*.py")
    }
    if spec and not folders and spec.origin and spec.origin.endswith(".py"):
        paths = {f"{name}.py": Path(spec.origin)}
    if not paths:
        raise UserError(
            f"The code of {name}, which builds the model, is in no source file that could go into the archive: start "
            "this command where its files lie"
        )
    for path in sorted(paths):
        yield path, paths[path].read_bytes()


def _imports(source: bytes) -> Iterator[str]:
    """Top-level names of what a source file imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
