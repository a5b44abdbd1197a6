"""Logger for MLflow servers, also SageMaker's, with registration of the model of a finished run."""

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from bincounter.config.checks import METRICS
from bincounter.training.checkpoint import export_model

log = logging.getLogger(__name__)

_DATABASE = "sqlite:///"
_FOLDER = "model"  # folder of the checkpoint among the artifacts of a run


class MlflowLogger(MLFlowLogger):
    """Lightning's MLflow logger, with a model registry.

    Args:
        experiment_name: name of the experiment, created if it does not exist.
        tracking_uri: URI of a server or a database, or ARN of an MLflow App or tracking server of SageMaker. The
            plug-in sagemaker-mlflow signs requests to SageMaker with AWS's standard credentials, in a job its role.
        run_name: name of the run; ``None``: MLflow chooses one.
        tags: tags of the run.
        prefix: prefix of metrics' names.
        artifact_location: URI for the artifacts of a new experiment; ``None``: the server's default, or
            ``mlartifacts`` beside the database.
        run_id: id of a run to continue.
        registered_model: name of a model in the registry, for the checkpoint as a new version after the scoring.
    """

    def __init__(
        self,
        experiment_name: str,
        tracking_uri: str,
        run_name: str | None = None,
        tags: Mapping[str, Any] | None = None,
        prefix: str = "",
        artifact_location: str | None = None,
        run_id: str | None = None,
        registered_model: str | None = None,
    ) -> None:
        if artifact_location is None and tracking_uri.startswith(_DATABASE):  # else they are in the working directory
            artifact_location = str(Path(tracking_uri.removeprefix(_DATABASE)).resolve().parent / "mlartifacts")
        super().__init__(
            experiment_name,
            run_name=run_name,
            tracking_uri=tracking_uri,
            tags=dict(tags) if tags else None,
            prefix=prefix,
            artifact_location=artifact_location,
            run_id=run_id,
        )
        self._registered_model = registered_model

    @rank_zero_only
    def resume(self, run_id: str) -> None:
        """Continue an interrupted run; if this server does not have it, a new one is begun."""
        from mlflow.exceptions import MlflowException

        try:
            self._mlflow_client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        else:
            self._run_id = run_id

    def register(self, run: Path) -> None:
        """Log best checkpoint, configuration and scores of a run as artifacts, and register them as a model version.

        Args:
            run: the run's folder.
        """
        name = self._registered_model
        if name is None:
            return
        from mlflow.exceptions import MlflowException

        client, run_id = self.experiment, self.run_id
        assert run_id is not None
        with TemporaryDirectory() as folder:
            export_model(run, Path(folder))
            client.log_artifacts(run_id, folder, _FOLDER)
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{client.get_run(run_id).info.artifact_uri}/{_FOLDER}"
        version = client.create_model_version(name, source, run_id=run_id, tags=_scores(run))
        log.info("MLflow: the model is registered as version %s of %s.", version.version, name)


def register_models(loggers: Iterable[Logger], run: Path) -> None:
    """Register the model of a scored run by the loggers with a registered model."""
    for logger in loggers:
        if isinstance(logger, MlflowLogger):
            logger.register(run)


def _scores(run: Path) -> dict[str, str]:
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    sides = {side: metrics.get(side) or {} for side in ("val", "test")}
    return {
        f"{side}/{name}": f"{scores[name]:.6g}"
        for side, scores in sides.items()
        for name in METRICS
        if scores.get(name) is not None
    }
