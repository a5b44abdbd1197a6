"""Parts of the benchmarks that need neither hours nor the machine they are for."""

import importlib
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import REPOSITORY
from PIL import Image


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module("training_loops")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for side in ("train", "test"):
        for number in range(4):
            path = tmp_path / side / str(1 + number % 2) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32)).save(path)
    return tmp_path


def learn(folder: Path, batch_size: int) -> dict[str, Any]:
    options = {"model": "resnet18", "size": 32, "epochs": 1, "lr": 1e-3, "bf16": False, "seed": 0}
    return options | {"loop": "learn", "folder": str(folder), "batch_size": batch_size}


def test_photos_and_counts_are_on_the_device_of_the_network(
    loops: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "device", lambda: torch.device("meta"))  # computes nothing, and mixes with no other
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which has none, and no fused optimizer
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, lr, **_: torch.optim.SGD(groups, lr))
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):  # the scores, at the end
        loops._learn(learn(folder, 2))


@pytest.mark.parametrize("loop", ["plain", "tuned", "learn"])
def test_fewer_photos_than_a_batch_are_refused(
    loops: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    options = learn(folder, 64) | {"loop": loop, "frozen": True, "steps": 2}
    if loop != "learn":
        options["folder"] += "/train"
    monkeypatch.setattr("sys.argv", ["training_loops.py", json.dumps(options)])
    with pytest.raises(SystemExit, match="4 photos are fewer than a batch of 64"):
        loops.main()


def test_quick_and_whole_rows_are_in_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    ablations: Any = importlib.import_module("ablations")
    started: list[list[str]] = []
    monkeypatch.setattr(ablations.subprocess, "run", lambda command, **_: started.append(command))
    monkeypatch.delattr("os.sched_getaffinity", raising=False)  # as on macOS
    (tmp_path / "base-0").mkdir()
    (tmp_path / "base-0" / "metrics.json").write_text("{}")
    quick = ["ablations.py", "--folder", str(tmp_path), "--rows", "base", "--quick", "--at-once", "2"]
    monkeypatch.setattr("sys.argv", quick)
    ablations.main()
    (command,) = started
    assert f"paths.output_dir={tmp_path / 'quick' / 'base-0'}" in command
    assert "| base" not in capsys.readouterr().out
