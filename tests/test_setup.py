"""Set-up of a clone: the environments of the Makefile, and the script of CI, with stand-ins for what they start."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from commands import REPOSITORY

MAKEFILE = (REPOSITORY / "Makefile").read_text()
VENV = """#!/bin/sh
case "$*" in
*venv*)
    for folder in "$@"; do :; done
    case "$*" in *--clear*) rm -rf "$folder" ;; esac
    mkdir -p "$folder/bin"
    cp -n {whole} "$folder/bin/python"
    cp -n {whole} "$folder/bin/uv"
    ;;
esac
"""


def program(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(0o755)
    return path


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("name", re.findall(r"^(\.venv\S*)/\.installed:", MAKEFILE, re.MULTILINE))
def test_an_environment_that_was_half_made_is_made_again(tmp_path: Path, name: str) -> None:
    for file in ("pyproject.toml", "constraints.txt", "constraints-smdebug.txt"):
        (tmp_path / file).touch()
    (tmp_path / "packages/sagemaker-rehearsal").mkdir(parents=True)
    (tmp_path / "packages/sagemaker-rehearsal/pyproject.toml").touch()
    (tmp_path / "Makefile").write_text(MAKEFILE)
    program(tmp_path / name / "bin/python", "#!/bin/sh\necho No module named pip >&2\nexit 1\n")
    whole = program(tmp_path / "whole", "#!/bin/sh\n")
    python = program(tmp_path / "python", VENV.format(whole=whole))
    subprocess.run(
        ["make", f"{name}/.installed", f"PYTHON={python}", f"IMAGE_PYTHON={python}"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    assert (tmp_path / name / ".installed").exists()


@pytest.mark.parametrize("version", ["", "3.13.2"])
def test_ci_ends_whether_pyenv_has_the_interpreter_of_the_image_or_not(tmp_path: Path, version: str) -> None:
    script = program(tmp_path / ".ci/run", (REPOSITORY / ".ci/run").read_text())
    programs = {
        "chromium": "",
        "make": 'echo "$1"',
        "pyenv": f"printf '3.12.9\\n{version}\\n'",
        "python3.13": 'test "$PYENV_VERSION" = 3.13.2',
    }
    for name, content in programs.items():
        program(tmp_path / "bin" / name, f"#!/bin/sh\n{content}\n")
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYENV_VERSION": "3.12.9"}
    ended = subprocess.run([script], env=environment, capture_output=True, text=True, check=True)
    assert ("test-serving-image" in ended.stdout.split()) is bool(version)
    assert ("NOT RUN: make test-serving-image" in ended.stderr) is not bool(version)
