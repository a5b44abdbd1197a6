"""Where a result came from: the command, the code, the versions, the machine."""

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
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
    """The commit of the code that runs, and whether nothing was changed since; what is shipped brings it in a file."""
    shipped = Path(bincounter.__file__).parent.parent / SHIPPED
    if shipped.exists():
        return json.loads(shipped.read_text(encoding="utf-8"))
    return {"commit": _git("rev-parse", "HEAD"), "clean": _git("status", "--porcelain") == ""}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """What git says of the code that runs, ``None`` where it is no checkout."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
