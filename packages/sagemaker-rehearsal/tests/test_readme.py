"""The examples of the README, run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sagemaker_rehearsal import without_aws

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.long
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
    status, first, second, answer = done.stdout.splitlines()
    assert status == f"Completed {[*attempt, 'Interrupted', *attempt, 'Uploading', 'Completed']}"
    assert re.fullmatch(r"first/algo-1-\d+ \['started'\]", first)
    assert re.fullmatch(r"first/algo-1-\d+ \['resumed'\]", second)
    assert answer == """b'{"bytes":5}'"""
