"""HTTP server of the control plane: SageMaker's operations implemented here, and moto for all others."""

import json
import shutil
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from sagemaker_rehearsal import BUCKET, REGION, ROLE, client_environment
from sagemaker_rehearsal.endpoints import Endpoints
from sagemaker_rehearsal.models import EndpointConfigs, Models, Tags
from sagemaker_rehearsal.protocol import HandledByMoto, Operation, answer
from sagemaker_rehearsal.runtime import Runtime
from sagemaker_rehearsal.site import ProcessGroups, Site
from sagemaker_rehearsal.training_jobs import TrainingJobs
from sagemaker_rehearsal.transform_jobs import TransformJobs
from sagemaker_rehearsal.tuning_jobs import TuningJobs

_SERVICE = "SageMaker."  # prefix of SageMaker's operations in X-Amz-Target


class _Application:
    """WSGI application: a table of operations in front of moto."""

    def __init__(self) -> None:
        self.operations: dict[str, Operation] = {}
        self.runtime: Runtime | None = None
        self._moto = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if self.runtime is not None and self.runtime.matches(environ):
            return self.runtime.answer(environ, start_response)
        target = environ.get("HTTP_X_AMZ_TARGET", "")
        operation = self.operations.get(target.removeprefix(_SERVICE)) if target.startswith(_SERVICE) else None
        if operation is not None:
            with suppress(HandledByMoto):
                return answer(operation, environ, start_response)
        return self._moto(environ, start_response)


class _QuietHandler(MotoRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log nothing."""


class ControlPlane:
    """AWS on 127.0.0.1, from construction until :meth:`close`.

    Args:
        folder: folder for running jobs.
        port: port on 127.0.0.1; 0 for a free one.
        grace: seconds between SIGTERM and SIGKILL for a stopped or interrupted job.
    """

    def __init__(self, folder: Path, port: int, grace: float) -> None:
        self._folder = folder
        application = _Application()
        self._server = make_server("127.0.0.1", port, application, threaded=True, request_handler=_QuietHandler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._groups = ProcessGroups()
        session = _session(self.endpoint)
        s3, logs = (session.client(service, endpoint_url=self.endpoint) for service in ("s3", "logs"))
        site = Site(folder, self.endpoint, grace, s3, logs, self._groups)
        model = session.client("sagemaker", endpoint_url=self.endpoint).meta.service_model
        training_jobs = TrainingJobs(site, model)
        self._tuning_jobs = TuningJobs(training_jobs, model)
        application.operations |= training_jobs.operations() | self._tuning_jobs.operations()
        models = Models(model)
        configs = EndpointConfigs(model, models.registry)
        self._endpoints = Endpoints(site, model, models, configs)
        self._transform_jobs = TransformJobs(site, model, models)
        tags = Tags([models.registry, configs.registry, self._endpoints.registry, self._transform_jobs.registry], model)
        for part in (models, configs, self._endpoints, self._transform_jobs, tags):
            application.operations |= part.operations()
        self._runtime = application.runtime = Runtime(site, self._endpoints.registry)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self._create_bucket_and_role(session)

    def _create_bucket_and_role(self, session: boto3.Session) -> None:
        """Create the bucket and the role of an account that has used SageMaker before."""
        trust = {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Principal": {"Service": "sagemaker.amazonaws.com"},
                    "Action": "sts:AssumeRole",
                }
            ],
        }
        session.client("s3", endpoint_url=self.endpoint).create_bucket(Bucket=BUCKET)
        iam = session.client("iam", endpoint_url=self.endpoint)
        iam.create_role(RoleName=ROLE, AssumeRolePolicyDocument=json.dumps(trust))

    def close(self) -> None:
        """End the processes of all jobs, and the server."""
        self._tuning_jobs.close()
        self._runtime.close()
        self._transform_jobs.close()
        self._endpoints.close()
        self._groups.close()
        self._server.shutdown()
        self._server.server_close()
        shutil.rmtree(self._folder / "jobs", ignore_errors=True)


def _session(endpoint: str) -> boto3.Session:
    variables = client_environment(endpoint)
    return boto3.Session(
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
        region_name=REGION,
    )
