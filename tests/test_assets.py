"""Runs, checkpoints, archives, sweeps, records and data that the tag ``before-redesign`` wrote still open.

They lie in tests/assets, made by make.py there. Expected numbers are the tag's own; other processors round differently.
"""

import json
import lzma
import shutil
import socket
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import REPOSITORY, Run, Start
from outputs import read_rows
from s3_proxy import FaultyProxy
from searches import study_of

from bincounter.cloud.container import SageMakerEnvironment

ASSETS = REPOSITORY / "tests" / "assets"
PHOTOS = ASSETS / "photos"
PLACE = "/srv/bins"  # where make.py worked
CLOSE = 2e-4  # tables have four digits
HOSTS = ["127.0.0.1", "127.0.0.2"]


def close(value: Any) -> Any:
    return pytest.approx(value, abs=CLOSE)


def asset(name: str, folder: Path) -> Path:
    """A copy of an asset, to be written to."""
    return Path(shutil.copytree(ASSETS / name, folder / name))


def checkpoint(name: str, folder: Path) -> Path:
    """The best checkpoint of a run among the assets."""
    if not (packed := ASSETS / name / "best.ckpt.xz").exists():
        return ASSETS / name / "checkpoints" / "best.ckpt"
    path = folder / f"{name}.ckpt"
    path.write_bytes(lzma.decompress(packed.read_bytes()))
    return path


def assert_same_rows(path: Path, expected: Path, key: str) -> None:
    """The same table but for the order of rows, the folders of photos, and rounding."""
    ours, theirs = ({Path(row[key]).stem: row for row in read_rows(each)} for each in (path, expected))
    assert ours.keys() == theirs.keys() and len(theirs) > 1
    for name, row in theirs.items():
        assert ours[name].keys() == row.keys()
        for column in row.keys() - {key}:
            assert number(ours[name][column]) == close(number(row[column])), (name, column)


def number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


@pytest.mark.parametrize("name", ["classification", "neighbour", "corn", "resnet18", "resnet50"])
def test_a_checkpoint_counts_as_it_did(name: str, run: Run, tmp_path: Path) -> None:
    table = tmp_path / "answers.csv"
    run("-m", "bincounter", "predict", str(PHOTOS), f"ckpt_path={checkpoint(name, tmp_path)}", "--csv", str(table))
    assert_same_rows(table, ASSETS / name / "answers.csv", "path")


SOURCES = {
    "photos": ["data=folders", f"data.source={PHOTOS}"],
    "folders": ["data=folders", f"data.source={ASSETS / 'folders'}"],
    "shards": ["data=shards", f"data.source={ASSETS / 'shards'}"],
    "mirror": ["data=s3", "data.source=s3://shop/bins"],
}


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("classification", "photos"),
        ("neighbour", "folders"),
        ("corn", "shards"),
        ("classification", "mirror"),
    ],
)
def test_old_run_is_scored_and_reported_after_its_photos_moved(
    name: str, source: str, train: Run, s3_proxy: FaultyProxy, tmp_path: Path
) -> None:
    shutil.copytree(PHOTOS, s3_proxy.server.root / "shop" / "bins")
    shutil.copytree(ASSETS / "mirror", tmp_path / "data")
    ckpt_path = f"ckpt_path={checkpoint(name, tmp_path)}"
    scored = tmp_path / "scored"
    settings = ["train=false", "data.image_size=32", "trainer=cpu", "trainer.precision=32-true"]
    train(*settings, ckpt_path, *SOURCES[source], f"paths.output_dir={scored}")
    metrics, expected = (json.loads((each / "metrics.json").read_text()) for each in (scored, ASSETS / name))
    for side in ("val", "test"):
        assert metrics[side].pop("coverage")[-1]["accuracy"] == pytest.approx(expected[side]["accuracy"])  # younger
        assert flat(metrics[side]) == close(flat(expected[side]))
    assert_same_rows(scored / "predictions.csv", ASSETS / name / "predictions.csv", "id")
    assert f"{100 * expected['test']['accuracy']:.1f}" in (scored / "report.html").read_text(encoding="utf-8")
    assert s3_proxy.objects_sent() == 0  # all of the bucket is in the mirror


