"""The console script ``bincounter``: the same commands by any of its names, quick until one has work to do."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import REPOSITORY, Run, command, environment

import bincounter
from bincounter.cli import hydra_app, train_command

SCRIPT = str(Path(sys.executable).parent / "bincounter")
QUICK = """
import copy, os, sys

for name in ("torch", "lightning", "numpy", "PIL", "matplotlib", "pandas", "boto3", "rich", "http.client"):
    sys.modules[name] = None  # importing it raises
from hydra._internal import config_loader_impl
from hydra.core.config_store import ConfigStore
from bincounter.cli.main import main

compose, composed = config_loader_impl.create_defaults_list, []
config_loader_impl.create_defaults_list = lambda **options: composed.append(1) or compose(**options)
code = main()
store = ConfigStore.instance()
print(f"code {code}, {len(composed)} composed, copied: {copy.deepcopy(store) is not store}", file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], None, "COMMAND"),
        (["predict", "--help"], None, "--csv"),
        (["runs", "--help"], None, "--json"),
        (["train", "--help"], 0, "debugger: none, smdebug, tensors"),
        (["deploy", "--help"], 0, "action="),
        (["train", "--cfg", "job", "experiment=capstone_cnn"], 0, "capstone"),
        (["train", "foo=1"], 2, "Unknown setting 'foo'"),
        (["train", "hparams_search=optuna", "model.layers=5"], 2, "did you mean 'model.head.layers'"),
        (["train", "-m", "seed=1,2", "data.batchsize=8"], 2, "did you mean 'data.batch_size'"),
        (["train", "seed=x"], 2, "seed: Value 'x'"),
        (["train", "data.batch_size=0"], 2, "data.batch_size=0 is out of range"),
        (["train", "model=resnet"], 2, "model=resnet is not one of"),
        (["train", "modle=cnn"], 2, "did you mean 'model'"),
        (["deploy", "nme=x"], 2, "did you mean 'name'"),
        (["-sc", "query=bash", "--", "bincounter train data.bat"], 0, "data.batch_size="),
    ],
    ids=str,
)
def test_an_answer_composes_once_and_imports_no_numpy(
    arguments: list[str], code: int | None, said: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        command("-c", QUICK, *arguments), cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert said in done.stdout + done.stderr
    if code is None:  # argparse exits
        assert done.returncode == 0, done.stderr
    else:
        assert f"code {code}, 1 composed, copied: False" in done.stderr


def test_the_version_is_that_of_the_package(run: Run) -> None:
    assert run(SCRIPT, "--version").stdout == f"bincounter {bincounter.__version__}\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a file that is always full")
@pytest.mark.parametrize(
    "arguments", [["--version"], ["runs"], ["train", "--version"], ["train", "--cfg", "job"]], ids=str
)
def test_an_output_that_cannot_be_written_is_an_error(arguments: list[str], tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment["PYTHONPATH"] = str(REPOSITORY)

    def start(output: Any) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "bincounter", *arguments]  # the interpreter's own end is part of it
        return subprocess.run(
            program, cwd=tmp_path, env=environment, stdout=output, stderr=subprocess.PIPE, text=True, check=False
        )

    with Path("/dev/full").open("w") as full:
        done = start(full)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "the output cannot be written (no space left on device)" in done.stderr
    reader, writer = os.pipe()
    os.close(reader)
    done = start(writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("program", [["train.py"], [SCRIPT, "train"], ["-m", "bincounter", "train"]], ids=str)
def test_options_of_hydra_stand_anywhere(program: list[str], run: Run) -> None:
    for arguments in (["--cfg", "job", "seed=3"], ["seed=3", "--cfg", "job"]):
        assert yaml.safe_load(run(*program, *arguments).stdout)["seed"] == 3


def test_the_command_can_be_started_again_as_a_script(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bincounter", "train", "seed=3"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", object())
    hydra_app.start_as_script(str(train_command.__file__), ["seed=3"])
    assert sys.modules["__main__"].__spec__ is None
    assert yaml.safe_load(run(*sys.argv, "--cfg", "job").stdout)["seed"] == 3


@pytest.mark.parametrize("program", [[SCRIPT], ["-m", "bincounter"]], ids=str)
def test_own_modules_are_found_in_the_folder_that_a_command_is_started_in(program: list[str], tmp_path: Path) -> None:
    (tmp_path / "my_models.py").write_text("raise SystemExit('it was imported')\n")
    overrides = ["model.backbone._target_=my_models.tiny", "~model.backbone.name", "model.weights=null", "dry_run=true"]
    done = subprocess.run(
        command(*program, "train", *overrides),
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "it was imported" in done.stderr


def test_an_installed_configuration_comes_before_that_of_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hydra_app.conf_dir() == REPOSITORY / "conf"
    package = tmp_path / "bincounter"
    (package / "conf").mkdir(parents=True)
    monkeypatch.setattr(bincounter, "__file__", str(package / "__init__.py"))
    assert hydra_app.conf_dir() == package / "conf"


def test_a_command_that_does_not_exist_is_refused_with_those_that_do(run: Run) -> None:
    refused = run(SCRIPT, "trian", code=2).stderr
    assert "'trian'" in refused
    assert "'train'" in refused


@pytest.mark.parametrize("table", [False, True])
def test_predict_says_what_is_not_in_the_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], table: bool
) -> None:
    from PIL import Image

    from bincounter.cli.main import main
    from bincounter.data.preprocessing import decode

    for number in range(3):
        Image.new("RGB", (40 + number, 40), "red").save(tmp_path / f"{number}.png")
    (tmp_path / "4.png").write_bytes(b"no photo")
    heavy = (tmp_path / "1.png").read_bytes()

    def failing(data: bytes, size: int) -> Any:
        if data == heavy:
            raise MemoryError
        return decode(data, size)

    monkeypatch.setattr("bincounter.training.predictor.decode", failing)
    checkpoint = REPOSITORY / "tests/assets/classification/checkpoints/best.ckpt"
    options = ["--csv", str(tmp_path / "counts.csv")] if table else []
    assert main(["predict", str(tmp_path), "--ckpt-path", str(checkpoint), *options]) == 1
    shown = capsys.readouterr()
    written = (tmp_path / "counts.csv").read_text() if table else shown.err
    assert "not read, for want of memory" in written
    assert "not a JPEG, PNG or WebP image" in written
    assert "Error: 1 of 4 photos were not read" in shown.err
