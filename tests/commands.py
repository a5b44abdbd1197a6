"""The commands as users run them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from warm_python import Started

REPOSITORY = Path(__file__).resolve().parent.parent

Run = Callable[..., subprocess.CompletedProcess[str]]
Process = Started | subprocess.Popen[str]
Start = Callable[..., Process]


def environment() -> dict[str, str]:
    """One thread for each command: two tests run at a time, and results do not depend on the machine's cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


def command(*arguments: str) -> list[str]:
    """``python ARGUMENTS`` with the interpreter that runs the tests."""
    return [sys.executable, *arguments]