def test_a_killed_run_is_resumed_to_the_end_it_would_have_had(train: Run, tmp_path: Path) -> None:
    folder = asset("killed", tmp_path)
    train("ckpt_path=last", f"paths.output_dir={folder}", f"data.source={PHOTOS}")
    ours, theirs = (
        torch.load(each / "checkpoints" / "last.ckpt", weights_only=True) for each in (folder, ASSETS / "undisturbed")
    )
    assert (ours["epoch"], ours["global_step"]) == (theirs["epoch"], theirs["global_step"])
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=CLOSE, atol=CLOSE)
    assert ours["callbacks"].keys() == theirs["callbacks"].keys()
    log, expected = (read_rows(each / "logs" / "metrics.csv") for each in (folder, ASSETS / "undisturbed"))
    log = [row for row in log if not row["lr"]]  # the earlier version missed the step that ends an epoch
    assert len(log) == len(expected) > 3
    for row, other in zip(log, expected, strict=True):
        assert {key: number(row[key]) for key in other} == {key: close(number(value)) for key, value in other.items()}


STORED_ENVIRONMENT = "bincounter.cloud.container.cluster.SageMakerEnvironment"
ENVIRONMENT = f"{SageMakerEnvironment.__module__}.{SageMakerEnvironment.__qualname__}"


def test_run_of_two_hosts_resumes_with_a_renamed_target(train: Run, tmp_path: Path) -> None:
    """The configuration holds the class that joins the hosts, in ``trainer.plugins``."""

    def resume(host: str) -> str:
        folder = asset("two_hosts", tmp_path / host)
        assert STORED_ENVIRONMENT in (folder / "config.yaml").read_text()
        described = tmp_path / host / "input" / "config"
        described.mkdir(parents=True)
        (described / "resourceconfig.json").write_text(json.dumps({"current_host": host, "hosts": HOSTS}))
        joined = ["++trainer.num_nodes=2", f"+trainer.plugins=[{{_target_:{ENVIRONMENT}}}]", "++trainer.strategy=ddp"]
        place = ["ckpt_path=last", f"paths.output_dir={folder}", f"data.source={PHOTOS}", *joined]
        return train(*place, SAGEMAKER_BASE_DIR=str(tmp_path / host)).stderr

    assert ENVIRONMENT != STORED_ENVIRONMENT
    with ThreadPoolExecutor() as pool:
        first, _ = pool.map(resume, HOSTS)
    assert "Resuming from" in first


def test_runs_are_compared_and_judged(run: Run) -> None:
    names = ["classification", "neighbour", "corn"]
    table = run("-m", "bincounter", "compare", *(str(ASSETS / name) for name in names)).stdout
    for name in names:
        scores = json.loads((ASSETS / name / "metrics.json").read_text())["test"]
        assert name in table and f"{100 * scores['accuracy']:.1f} %" in table
    assert "objective" in table
    run("-m", "bincounter", "rules", str(ASSETS / "classification"))


def test_an_archive_is_served_and_its_checkpoint_is_packed_again(start: Start, run: Run, tmp_path: Path) -> None:
    places = [f"paths.{name}_dir={tmp_path / name}" for name in ("data", "cache", "log")]
    archive = f"archive={ASSETS / 'archive' / 'model.tar.gz'}"
    server = start("deploy.py", archive, "trust=true", "parity.photos=0", "target.port=0", *places)
    try:
        packed = run(
            "deploy.py",
            "action=package",
            f"archive={tmp_path}/model.tar.gz",
            f"parity.source={PHOTOS}",
            *places,
            f"ckpt_path={checkpoint('classification', tmp_path)}",
            "parity.photos=4",
        )
        assert "Parity: " in packed.stderr
        while "bincounter\t" not in run("deploy.py", "action=list", *places).stdout:
            assert server.poll() is None, server.communicate()
            time.sleep(0.5)
        asked = run("deploy.py", "action=invoke", f"input={PHOTOS}", *places).stdout.splitlines()
        run("deploy.py", "action=delete", *places)
        server.wait(30)
    finally:
        server.kill()
    answers = {row["path"].removeprefix(PLACE): row for row in read_rows(ASSETS / "classification" / "answers.csv")}
    assert len(asked) == len(answers)
    for line in asked:
        path, predicted, sure = line.split("\t")
        row = answers[path.removeprefix(str(ASSETS))]
        assert predicted == row["predicted"]
        assert float(sure.split()[2]) == pytest.approx(float(row["expected_count"]), abs=0.006)


