"""Training jobs as SageMaker runs them: its folder tree, its toolkit, and nothing but hyperparameters to go by."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from bins import square_bins
from commands import REPOSITORY, command, environment
from outputs import read_rows, tensors

from bincounter.cli import container_command, train_command
from bincounter.cli.hydra_app import compose
from bincounter.cloud.container import channel, run_folder
from bincounter.cloud.hyperparameters import encode_overrides
from bincounter.errors import ConfigError

OVERRIDES = [
    "launcher=sagemaker_spot",
    "launcher.max_run=600",
    "dry_run=false",
    "paths.output_dir=somewhere/else",
    "data=folders",
    "data.source=s3://bucket/bins",
    "data.image_size=32",
    "data.batch_size=8",
    "data.num_workers=0",
    "model=cnn",
    "model.backbone.width=8",
    "model.head.dropout=0.2",
    "trainer=cpu",
    "trainer.max_epochs=3",
    "checkpoint.every_n_train_steps=2",
    "callbacks=[none]",
    "logger=[csv]",
    "+trainer.enable_progress_bar=false",
    "tags=['two words',\"it's\"]",
    "test=false",
]


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shipped files: the tracked ones, and the program that the toolkit starts."""
    folder = tmp_path_factory.mktemp("shipped")
    listed = subprocess.run(
        ["git", "ls-files", "bincounter", "conf", "train.py"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, folder / name)
    (folder / "start.py").write_text(
        "import sys\nfrom bincounter.cli.container_command import main\nsys.exit(main())\n"
    )
    return folder


@pytest.fixture(scope="module")
def bins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return square_bins(tmp_path_factory.mktemp("bins"), photos=120)


def container(base: Path, code: Path, bins: Path, *overrides: str, host: str = "localhost", hosts: int = 1) -> Path:
    """Make the folder tree that a container starts with."""
    config = base / "input" / "config"
    for folder in (config, base / "input" / "data", base / "model", base / "output", base / "checkpoints"):
        folder.mkdir(parents=True, exist_ok=True)
    (base / "input" / "data" / "bins").symlink_to(bins)
    names = [host] if hosts == 1 else [f"127.0.0.{number + 1}" for number in range(hosts)]
    files = {
        "hyperparameters": {
            "sagemaker_program": "start.py",
            "sagemaker_submit_directory": str(code),
            **encode_overrides([*OVERRIDES, *overrides]),
        },
        "inputdataconfig": {"bins": {"TrainingInputMode": "File"}},
        "resourceconfig": {"current_host": host, "hosts": names, "network_interface_name": "lo"},
    }
    for name, content in files.items():
        (config / f"{name}.json").write_text(json.dumps(content))
    return base


def test_the_configuration_has_the_instances_that_the_job_runs_on(
    tmp_path: Path, bins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = container(tmp_path / "ml", tmp_path, bins, hosts=2, host="127.0.0.1")
    resources = base / "input" / "config" / "resourceconfig.json"
    described = json.loads(resources.read_text()) | {"current_instance_type": "ml.m5.4xlarge"}
    resources.write_text(json.dumps(described))
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(base))
    monkeypatch.setenv("BINCOUNTER_SPOT", "true")  # as the request of launcher=sagemaker_spot has it
    monkeypatch.setattr(sys, "argv", [str(base / "start.py")])
    monkeypatch.setattr(train_command, "main", lambda **_: 0)
    assert container_command.main() == 0
    launcher = compose(sys.argv[1:]).launcher
    assert (launcher.instance_type, launcher.instance_count, launcher.spot) == ("ml.m5.4xlarge", 2, True)


def start(base: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(str(Path(sys.executable).parent / "train")),  # starts the program by its own interpreter
        env={**environment(), "SAGEMAKER_BASE_DIR": str(base), "TRAINING_JOB_NAME": base.parent.name},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ends(process: subprocess.Popen[str], code: int = 0) -> str:
    """Output of a job; the toolkit ends with 1 whatever the program ended with."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


@pytest.fixture(scope="module")
def finished(code: Path, bins: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base folder of a job that nothing disturbed."""
    base = container(tmp_path_factory.mktemp("undisturbed") / "ml", code, bins)
    ends(start(base))
    return base


@pytest.mark.long
def test_job_writes_run_and_model_to_the_folders_of_sagemaker(finished: Path) -> None:
    run, model = finished / "checkpoints", finished / "model"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["source"] == str(finished / "input" / "data" / "bins")
    assert config["tags"] == ["two words", "it's"]
    assert config["data"]["batch_size"] == 8
    assert {path.name for path in run.iterdir()} >= {"metrics.json", "predictions.csv", "split.csv", "report.html"}
    assert {path.name for path in model.iterdir()} == {"best.ckpt", "config.yaml", "metrics.json"}
    for ours, theirs in (("checkpoints/best.ckpt", "best.ckpt"), ("metrics.json", "metrics.json")):
        assert (run / ours).read_bytes() == (model / theirs).read_bytes()
    assert not (finished / "output" / "failure").exists()
    assert {path.name for path in finished.iterdir()} == {"input", "model", "output", "checkpoints", "code"}


@pytest.mark.long
def test_killed_job_resumes_bit_for_bit_in_a_new_container(
    finished: Path, code: Path, bins: Path, tmp_path: Path
) -> None:
    first = container(tmp_path / "1" / "ml", code, bins)
    process = start(first)
    last = first / "checkpoints" / "checkpoints" / "last.ckpt"
    while process.poll() is None and not last.exists():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()

    # Nothing but the checkpoints comes along, with what was just being written.
    second = container(tmp_path / "2" / "ml", code, bins)
    shutil.copytree(first / "checkpoints", second / "checkpoints", dirs_exist_ok=True)
    leftover = second / "checkpoints" / "checkpoints" / ".last.ckpt.killed.part"
    leftover.write_bytes(b"half")
    assert "Resuming from" in ends(start(second))
    assert not leftover.exists()
    ours, theirs = (
        tensors(torch.load(base / "checkpoints" / "checkpoints" / "last.ckpt", weights_only=True))
        for base in (second, finished)
    )
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    # The best may be from before: the new container's model is whole all the same.
    best = [base / "model" / "best.ckpt" for base in (second, finished)]
    ours, theirs = (tensors(torch.load(path, weights_only=True)["state_dict"]) for path in best)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.long
def test_a_run_is_not_gone_on_with_on_other_photos(finished: Path, code: Path, bins: Path, tmp_path: Path) -> None:
    other = tmp_path / "bins"
    shutil.copytree(bins, other)
    training = next(row["id"] for row in read_rows(finished / "checkpoints" / "split.csv") if row["split"] == "train")
    with (other / training).open("ab") as file:
        file.write(b"\0")  # the same picture, but not the same bytes
    base = container(tmp_path / "ml", code, other)
    shutil.copytree(finished / "checkpoints", base / "checkpoints", dirs_exist_ok=True)
    ends(start(base), code=1)
    failure = (base / "output" / "failure").read_text()
    assert failure.startswith(f"1 of 96 training photos, {training} first, are not byte for byte those that")
    assert failure.count("\n") == 1


@pytest.mark.long
def test_a_trial_of_a_tuning_job_keeps_its_run_apart_from_the_others(code: Path, bins: Path, tmp_path: Path) -> None:
    tuned = {"_tuning_objective_metric": "val/accuracy", "trainer.max_epochs": "1", "model.optimizer.lr": "0.002"}
    base = container(tmp_path / "search-002-0a1b2c3d" / "ml", code, bins)
    path = base / "input" / "config" / "hyperparameters.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **tuned}))
    other = base / "checkpoints" / "search-001-4e5f6a7b"  # SageMaker may bring it along
    (other / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "checkpoints/last.ckpt", "checkpoints/.last.ckpt.part"):
        (other / name).write_text("not mine")
    assert "Resuming from" not in ends(start(base))
    run = base / "checkpoints" / "search-002-0a1b2c3d"
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["optimizer"]["lr"] == 0.002
    assert (run / "checkpoints" / "best.ckpt").exists()
    assert {path.name for path in (base / "checkpoints").iterdir()} == {run.name, other.name}
    assert (other / "checkpoints" / ".last.ckpt.part").exists()


def test_a_trial_without_a_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "input" / "config"
    config.mkdir(parents=True)
    (config / "hyperparameters.json").write_text(json.dumps({"_tuning_objective_metric": "val/accuracy"}))
    monkeypatch.delenv("TRAINING_JOB_NAME", raising=False)
    with pytest.raises(ConfigError, match="TRAINING_JOB_NAME is not set"):
        run_folder(tmp_path)


@pytest.mark.long
def test_a_wrong_override_is_answered_in_one_sentence(code: Path, bins: Path, tmp_path: Path) -> None:
    base = container(tmp_path / "ml", code, bins, "model.optimizer.lrr=0.1")
    output = ends(start(base), code=1)
    failure = (base / "output" / "failure").read_text()
    assert failure.startswith("Unknown setting 'model.optimizer.lrr'")
    assert failure.count("\n") == 1
    assert failure in output


@pytest.mark.long
def test_unexpected_error_is_named_with_its_traceback_in_the_log(code: Path, bins: Path, tmp_path: Path) -> None:
    base = container(tmp_path / "ml", code, bins)
    (base / "checkpoints" / ".folder.part").mkdir()  # a killed write leaves files alone
    assert "Traceback" in ends(start(base), code=1)
    assert (base / "output" / "failure").read_text().startswith("IsADirectoryError: ")


@pytest.mark.long
def test_a_run_is_not_gone_on_with_on_another_number_of_instances(
    finished: Path, code: Path, bins: Path, tmp_path: Path
) -> None:
    base = container(tmp_path / "ml", code, bins, host="127.0.0.2", hosts=2)
    shutil.copy(finished / "checkpoints" / "config.yaml", base / "checkpoints")
    ends(start(base), code=1)
    assert "launcher.instance_count=1" in (base / "output" / "failure").read_text()


@pytest.mark.long
def test_two_instances_of_two_processes_train_as_one(code: Path, bins: Path, tmp_path: Path) -> None:
    hosts = [f"127.0.0.{number}" for number in (1, 2)]
    options = ["data.batch_size=2", "trainer.devices=2", "trainer.max_epochs=1"]
    bases = [container(tmp_path / "job" / host, code, bins, *options, host=host, hosts=2) for host in hosts]
    processes = [start(base) for base in bases]
    for process in processes:
        ends(process)
    assert list((bases[1] / "checkpoints").iterdir()) == []
    assert list((bases[1] / "model").iterdir()) == []

    run = bases[0] / "checkpoints"
    validation = [row["id"] for row in read_rows(run / "split.csv") if row["split"] == "validation"]
    assert sorted(row["id"] for row in read_rows(run / "predictions.csv")) == sorted(validation)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["val"]["n"] == len(validation)
    logged = [row["val/accuracy"] for row in read_rows(run / "logs" / "metrics.csv") if row["val/accuracy"]]
    # What the instances measured together is what one measures on the same checkpoint.
    assert max(map(float, logged)) == pytest.approx(metrics["val"]["accuracy"])
    # As many steps as one process with four times the batch takes.
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 96 // 8


@pytest.mark.parametrize(
    ("names", "found"), [([], None), (["bins", "other"], "bins"), (["training"], "training"), (["a", "b"], ConfigError)]
)
def test_the_channel_with_the_photos_is_found(names: list[str], found: object, tmp_path: Path) -> None:
    config = tmp_path / "input" / "config"
    config.mkdir(parents=True)
    (config / "inputdataconfig.json").write_text(json.dumps({name: {} for name in names}))
    if found is ConfigError:
        with pytest.raises(ConfigError, match="channels a, b"):
            channel(tmp_path)
    else:
        assert channel(tmp_path) == (tmp_path / "input" / "data" / str(found) if found else None)
