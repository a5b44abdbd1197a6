"""Folder of a run: its paths, lock, config.yaml and provenance.json; search of the newest checkpoint."""

import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import IO, Any, Self

import torch
import yaml

import bincounter
from bincounter.errors import UserError
from bincounter.files import lock, read_json, write_json, write_text
from bincounter.redaction import mask_argument, mask_secrets
from bincounter.training.resume import is_debug_run

log = logging.getLogger(__name__)


class RunFolder:
    """Folder of one run; the end of a ``with`` block releases its lock.

    Args:
        path: path of the folder; created by :meth:`claim` if missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: IO | None = None
        self._opened = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    @property
    def seconds(self) -> float:
        """Seconds since this object was created."""
        return round(time.monotonic() - self._opened, 1)

    @property
    def checkpoints(self) -> Path:
        """Folder of ``best.ckpt`` and ``last.ckpt``."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """Path of the checkpoint to resume from, which may not exist yet."""
        return self.checkpoints / "last.ckpt"

    def claim(self, *, fresh: bool) -> None:
        """Lock the folder for this process.

        Args:
            fresh: for a new run: the folder must not hold another.

        Raises:
            UserError: another process uses the folder, or it holds a run that would be overwritten.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("w")
        if not lock(self._lock, wait=10.0):  # the workers of a killed process live for some seconds more
            raise UserError(
                f"{self.path} is in use by another process: wait for it, or choose another paths.output_dir"
            )
        if fresh and (self.last.exists() or (self.checkpoints / "best.ckpt").exists()):
            raise UserError(
                f"{self.path} already holds a run: resume it with ckpt_path=last, or choose another paths.output_dir"
            )

    def describe(self, config: Mapping[str, Any], overrides: Sequence[str], facts: Mapping[str, Any]) -> None:
        """Write ``config.yaml``, ``overrides.txt`` and ``provenance.json``; secrets are masked."""
        lines = [mask_argument(override) for override in overrides]
        write_text(self.path / "overrides.txt", "".join(f"{line}\n" for line in lines))
        origin = {**provenance(), **facts}
        write_json(self.path / "provenance.json", origin)
        write_text(self.path / "config.yaml", yaml.safe_dump(mask_secrets(config), sort_keys=False, allow_unicode=True))

    def add_facts(self, facts: Mapping[str, Any]) -> None:
        """Add entries to ``provenance.json``."""
        path = self.path / "provenance.json"
        write_json(path, {**(read_json(path, "restore it, or start a new run") or {}), **facts})


COMMIT_FILE = "commit.json"
"""Name of the file with the commit of code shipped without its repository."""

_PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "numpy", "pillow")


def provenance() -> dict[str, Any]:
    """Describe command, code, versions and machine of this process; secrets in the command are masked."""
    return {
        "command": [mask_argument(argument) for argument in sys.argv],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "bincounter": bincounter.__version__,
        **code_commit(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "machine": {
            "system": platform.platform(),
            "processor": torch.cpu.get_capabilities().get("cpu_name", platform.machine())
            if hasattr(torch.cpu, "get_capabilities")
            else platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def code_commit() -> dict[str, Any]:
    """Return the ``commit`` of the running code and ``clean`` (no changes since); both ``None`` if unknown.

    Code shipped to a job has both in a file. Git is used only in a checkout of bincounter: a repository around the
    environment in which it is installed, or around a copy of it, has other commits.
    """
    package = Path(bincounter.__file__).resolve().parent
    shipped = package.parent / COMMIT_FILE
    if shipped.exists():
        return json.loads(shipped.read_text(encoding="utf-8"))
    top = _git(package, "rev-parse", "--show-toplevel")
    if top and Path(top) == package.parent and _git(package, "ls-files", "--error-unmatch", "__init__.py"):
        return {"commit": _git(package, "rev-parse", "HEAD"), "clean": _git(package, "status", "--porcelain") == ""}
    installed = _installed_commit(package)
    return {"commit": installed, "clean": True if installed else None}


def _installed_commit(package: Path) -> str | None:
    """Commit of a package that pip installed from a repository (PEP 610), else ``None``."""
    try:
        installed = distribution("bincounter")
    except PackageNotFoundError:
        return None
    if Path(str(installed.locate_file("bincounter"))).resolve() != package:
        return None
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    return origin.get("vcs_info", {}).get("commit_id")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command in a folder; ``None`` if it fails."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def find_newest_checkpoint(log_dir: Path, *, named_by: str) -> Path:
    """Find the newest ``best.ckpt``, except those of debug runs, and log its path.

    Args:
        log_dir: folder of the runs, searched recursively.
        named_by: option that takes a checkpoint, for the message.

    Raises:
        UserError: there is none.
    """
    newest_first = sorted(log_dir.glob("**/checkpoints/best.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True)
    found = next((path for path in newest_first if not is_debug_run(path.parents[1])), None)
    if found is None:
        kind = "checkpoint" if not newest_first else "checkpoint but those of debug runs"
        raise UserError(
            f"{log_dir}/ has no {kind}: train one first (bincounter train experiment=demo), or give its path with "
            f"{named_by}"
        )
    log.info("Using %s", found)
    return found
