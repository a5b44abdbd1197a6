"""Runs logged to MLflow: a local store, and SageMaker's MLflow by the real plug-in against a server on this machine."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import REPOSITORY

from bincounter.config.aws_names import check_mlflow_uri
from bincounter.errors import ConfigError
from bincounter.model.build import load_counter

mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")

APP = "arn:aws:sagemaker:eu-west-1:123456789012:mlflow-app/app-ABCDEFGHIJKL"
SERVER = "arn:aws:sagemaker:eu-west-1:123456789012:mlflow-tracking-server/bins"


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    shutil.copytree(REPOSITORY / "tests/assets/classification", tmp_path / "run")
    return tmp_path / "run"


def logged(uri: str, run: Path, **options: Any) -> Any:
    """Log a metric, register the model of a run, and return the logger."""
    from bincounter.training.mlflow_logger import MlflowLogger, register_models

    logger = MlflowLogger("bins", uri, **options)
    logger.log_metrics({"val/accuracy": 0.5}, step=3)
    logger.finalize("success")
    register_models([logger], run)
    return logger


def test_a_model_is_registered_with_its_scores_and_can_be_fetched(run_folder: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for number in ("1", "2"):
        logger = logged(uri, run_folder, registered_model="bin-counter")
        version = logger.experiment.get_model_version("bin-counter", number)
        assert version.run_id == logger.run_id
        assert version.tags["test/accuracy"] == "0.2" and version.tags["val/rmse"]
    assert (tmp_path / "mlartifacts").is_dir()
    fetched = Path(mlflow.artifacts.download_artifacts("models:/bin-counter/2", dst_path=str(tmp_path / "fetched")))
    assert {path.name for path in fetched.iterdir()} >= {"best.ckpt", "config.yaml", "metrics.json"}
    ours, theirs = (
        load_counter(path)[0].state_dict() for path in (run_folder / "checkpoints/best.ckpt", fetched / "best.ckpt")
    )
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_nothing_is_registered_unless_it_is_asked_for(run_folder: Path, tmp_path: Path) -> None:
    logger = logged(f"sqlite:///{tmp_path}/mlflow.db", run_folder)
    assert not logger.experiment.search_registered_models()
    assert not logger.experiment.list_artifacts(logger.run_id)


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


@pytest.fixture
def sagemaker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[dict[str, str]]]]:
    """MLflow's own server in the place of SageMaker's; gives the headers of its requests so far."""
    pytest.importorskip("sagemaker_mlflow", reason="needs the extra sagemaker-mlflow")
    from mlflow.server import ARTIFACT_ROOT_ENV_VAR, BACKEND_STORE_URI_ENV_VAR

    headers, folder = tmp_path / "headers.jsonl", str(tmp_path / "server")
    stores = {BACKEND_STORE_URI_ENV_VAR: f"sqlite:///{tmp_path}/server.db", ARTIFACT_ROOT_ENV_VAR: folder}
    # A process of its own: server and client share settings in one.
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(headers)],
        env={**os.environ, **stores},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    monkeypatch.setenv("SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT", f"http://127.0.0.1:{int(server.stdout.readline())}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA" + "TEST" * 4)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    before = mlflow.get_tracking_uri()
    yield lambda: [json.loads(line) for line in headers.read_text().splitlines()]
    mlflow.set_tracking_uri(before)
    server.kill()
    server.wait()


@pytest.mark.parametrize(
    ("arn", "header", "service"),
    [
        (APP, "HTTP_X_SM_MLFLOW_APP_ARN", "sagemaker"),
        (SERVER, "HTTP_X_MLFLOW_SM_TRACKING_SERVER_ARN", "sagemaker-mlflow"),
    ],
)
def test_requests_to_sagemaker_are_signed_by_awss_credentials_and_name_the_server(
    arn: str, header: str, service: str, sagemaker: Callable[[], list[dict[str, str]]], run_folder: Path
) -> None:
    check_mlflow_uri("logger.mlflow.tracking_uri", arn)
    logger = logged(arn, run_folder, registered_model="bin-counter")
    assert logger.experiment.get_model_version("bin-counter", "1").tags["test/accuracy"] == "0.2"
    assert logger.experiment.get_run(logger.run_id).data.metrics == {"val/accuracy": 0.5}
    assert len(sagemaker()) > 5
    for request in sagemaker():
        assert request[header] == arn
        assert request["HTTP_AUTHORIZATION"].startswith("AWS4-HMAC-SHA256 Credential=AKIATEST")
        assert f"/eu-west-1/{service}/aws4_request" in request["HTTP_AUTHORIZATION"]


@pytest.mark.parametrize("arn", ["arn:aws:sagemaker:eu-west-1:123456789012:endpoint/bins", "arn:aws:s3:::bucket"])
def test_another_arn_is_refused(arn: str) -> None:
    with pytest.raises(ConfigError, match="is not the ARN of an MLflow App or tracking server"):
        check_mlflow_uri("logger.mlflow.tracking_uri", arn)


def test_the_plug_in_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'bincounter\[sagemaker-mlflow\]'"):
        check_mlflow_uri("logger.mlflow.tracking_uri", APP)
