"""The examples of the README, run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

from sagemaker_rehearsal import without_aws

README = Path(__file__).parents[1] / "README.md"


def test_the_examples_run(tmp_path: Path) -> None:
    _, training, endpoint = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    program = tmp_path / "example.py"
    program.write_text(training + endpoint, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=tmp_path,
        env=without_aws(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    attempt = ["Starting", "Downloading", "Training"]
    status, *log, answer = done.stdout.splitlines()
    assert status == f"Completed {[*attempt, 'Interrupted', *attempt, 'Uploading', 'Completed']}"
    printed = [line.split() for line in log if line.endswith((" started", " resumed"))]
    assert [line for _, line in printed] == ["started", "resumed"]
    assert len({stream for stream, _ in printed}) == 2
    assert answer == """b'{"bytes":5}'"""
