"""Set-up of a clone: the environments of the Makefile, and the script of CI, with stand-ins for what they start."""

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
