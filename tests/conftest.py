"""Fixtures of all tests: the real photos if present, a real server, and the commands as users run them."""

import gc
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import absl.logging
import boto3
import hypothesis
import pytest
from commands import REPOSITORY, Run, Start, environment, share_warm, started, warm
from warm_python import WarmPython

from sagemaker_rehearsal import rehearsed

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Before torch is imported: on busy cores its threads wait for each other far longer than they work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A look at all that torch and the tests themselves hold finds no garbage, and was an eighth of the time.
gc.set_threshold(10_000, 20, 50)
# A deadline of 200 ms an example is an assertion of time.
hypothesis.settings.register_profile("bincounter", deadline=None)
hypothesis.settings.load_profile("bincounter")

pytest_plugins = ["s3_server", "squares", "rehearsed", "local_server", "archives", "bins", "served_runs", "aws_servers"]

# `make test-quick` leaves out tests that start programs, servers or browsers, known by their fixtures, and files whose
# tests start them by themselves or take seconds.
_SLOW_FIXTURES = {
    *("python", "browser", "s3_server", "plane", "moto", "server", "running", "served", "service", "ask"),
    *("aws", "scripted"),
}
_SLOW_FILES = {
    *("test_access.py", "test_completion.py"),
    *("test_advice.py", "test_api.py", "test_commands.py", "test_container.py", "test_count_by_count.py"),
    *("test_data_report.py", "test_decode_pool.py", "test_demo.py", "test_docs.py"),
    *("test_grouping.py", "test_launcher.py", "test_local.py", "test_mlflow.py", "test_predict.py", "test_readme.py"),
    *("test_report.py", "test_rules.py", "test_settings.py", "test_study.py", "test_sweep_page.py"),
    *("test_train.py", "test_training_rehearsal.py", "test_wheel.py"),
}

_PHOTOS = REPOSITORY.parent / "shared" / "abid"


def _photos(name: str) -> Path:
    folder = _PHOTOS / name
    if not folder.is_dir():
        pytest.skip(f"the real photos are not at ../shared/abid/{name}: see docs/data.md, The public dataset")
    return folder


def pytest_configure(config: pytest.Config) -> None:
    """Let Ctrl-C arrive, which shells have programs in the background ignore; start what all workers share."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("tx", None):  # of pytest-xdist's workers, which have none themselves
        share_warm()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark slow and long tests."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if item.path.name in _SLOW_FILES or _SLOW_FIXTURES & fixtures:
            item.add_marker("slow")
        if "plane" in fixtures:  # jobs and endpoints that the rehearsal carries out
            item.add_marker("long")


def pytest_collection_finish() -> None:
    """Keep the output open: Hydra closes all handlers of logs, and that of absl closes the stream it was made with."""
    absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture(scope="session")
def abid_photos() -> Path:
    """ABID photos resized to 224 pixels."""
    return _photos("resized-224")


@pytest.fixture(scope="session")
def abid_originals() -> Path:
    """ABID photos at original size."""
    return _photos("originals")


@pytest.fixture(autouse=True)
def _own_session() -> Iterator[None]:
    """boto3 keeps the credentials it found first in a session that all of a process share."""
    yield
    boto3.DEFAULT_SESSION = None


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """A command that a test calls in its own process leaves handlers of a log in a folder that is deleted."""
    before = logging.root.handlers[:]
    yield
    logging.root.handlers[:] = before


def pytest_sessionfinish() -> None:
    """End what commands share."""
    started.close()


@pytest.fixture(scope="session")
def python() -> WarmPython:
    """Runs ``python ARGUMENTS`` with imports that all commands of the tests share."""
    return warm()


@pytest.fixture(scope="session")
def plane(python: WarmPython, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A control plane as ``rehearsed.plane``, whose jobs share the imports too."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", python.executable)
        variables = stack.enter_context(rehearsed(tmp_path_factory.mktemp("rehearsal"), grace=0.5))
        patch.undo()
        yield variables


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """The Chromium that is installed; the test is skipped where none is."""
    from browser import chromium  # playwright, which most tests do without

    with chromium() as browser:
        yield browser


@pytest.fixture
def run(python: WarmPython) -> Run:
    """Run ``python ARGUMENTS`` in the repository or ``cwd``; ``code=`` is the exit code it must have."""

    def run_(*arguments: str, code: int = 0, cwd: Path = REPOSITORY, **env: str) -> subprocess.CompletedProcess[str]:
        done = python.run(arguments, cwd, {**environment(), **env})
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run_


@pytest.fixture(scope="session")
def start(python: WarmPython) -> Start:
    """Start ``python ARGUMENTS`` in the repository, and do not wait for its end."""
    return lambda *arguments: python.start(arguments, REPOSITORY, environment())


@pytest.fixture
def train(run: Run, tmp_path: Path) -> Run:
    """Run train.py with all that it keeps under ``tmp_path``."""

    def train_(*overrides: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        paths = [f"paths.{name}_dir={tmp_path / name}" for name in ("data", "cache", "log")]
        return run("train.py", *paths, *overrides, code=code, **env)

    return train_
