"""What all tests share: the real photos where there are any, a real server, and the commands as users run them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest_plugins = ["s3_server"]

REPOSITORY = Path(__file__).resolve().parent.parent
_PHOTOS = REPOSITORY.parent / "shared" / "abid"

Run = Callable[..., subprocess.CompletedProcess[str]]


def _photos(name: str) -> Path:
    folder = _PHOTOS / name
    if not folder.is_dir():
        pytest.skip(f"the real photos are not at ../shared/abid/{name}: see README, section Data")
    return folder


@pytest.fixture(scope="session")
def abid_photos() -> Path:
    """ABID photos resized to 224 pixels."""
    return _photos("resized-224")


@pytest.fixture(scope="session")
def abid_originals() -> Path:
    """ABID photos at original size."""
    return _photos("originals")


def environment() -> dict[str, str]:
    """One thread for each command: two tests run at a time, and results do not depend on the machine's cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


def command(*arguments: str) -> list[str]:
    """``python ARGUMENTS`` with the interpreter that runs the tests."""
    return [sys.executable, *arguments]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run ``python ARGUMENTS`` in the repository; ``code=`` is the exit code it must have."""

    def run_(*arguments: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command(*arguments),
            cwd=REPOSITORY,
            env={**environment(), **env},
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run_


@pytest.fixture
def train(run: Run, tmp_path: Path) -> Run:
    """Run train.py with all that it keeps under ``tmp_path``."""

    def train_(*overrides: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        paths = [f"paths.{name}_dir={tmp_path / name}" for name in ("data", "cache", "log")]
        return run("train.py", *paths, *overrides, code=code, **env)

    return train_
