"""The wheel, installed outside of the checkout: commands, configuration, and the code that a job is sent.

WHEEL_PYTHON names the interpreter of an environment with nothing but bincounter's requirements: ``make test-wheel``.
"""

import csv
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from commands import REPOSITORY, environment

from bincounter.cloud.hyperparameters import encode_overrides

pytestmark = pytest.mark.skipif(
    "WHEEL_PYTHON" not in os.environ, reason="the wheel's own environment is missing here: make test-wheel"
)
QUICK = [
    "experiment=demo",
    "model=cnn",
    "model.backbone.width=8",
    "data.layout.photos=90",
    "data.image_size=32",
    "data.batch_size=8",
    "data.num_workers=0",
    "trainer=cpu",
    "trainer.max_epochs=1",
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(REPOSITORY))
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def interpreter(wheel: Path) -> Path:
    """Python with the wheel installed, and without the checkout."""
    python = REPOSITORY / os.environ["WHEEL_PYTHON"]
    pip("--python", str(python), "install", "--no-deps", "--no-index", "--force-reinstall", str(wheel))
    return python


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    subprocess.run(command, check=True, timeout=300)


def run(python: Path, folder: Path, *arguments: str) -> str:
    """Run the installed Python or its script ``bincounter`` in a folder that is not the checkout."""
    program = [str(python)] if arguments[0].startswith("-") else [str(python.parent / arguments[0])]
    rest = arguments if arguments[0].startswith("-") else arguments[1:]
    own = {name: value for name, value in environment().items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [*program, *rest], cwd=folder, env=own, capture_output=True, text=True, check=False, timeout=400
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def trained(interpreter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder that a run was started in; the run is in ``run``."""
    folder = tmp_path_factory.mktemp("elsewhere")
    out = run(interpreter, folder, "bincounter", "train", *QUICK, "paths.output_dir=run")
    assert out.splitlines()[-1] == str(folder / "run")
    return folder


def test_everything_is_in_the_wheel(wheel: Path) -> None:
    tracked = subprocess.check_output(
        ["git", "ls-files", "bincounter", "conf", "hydra_plugins"], cwd=REPOSITORY, text=True
    ).splitlines()
    there = {name for name in tracked if (REPOSITORY / name).exists()}
    expected = {f"bincounter/{name}" if name.startswith("conf/") else name for name in there}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
    assert expected <= names
    assert not [name for name in names if not name.startswith(("bincounter/", "hydra_plugins/bincounter/"))]
    assert "License-Expression: Apache-2.0\n" in metadata


def test_the_code_that_runs_is_that_of_the_wheel(interpreter: Path, tmp_path: Path) -> None:
    found = run(interpreter, tmp_path, "-c", "import bincounter; print(bincounter.__file__)").strip()
    assert Path(found).is_relative_to(interpreter.parents[1])


def test_the_demo_trains_and_reports(trained: Path) -> None:
    assert (trained / "run" / "report.html").stat().st_size > 10_000
    assert json.loads((trained / "run" / "metrics.json").read_text())["val"]["n"] > 0
    # The environment may lie in some repository, which has no commit of bincounter.
    assert json.loads((trained / "run" / "provenance.json").read_text())["commit"] is None


def test_an_example_is_trained_with(interpreter: Path, trained: Path) -> None:
    example = REPOSITORY / "examples/own_backbone"
    settings = ["model=dilated" if word == "model=cnn" else word for word in QUICK]
    run(interpreter, trained, "bincounter", "train", "--config-dir", str(example), *settings, "paths.output_dir=own")
    program = "import bincounter; print(bincounter.Run('own').scores['val']['n'] > 0)"
    assert run(interpreter, trained, "-c", program) == "True\n"


def test_a_data_set_is_explored(interpreter: Path, trained: Path) -> None:
    assert run(interpreter, trained, "bincounter", "explore", *QUICK).splitlines()[-1] == "data.html"
    assert (trained / "data.html").stat().st_size > 10_000


def test_photos_are_counted(interpreter: Path, trained: Path) -> None:
    photo = next(path for path in (trained / "data").rglob("*") if path.suffix in (".jpg", ".png"))
    checkpoint = ["--ckpt-path", "run/checkpoints/best.ckpt"]
    run(interpreter, trained, "bincounter", "predict", str(photo), *checkpoint, "--csv", "counts.csv")
    with (trained / "counts.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 1


def test_bins_are_audited(interpreter: Path, trained: Path) -> None:
    photos = sorted(path for path in (trained / "data").rglob("*") if path.suffix in (".jpg", ".png"))[:20]
    root = Path(os.path.commonpath([photo.parent for photo in photos]))
    lines = [f"A-{number},{photo.relative_to(root)},2" for number, photo in enumerate(photos)]
    (trained / "stock.csv").write_text("\n".join(["bin,photo,expected", *lines]) + "\n")
    checkpoint = ["--ckpt-path", "run/checkpoints/best.ckpt"]
    out = run(interpreter, trained, "bincounter", "audit", str(root), "--record", "stock.csv", *checkpoint)
    assert "of 20 records are expected to be wrong" in out
    assert f"Next: bincounter review audit.csv --photos={root}" in out
    with (trained / "audit.csv").open(newline="") as file:
        wrong = [float(row["record_wrong"]) for row in csv.DictReader(file) if row["record_wrong"]]
    assert len(wrong) == 20 and wrong == sorted(wrong, reverse=True)
    assert (trained / "audit.html").stat().st_size > 10_000


def test_what_would_be_served_is_said(interpreter: Path, trained: Path) -> None:
    out = run(interpreter, trained, "bincounter", "deploy", "ckpt_path=run", "dry_run=true")
    assert out.startswith("Would pack run/checkpoints/best.ckpt into run/endpoint/model.tar.gz, compare 64 photos")
    paid = ["target=realtime", "target.role=arn:aws:iam::123456789012:role/bins", "target.bucket=bins"]
    out = run(interpreter, trained, "bincounter", "deploy", "ckpt_path=run", *paid, "dry_run=true")
    assert "CreateEndpoint" in out


def test_what_a_job_would_be_sent_is_said(interpreter: Path, trained: Path) -> None:
    launcher = ["launcher=sagemaker_spot", "launcher.bucket=bins", "launcher.role=arn:aws:iam::123456789012:role/bins"]
    out = run(interpreter, trained, "bincounter", "train", *QUICK[:-2], *launcher, "dry_run=true")
    assert json.loads(out)["EnableManagedSpotTraining"] is True


def test_the_code_that_a_job_is_sent_runs_without_the_wheel(interpreter: Path, tmp_path: Path) -> None:
    pack = (
        "from pathlib import Path; from bincounter.cloud import code_archive, sagemaker_launcher; "
        """commit = {'commit.json': b'{"commit": "shipped", "clean": true}'}; """
        "code_archive.pack(sagemaker_launcher.REPOSITORY, Path('code.tar.gz'), extra=commit)"
    )
    run(interpreter, tmp_path, "-c", pack)
    code, base = tmp_path / "code", tmp_path / "ml"
    with tarfile.open(tmp_path / "code.tar.gz") as tar:
        tar.extractall(code, filter="data")
    generated = {"commit.json", "requirements.txt", "start.py"}
    assert {path.name for path in code.iterdir()} == {"bincounter", "hydra_plugins", *generated}
    pins = (code / "requirements.txt").read_text()
    assert "\nhydra-core==" in pins and "\ntorch==" not in pins and "optuna" not in pins
    (base / "input" / "config").mkdir(parents=True)
    (base / "input" / "config" / "hyperparameters.json").write_text(json.dumps(encode_overrides(QUICK)))
    done = subprocess.run(
        [sys.executable, str(code / "start.py")],
        cwd=code,
        env={**environment(), "SAGEMAKER_BASE_DIR": str(base), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    (provenance,) = (base / "checkpoints").rglob("provenance.json")
    assert json.loads(provenance.read_text())["commit"] == "shipped"
