"""``bincounter train`` in the background, led to a rehearsal."""

import signal
import subprocess

from commands import REPOSITORY, command, environment

from sagemaker_rehearsal import without_aws


def launched(*overrides: str, plane: dict[str, str], stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """``bincounter train`` in the background."""
    # What a script runs in the background, as CI may run all this, has Ctrl-C ignored, and so have its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            command("train.py", *overrides),
            cwd=REPOSITORY,
            env={**without_aws(environment()), **plane},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)


def wait_for(start: str, process: subprocess.Popen[str]) -> None:
    """Read what a command says until a line begins with ``start``."""
    assert process.stderr is not None
    assert any(line.startswith(start) for line in process.stderr), f"it ended without {start!r}"
