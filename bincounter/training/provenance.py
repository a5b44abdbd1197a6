"""Where a result came from: the command, the code, the versions, the machine."""

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import torch

import bincounter
from bincounter.training.secrets import masked_argument

SHIPPED = "commit.json"
"""Where code that was shipped without its repository says which commit it is."""

_PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "numpy", "pillow")


def provenance() -> dict[str, Any]:
    """Say how this process was started, on which code and which machine; secrets in the command line are masked."""
    return {
        "command": [masked_argument(argument) for argument in sys.argv],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "bincounter": bincounter.__version__,
        **commit(),
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


def commit() -> dict[str, Any]:
    """The commit of the code that runs, and whether nothing was changed since; both ``None`` where nobody knows.

    What is shipped brings it in a file. git is asked about files that it tracks: a repository around the environment
    that bincounter is installed in has commits of something else.
    """
    package = Path(bincounter.__file__).resolve().parent
    shipped = package.parent / SHIPPED
    if shipped.exists():
        return json.loads(shipped.read_text(encoding="utf-8"))
    if _git(package, "ls-files", "--error-unmatch", "__init__.py"):
        return {"commit": _git(package, "rev-parse", "HEAD"), "clean": _git(package, "status", "--porcelain") == ""}
    installed = _installed_commit(package)
    return {"commit": installed, "clean": True if installed else None}


def _installed_commit(package: Path) -> str | None:
    """The commit that pip installed, where it was given the address of a repository."""
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
    """What git says in a folder, ``None`` where it fails."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
