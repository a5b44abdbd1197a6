"""The commands as users run them."""

import os
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from warm_python import Started, WarmPython, warm_python

REPOSITORY = Path(__file__).resolve().parent.parent

SMALL_RUN = (
    "data=folders",
    "data.image_size=32",
    "model=cnn",
    "model.backbone.width=4",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "callbacks=[none]",
    "logger=[csv]",
)
"""Settings of a run that takes seconds, on photos of one's own."""

_SHARED = "BINCOUNTER_WARM_PYTHON"

Run = Callable[..., subprocess.CompletedProcess[str]]
Process = Started | subprocess.Popen[str]
Start = Callable[..., Started]


def environment() -> dict[str, str]:
    """One thread for each command: two tests run at a time, and results do not depend on the machine's cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


@cache
def warm() -> WarmPython:
    """Return the process that runs ``python ARGUMENTS`` with imports shared by all commands of the tests."""
    shared = os.environ.get(_SHARED)
    return WarmPython(Path(shared)) if shared else started.enter_context(warm_python(environment()))


def share_warm() -> None:
    """Start it for the workers of pytest-xdist, which begin as copies of this process's environment."""
    os.environ[_SHARED] = str(warm().folder)


started = ExitStack()
"""Closed at the end of the tests."""


def command(*arguments: str) -> list[str]:
    """``python ARGUMENTS`` for :mod:`subprocess`, where :func:`warm` does not do."""
    return [warm().executable, *arguments]
