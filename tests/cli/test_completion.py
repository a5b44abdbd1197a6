"""Tab completion: candidates for a line, and a real bash at a terminal."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import REPOSITORY, Run, environment

SCRIPT = Path(sys.executable).parent / "bincounter"
EXAMPLE = REPOSITORY / "examples/own_backbone"
LINES = {
    "bincounter t": {"train"},
    "bincounter train model=resnet": {"model=resnet18", "model=resnet34", "model=resnet50"},
    "bincounter train -m model=resnet18,resnet34 model.optimizer.l": {"model.optimizer.lr="},
    "bincounter train 'model.optimizer.lr=interval(1e-4,1e-2)' -m trainer=g": {"trainer=gpu"},
    "bincounter train target": set(),  # of deploy
    "bincounter train ~model.backbone.na": {"~model.backbone.name"},
    "bincounter train ~experi": {"~experiment"},
    f"bincounter train --config-dir {EXAMPLE} model=dil": {"model=dilated"},
    f"bincounter train --config-dir={EXAMPLE} model=dil": {"model=dilated"},
    "bincounter deploy target.po": {"target.port="},
    "bincounter explore data=fol": {"data=folders"},
    "bincounter prepare FOLDER --as shards data=fol": {"data=folders"},
    "bincounter compare RUN --o": {"--output"},
    "bincounter compare RUN": set(),
    "bincounter train 'tags=[a": set(),
    "bincounter unknown w": set(),
}


@pytest.mark.parametrize("line", LINES, ids=str)
def test_candidates_of_a_line(line: str, run: Run) -> None:
    word = line.rpartition(" ")[2]
    found = run(str(SCRIPT), "-sc", "query=bash", "--", line).stdout.split()
    assert {each for each in found if each.startswith(word)} == LINES[line]


def test_the_same_script_is_installed_by_either_command(run: Run) -> None:
    script = run(str(SCRIPT), "-sc", "install=bash").stdout
    assert script.endswith("-F _bincounter bincounter\n")
    assert run(str(SCRIPT), "train", "--shell-completion", "install=bash").stdout == script
    assert "bash alone" in run(str(SCRIPT), "train", "-sc", "install=fish", code=2).stderr


def test_tab_completes_in_bash(tmp_path: Path) -> None:
    path = f"{SCRIPT.parent}:{os.environ['PATH']}"
    env = {**environment(), "PATH": path, "PS1": "$ ", "TERM": "dumb", "INPUTRC": "/dev/null"}
    terminal, side = pty.openpty()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "$(touch run)1").mkdir()
    shell = ["bash", "--norc", "--noprofile", "-i"]
    with subprocess.Popen(
        shell, cwd=tmp_path, env=env, stdin=side, stdout=side, stderr=side, start_new_session=True
    ) as bash:
        try:
            os.write(terminal, b'eval "$(bincounter train -sc install=bash)"; echo instal""led\n')
            read_until(terminal, "installed")
            for typed, shown in {
                "bincounter tra\t": "bincounter train ",
                "mod\t": "model",  # a group, and its settings
                "=resnet3\t": "=resnet34 ",
                "data.source=pho\t": "data.source=photos/",
                "\x15bincounter train data.source=./photos/\t": r"\$\(touch",
            }.items():
                os.write(terminal, typed.encode())
                read_until(terminal, shown)
        finally:
            bash.kill()
            os.close(side)
            os.close(terminal)
    assert not (tmp_path / "run").exists()


def read_until(terminal: int, text: str) -> None:
    """Read what the shell writes until a text comes."""
    shown, end = "", time.monotonic() + 120
    while text not in shown:
        ready, _, _ = select.select([terminal], [], [], 1)
        assert time.monotonic() < end, f"{text!r} did not come, but {shown!r}"
        if ready:
            shown += os.read(terminal, 4096).decode(errors="replace").replace("\a", "")
