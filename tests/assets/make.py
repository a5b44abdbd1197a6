"""Makes the assets beside this file: what the commands of the tag ``before-redesign`` wrote.

    git worktree add --detach /opt/before-redesign before-redesign
    cd /opt/before-redesign
    python REPOSITORY/tests/assets/make.py [--only NAME ...]

Runs in a checkout of the tag, calls nothing but its commands, and works in /srv/bins, so that no path of a developer's
machine gets into the assets. Some steps start from what others made in /srv/bins, in the order of ``STEPS``.
"""

import argparse
import json
import lzma
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torchvision.models import resnet18, resnet50

PLACE, ASSETS = Path("/srv/bins"), Path(__file__).resolve().parent
ROLE = "arn:aws:iam::123456789012:role/rehearsal"
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
    **{"PYTHONPATH": str(Path.cwd()), "TMPDIR": str(PLACE / "scratch"), "OMP_NUM_THREADS": "1", "COLUMNS": "160"},
}

DATA = ["data=folders", f"data.source={PLACE}/photos", "data.image_size=32", "data.batch_size=8"]
CNN = ["model=cnn", "model.backbone.width=8", "model.backbone.blocks=3", "model.optimizer.lr=0.01"]
QUICK = ["trainer=cpu", "trainer.precision=32-true", "trainer.max_epochs=2", "+trainer.enable_progress_bar=false"]
QUICK += ["callbacks=[none]", "logger=[csv]"]
PLACES = [f"paths.{name}_dir={PLACE}/{name}" for name in ("data", "log")]
# All that holds state or draws random numbers; stochastic gradient descent keeps rounding errors small.
STATEFUL = [
    *["model.head.layers=1", "model.head.width=16", "model.head.dropout=0.3", "model/optimizer=sgd"],
    *["data.balanced=true", "data.augmentation.mixup=0.2", "data.augmentation.cutmix=0.5", "data.num_workers=0"],
    *["callbacks=[early_stopping,ema]", "callbacks.early_stopping.patience=50", "callbacks.ema.decay=0.9"],
    *["trainer.max_epochs=3", "trainer.accumulate_grad_batches=2", "checkpoint.every_n_train_steps=1", "test=false"],
]
SEARCH = ["hparams_search=optuna", "hparams_search.n_trials=2", "hparams_search.study_name=bins", "data.batch_size=8"]
SEARCHED = ["model.optimizer.lr=interval(0.005,0.02)", "checkpoint.every_n_train_steps=1"]
REHEARSED = ["launcher=rehearsal", f"launcher.role={ROLE}", "launcher.instance_type=ml.m5.xlarge"]


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """Start ``python ARGUMENTS``."""
    print("python", *arguments, flush=True)
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, env={**ENVIRONMENT, **environment}, stdout=subprocess.PIPE, text=True)


def run(*arguments: object, **environment: str) -> str:
    """Run ``python ARGUMENTS``; returns its standard output."""
    process = start(*arguments, **environment)
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}")
    return output


def train(folder: str, *overrides: str) -> Path:
    """Train into a folder of the place, emptied before; returns the folder."""
    shutil.rmtree(PLACE / folder, ignore_errors=True)
    run("train.py", *PLACES, *overrides, f"paths.output_dir={PLACE / folder}")
    return PLACE / folder


def kill(folder: str, *overrides: str, when: Callable[[Path], bool]) -> Path:
    """Start a training and kill it at a moment of its folder; returns the folder."""
    shutil.rmtree(PLACE / folder, ignore_errors=True)
    process = start("train.py", *PLACES, *overrides, f"paths.output_dir={PLACE / folder}")
    while not when(PLACE / folder):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return PLACE / folder


def keep(folder: Path, name: str, *without: str) -> Path:
    """Copy a folder to the assets, but for files of these names; returns the copy."""
    shutil.rmtree(ASSETS / name, ignore_errors=True)
    shutil.copytree(folder, ASSETS / name, ignore=shutil.ignore_patterns("*.lock", "*.part", "*.html", *without))
    return ASSETS / name


def answers(checkpoint: Path, name: str) -> None:
    """Keep what ``predict`` answers of all photos as ``answers.csv``."""
    table = ASSETS / name / "answers.csv"
    run("-m", "bincounter", "predict", PLACE / "photos", "--ckpt-path", checkpoint, "--csv", table)