SEARCH = [
    *["data=folders", f"data.source={PHOTOS}", "data.image_size=32", "model=cnn", "model.backbone.width=8"],
    *["model.backbone.blocks=3", "trainer=cpu", "trainer.precision=32-true", "trainer.max_epochs=2"],
    *["+trainer.enable_progress_bar=false", "callbacks=[none]", "logger=[csv]", "hparams_search=optuna"],
    *["hparams_search.n_trials=2", "hparams_search.study_name=bins", "data.batch_size=8"],
    *["model.optimizer.lr=interval(0.005,0.02)", "checkpoint.every_n_train_steps=1"],
]


def test_a_finished_search_says_its_result_again(train: Run, tmp_path: Path) -> None:
    sweep = asset("sweep", tmp_path)
    study = study_of(f"sqlite:///{sweep / 'study.db'}")
    said = train(*SEARCH, f"paths.output_dir={sweep}").stdout
    assert "bins: 2 trials: 2 completed" in said
    assert f"Best trial: {study.best_trial.number}" in said
    assert f"model.optimizer.lr={study.best_params['model.optimizer.lr']}" in said
    assert [trial.params for trial in study_of(f"sqlite:///{sweep / 'study.db'}").trials] == [
        trial.params for trial in study.trials
    ]


@pytest.mark.long
def test_a_killed_search_is_resumed_to_the_trials_it_would_have_had(train: Run, tmp_path: Path) -> None:
    sweep = asset("killed_sweep", tmp_path)
    with sqlite3.connect(sweep / "study.db") as study:  # as if it had been killed on this machine
        query = "UPDATE trial_user_attributes SET value_json = replace(value_json, '\"bins\"', ?) WHERE key = 'owner'"
        assert study.execute(query, (json.dumps(socket.gethostname()),)).rowcount > 0
    done = train(*SEARCH, f"paths.output_dir={sweep}")
    assert "Resuming from" in done.stderr
    ours, theirs = (study_of(f"sqlite:///{each / 'study.db'}").trials for each in (sweep, ASSETS / "sweep"))
    assert [(trial.number, trial.state, trial.params) for trial in ours] == [
        (trial.number, trial.state, trial.params) for trial in theirs
    ]
    for trial in ("0", "1"):
        metrics, expected = (
            json.loads((each / trial / "metrics.json").read_text()) for each in (sweep, ASSETS / "sweep")
        )
        # Calibrated where the trial was trained here; that of the asset is older.
        before = metrics.get("calibration", metrics["val"])["cross_entropy"]
        assert before == close(expected["val"]["cross_entropy"])


def test_what_jobs_and_endpoints_cost_is_read_as_it_was(run: Run) -> None:
    folders = [str(ASSETS / name) for name in ("job", "two_hosts", "tuning", "endpoint", "classification")]
    told = run("-m", "bincounter", "cost", "--json", *folders).stdout.replace(str(ASSETS), PLACE)
    assert flat(json.loads(told)) == close(flat(json.loads((ASSETS / "cost.json").read_text())))


def flat(node: Any, path: str = "") -> dict[str, Any]:
    """The leaves of a document by their place; how long a run took here is known by its files' times alone."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if children is None:
        return {} if "wall_seconds" in path else {path: node}
    return {name: leaf for key, child in children for name, leaf in flat(child, f"{path}.{key}").items()}
