"""Runs logged to MLflow: a local store, and SageMaker's MLflow by the real plug-in against a server on this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import REPOSITORY, Run

from bincounter.config.aws_names import check_mlflow_uri
from bincounter.errors import ConfigError
from bincounter.model.build import load_counter
from bincounter.training.mlflow_logger import MlflowLogger, register_models

APP = "arn:aws:sagemaker:eu-west-1:123456789012:mlflow-app/app-ABCDEFGHIJKL"
SERVER = "arn:aws:sagemaker:eu-west-1:123456789012:mlflow-tracking-server/bins"
RUN = REPOSITORY / "tests/assets/classification"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a database, which takes seconds to set up."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


def logged(uri: str, **options: Any) -> Any:
    """Log a metric, register the model of a run, and return the logger."""
    logger = MlflowLogger("bins", uri, **options)
    logger.log_metrics({"val/accuracy": 0.5}, step=3)
    logger.finalize("success")
    register_models([logger], RUN)
    return logger


def test_registered_model_has_scores_and_can_be_fetched(store: str, tmp_path: Path) -> None:
    from mlflow.artifacts import download_artifacts

    logger = logged(store)
    assert not logger.experiment.search_registered_models()
    assert not logger.experiment.list_artifacts(logger.run_id)
    for number in ("1", "2"):
        logger = logged(store, registered_model="bin-counter")
        version = logger.experiment.get_model_version("bin-counter", number)
        assert version.run_id == logger.run_id
        assert version.tags["test/accuracy"] == "0.2" and version.tags["val/rmse"]
    assert Path(store.removeprefix("sqlite:///")).with_name("mlartifacts").is_dir()
    fetched = Path(download_artifacts("models:/bin-counter/2", dst_path=str(tmp_path / "fetched")))
    assert {path.name for path in fetched.iterdir()} >= {"best.ckpt", "config.yaml", "metrics.json"}
    ours, theirs = (
        load_counter(path)[0].state_dict() for path in (RUN / "checkpoints/best.ckpt", fetched / "best.ckpt")
    )
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_resumed_training_goes_on_in_its_run(store: str, train: Run, tmp_path: Path) -> None:
    small = ["experiment=demo", "data.layout.photos=60", "data.layout.size=48", "data.image_size=32", "model=cnn_small"]
    options = ["trainer=cpu", "trainer.max_epochs=1", "test=false", "logger=mlflow", "task_name=resumed"]
    place = f"paths.output_dir={tmp_path / 'run'}"
    train(*small, *options, f"logger.mlflow.tracking_uri={store}", place)
    (tmp_path / "run" / "metrics.json").unlink()  # as if it had been killed before its scoring
    train("ckpt_path=last", place)
    from mlflow import MlflowClient

    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("resumed")
    assert experiment is not None and len(client.search_runs([experiment.experiment_id])) == 1
    # A server that does not have the run begins one.
    other = f"sqlite:///{tmp_path / 'other.db'}"
    logger = MlflowLogger("bins", other)
    logger.resume("0" * 32)
    assert logger.run_id not in (None, "0" * 32)


_SERVER = """
import json, sys
from pathlib import Path
from mlflow.server import app
from werkzeug.serving import make_server

def recorded(environ, start):
    headers = {name: value for name, value in environ.items() if name.startswith("HTTP_")}
    with Path(sys.argv[1]).open("a") as file:
        file.write(json.dumps(headers) + "\\n")
    return app(environ, start)

server = make_server("127.0.0.1", 0, recorded)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture(scope="module")
def server(store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """MLflow's own server in place of SageMaker's: its port, and a file of the headers of its requests."""
    from mlflow.server import ARTIFACT_ROOT_ENV_VAR, BACKEND_STORE_URI_ENV_VAR

    folder = tmp_path_factory.mktemp("server")
    stores = {BACKEND_STORE_URI_ENV_VAR: store, ARTIFACT_ROOT_ENV_VAR: str(folder / "artifacts")}
    # A process of its own: server and client share settings in one.
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(folder / "headers.jsonl")],
        env={**os.environ, **stores},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    yield int(process.stdout.readline()), folder / "headers.jsonl"
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("arn", "header", "service"),
    [
        (APP, "HTTP_X_SM_MLFLOW_APP_ARN", "sagemaker"),
        (SERVER, "HTTP_X_MLFLOW_SM_TRACKING_SERVER_ARN", "sagemaker-mlflow"),
    ],
)
def test_requests_to_sagemaker_are_signed_and_name_the_server(
    arn: str, header: str, service: str, server: tuple[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, headers = server
    headers.unlink(missing_ok=True)
    monkeypatch.setenv("SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA" + "TEST" * 4)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    check_mlflow_uri("logger.mlflow.tracking_uri", arn)
    logger = logged(arn, registered_model=service)
    assert logger.experiment.get_model_version(service, "1").tags["test/accuracy"] == "0.2"
    assert logger.experiment.get_run(logger.run_id).data.metrics == {"val/accuracy": 0.5}
    requests = [json.loads(line) for line in headers.read_text().splitlines()]
    assert len(requests) > 5
    for request in requests:
        assert request[header] == arn
        assert request["HTTP_AUTHORIZATION"].startswith("AWS4-HMAC-SHA256 Credential=AKIATEST")
        assert f"/eu-west-1/{service}/aws4_request" in request["HTTP_AUTHORIZATION"]


@pytest.mark.parametrize("arn", ["arn:aws:sagemaker:eu-west-1:123456789012:endpoint/bins", "arn:aws:s3:::bucket"])
def test_other_arns_are_refused(arn: str) -> None:
    with pytest.raises(ConfigError, match="is not the ARN of an MLflow App or tracking server"):
        check_mlflow_uri("logger.mlflow.tracking_uri", arn)


def test_missing_plug_in_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'bincounter\[sagemaker-mlflow\]'"):
        check_mlflow_uri("logger.mlflow.tracking_uri", APP)