def photos() -> None:
    """Rendered demo bins, in folders by their count."""
    shutil.rmtree(PLACE / "photos", ignore_errors=True)
    demo = ["data=demo", "data.layout.photos=96", "data.layout.size=48", *PLACES]
    run("-m", "bincounter", "arrange", PLACE / "photos", *demo)
    keep(PLACE / "photos", "photos")


def prepared() -> None:
    """Photos that are split already: in folders, and in shards with their index."""
    for form in ("folders", "shards"):
        shutil.rmtree(PLACE / form, ignore_errors=True)
        run("-m", "bincounter", "prepare", PLACE / form, "--as", form, *DATA, *PLACES)
        keep(PLACE / form, form)


def mirror() -> None:
    """Kept copy of a bucket, with its catalogue."""
    shutil.rmtree(PLACE / "bucket", ignore_errors=True)
    shutil.rmtree(PLACE / "mirror", ignore_errors=True)
    shutil.copytree(PLACE / "photos", PLACE / "bucket" / "shop" / "bins")
    rclone = Path(sys.executable).with_name("rclone")
    options = ["--config", "", "--addr", "127.0.0.1:8765", "--auth-key", "bincounter-tests-001,no-secret-at-all"]
    server = subprocess.Popen([rclone, "serve", "s3", *options, PLACE / "bucket"], stderr=subprocess.DEVNULL)
    time.sleep(2)
    account = {"AWS_ACCESS_KEY_ID": "bincounter-tests-001", "AWS_SECRET_ACCESS_KEY": "no-secret-at-all"}
    where = {"AWS_ENDPOINT_URL": "http://127.0.0.1:8765", "AWS_REGION": "us-east-1"}
    source = ["data=s3", "data.source=s3://shop/bins", f"paths.data_dir={PLACE}/mirror"]
    cache = f"paths.cache_dir={PLACE}/mirror-cache"
    run("-m", "bincounter", "explore", "--output", PLACE / "data.html", *source, cache, **account, **where)
    server.terminate()
    server.wait()
    keep(PLACE / "mirror", "mirror")


def objectives() -> None:
    """A finished run of each objective; that of classification recorded its tensors."""
    for objective in ("classification", "neighbour", "corn"):
        recorded = ["debugger=tensors", "debugger.every_n_train_steps=10"] if objective == "classification" else []
        folder = train(objective, *DATA, *CNN, *QUICK, "trainer.max_epochs=6", f"objective={objective}", *recorded)
        keep(folder, objective, *([] if recorded else ["last.ckpt"]))
        answers(folder / "checkpoints/best.ckpt", objective)


def resnets() -> None:
    """Heads trained on frozen ResNets, whose weights repeat every few numbers, so that they compress to nothing."""
    for network in (resnet18(), resnet50()):
        name = "resnet18" if network.fc.in_features == 512 else "resnet50"
        for number, (key, tensor) in enumerate(network.state_dict().items()):
            if tensor.dim() == 4:
                wave = (torch.arange(tensor.numel()) * (7 + number) % 101 - 50).reshape(tensor.shape)
                tensor.copy_(wave * 0.05 / tensor[0].numel() ** 0.5)
            elif key.endswith("bn3.weight") or key.endswith("bn2.weight"):
                tensor.fill_(0.5 if name == "resnet18" else 0.1)
        torch.save(network.state_dict(), PLACE / f"{name}.pth")
        backbone = [f"model={name}", f"model.weights={PLACE}/{name}.pth", "model.trained=frozen"]
        folder = train(name, *DATA, *backbone, *QUICK)
        keep(folder, name, "*.ckpt")
        with lzma.open(ASSETS / name / "best.ckpt.xz", "w") as file:
            file.write((folder / "checkpoints/best.ckpt").read_bytes())
        answers(folder / "checkpoints/best.ckpt", name)


def killed() -> None:
    """A run that was killed in the middle of an epoch, and the same one undisturbed."""
    recipe = [*DATA, *CNN, *QUICK, *STATEFUL]
    keep(train("undisturbed", *recipe), "undisturbed")

    def in_second_epoch(folder: Path) -> bool:
        path = folder / "checkpoints/last.ckpt"
        if not path.exists():
            return False
        last = torch.load(path, weights_only=True)
        progress = last["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        return last["epoch"] == 1 and not progress["is_last_batch"]

    folder = kill("killed", *recipe, when=in_second_epoch)
    assert in_second_epoch(folder)
    keep(folder, "killed")


def archive() -> None:
    """A checkpoint, packed for an endpoint."""
    run(
        "deploy.py",
        "action=package",
        f"ckpt_path={PLACE}/classification/checkpoints/best.ckpt",
        "parity.photos=2",
        *PLACES,
    )
    keep(PLACE / "classification" / "endpoint", "archive", "endpoint.json")


def sweeps() -> None:
    """A search that has ended, and the same one killed in the middle of its second trial."""
    recipe = [*DATA[:-1], *CNN[:-1], *QUICK, *SEARCH, *SEARCHED]
    keep(train("sweep", *recipe), "sweep", "best.ckpt", "last.ckpt")
    trimmed = keep(
        kill("killed_sweep", *recipe, when=lambda folder: (folder / "1/checkpoints/last.ckpt").exists()),
        "killed_sweep",
        "best.ckpt",
        ".sweepers",
    )
    (trimmed / "0/checkpoints/last.ckpt").unlink()
    for name in ("sweep", "killed_sweep"):
        with sqlite3.connect(ASSETS / name / "study.db") as study:
            host = json.dumps(os.uname().nodename)
            query = "UPDATE trial_user_attributes SET value_json = replace(value_json, ?, ?) WHERE key = 'owner'"
            study.execute(query, (host, json.dumps("bins")))
            study.commit()
            study.execute("VACUUM")


def jobs() -> None:
    """A spot job that was interrupted, and one of two instances."""
    recipe = [*DATA, *CNN, *QUICK, *REHEARSED]
    spot = ["launcher.interruptions=[0]", "checkpoint.every_n_train_steps=1"]
    keep(train("job", *recipe, *spot), "job", "*.ckpt")
    keep(train("two_hosts", *recipe, "launcher.instance_count=2"), "two_hosts")


def tuning() -> None:
    """A search by SageMaker's tuner."""
    tuner = ["hparams_search=sagemaker_tuner", "hparams_search.strategy=Grid", "model.optimizer.lr=0.01,0.02"]
    recipe = [*DATA, *CNN[:-1], *QUICK, *tuner, *REHEARSED, "hparams_search.study_name=tuned"]
    keep(train("tuning", *recipe), "tuning", "*.ckpt")


def endpoint() -> None:
    """The record of an endpoint that was made and deleted."""
    plane = start("-m", "bincounter", "rehearsal")
    assert plane.stdout is not None
    variables = dict[str, str]()
    while "AWS_EC2_METADATA_DISABLED" not in variables:  # the last one
        name, _, value = plane.stdout.readline().strip().removeprefix("export ").partition("=")
        if name.startswith("AWS_"):
            variables[name] = value
    (PLACE / "endpoint").mkdir(exist_ok=True)
    archive = shutil.copy(PLACE / "classification/endpoint/model.tar.gz", PLACE / "endpoint")
    target = ["target=realtime", f"target.role={ROLE}", "name=bins", *PLACES]
    run("deploy.py", f"archive={archive}", "trust=true", "parity.photos=0", *target, **variables)
    run("deploy.py", "action=delete", *target, f"paths.log_dir={PLACE}", **variables)
    plane.send_signal(signal.SIGINT)
    plane.wait()
    keep(PLACE / "endpoint", "endpoint", "model.tar.gz")


def costs() -> None:
    """Output of ``cost`` for all of the above."""
    folders = [PLACE / name for name in ("job", "two_hosts", "tuning", "endpoint", "classification")]
    (ASSETS / "cost.json").write_text(run("-m", "bincounter", "cost", "--json", *folders))


STEPS = [photos, prepared, mirror, objectives, resnets, killed, archive, sweeps, jobs, tuning, endpoint, costs]


def main() -> None:
    """Make the assets that the command line names, or all."""
    parser = argparse.ArgumentParser(description="Makes the assets of test_assets.py by the tag before-redesign.")
    parser.add_argument("--only", nargs="+", choices=[step.__name__ for step in STEPS], metavar="NAME")
    only = parser.parse_args().only
    (PLACE / "scratch").mkdir(parents=True, exist_ok=True)
    for step in STEPS:
        if only is None or step.__name__ in only:
            step()


if __name__ == "__main__":
    main()
