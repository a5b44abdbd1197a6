"""Batch transform: jobs that send every object below an S3 prefix to a container."""

import secrets
import threading
import time
from http import HTTPStatus
from operator import itemgetter
from typing import Any

from sagemaker_rehearsal.models import Models, Registry, Resource
from sagemaker_rehearsal.protocol import Operation, Refused, check_shape, is_wanted, page
from sagemaker_rehearsal.request_checks import refuse_unsupported
from sagemaker_rehearsal.serving_container import Container, NotServable
from sagemaker_rehearsal.site import Site
from sagemaker_rehearsal.storage import join_uri, list_objects, split_uri

_GROUP = "/aws/sagemaker/TransformJobs"
_LONGEST_START = 180.0  # seconds
_TIMEOUT = 600.0  # seconds for one object, AWS's default
_RETRIES = 3  # AWS's default of InvocationsMaxRetries
_PAYLOAD_MB = 6  # AWS's default of MaxPayloadInMB
_SORT_KEYS = {"Name": "TransformJobName", "CreationTime": "CreationTime", "Status": "TransformJobStatus"}


class _TransformJob(Resource):
    """One transform job, run by a thread of its own."""

    def __init__(self, site: Site, request: dict[str, Any], model: dict[str, Any]) -> None:
        super().__init__("transform-job", request["TransformJobName"], request)
        self._site, self._model = site, model
        self.status = "InProgress"
        self.stopping = threading.Event()
        self._failure = ""
        self._started = self._ended = 0.0

    def start(self) -> None:
        """Start the job's thread."""
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        """Request the end of the job: StopTransformJob.

        Raises:
            Refused: the job has ended.
        """
        if self.status != "InProgress":
            raise Refused("ValidationException", f"The transform job has ended: its status is {self.status}.")
        self.status = "Stopping"
        self.stopping.set()

    def description(self) -> dict[str, Any]:
        """Return the response of DescribeTransformJob."""
        requested = {key: value for key, value in self.request.items() if key != "Tags"}
        times = {"TransformStartTime": self._started, "TransformEndTime": self._ended}
        return {
            **requested,
            **self.summary(),
            **{key: moment for key, moment in times.items() if moment},
        }

    def summary(self) -> dict[str, Any]:
        """Return the entry in ListTransformJobs."""
        return {
            "TransformJobName": self.name,
            "TransformJobArn": self.arn,
            "CreationTime": self.created,
            "TransformJobStatus": self.status,
            **({"FailureReason": self._failure} if self._failure else {}),
        }

    def _run(self) -> None:
        self._started = time.time()
        container = Container(self._site, self._model, _GROUP, f"{self.name}/i-{secrets.token_hex(8)}")
        try:
            container.start()
            self._wait(container)
            self._transform(container)
            status = "Stopped" if self.stopping.is_set() else "Completed"
        except Exception as error:  # any: the status is the only place to report it
            self._failure, status = " ".join(str(error).split())[:1024], "Failed"
        finally:
            container.end()
        self._ended = time.time()
        self.status = status

    def _wait(self, container: Container) -> None:
        until = time.monotonic() + _LONGEST_START
        while not container.healthy() and not self.stopping.is_set():
            if container.ended() or time.monotonic() > until:
                raise NotServable("AlgorithmError: the container did not pass the ping health check.")
            time.sleep(0.2)

    def _transform(self, container: Container) -> None:
        source = self.request["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"]
        output = self.request["TransformOutput"]
        bucket, prefix = split_uri(source)
        keys = list_objects(self._site.s3, source)
        if not keys:
            raise NotServable(f"ClientError: No S3 objects found under S3 URL {source}.")
        headers = {"Content-Type": self.request["TransformInput"].get("ContentType", "application/octet-stream")}
        if "Accept" in output:
            headers["Accept"] = output["Accept"]
        largest = self.request.get("MaxPayloadInMB", _PAYLOAD_MB) * 1_048_576
        failures = []
        for key in keys:
            if self.stopping.is_set():
                return
            body = self._site.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
            if largest and len(body) > largest:
                failures.append(f"ClientError: {key} is larger than MaxPayloadInMB.")
                continue
            try:
                answer = self._answer(container, body, headers)
            except NotServable as error:
                failures.append(f"AlgorithmError: {key}: {error}")
                continue
            below = key[prefix.rfind("/") + 1 :] if not prefix.endswith("/") else key[len(prefix) :]
            to_bucket, to_key = split_uri(join_uri(output["S3OutputPath"], f"{below}.out"))
            self._site.s3.put_object(Bucket=to_bucket, Key=to_key, Body=answer)
        if failures:  # after the outputs of the other objects
            raise NotServable(failures[0][:1024])

    def _answer(self, container: Container, body: bytes, headers: dict[str, str]) -> bytes:
        """Return the container's response, with retries of server errors.

        Raises:
            NotServable: no attempt succeeded.
        """
        client = self.request.get("ModelClientConfig", {})
        timeout = client.get("InvocationsTimeoutInSeconds", _TIMEOUT)
        for _ in range(1 + client.get("InvocationsMaxRetries", _RETRIES)):
            try:
                status, _, answer = container.answer(body, headers, timeout)
            except OSError as error:
                message = f"No answer from algorithm: {error}"
                continue
            if status == HTTPStatus.OK:
                return answer
            message = f"Bad HTTP status received from algorithm: {status}: {answer.decode('utf-8', 'replace')}"
            if status < HTTPStatus.INTERNAL_SERVER_ERROR:
                break
        raise NotServable(message)


class TransformJobs:
    """All transform jobs of a control plane.

    Args:
        site: state shared by all jobs.
        model: botocore's service model of SageMaker.
        models: all models.
    """

    def __init__(self, site: Site, model: Any, models: Models) -> None:
        self._site, self._model, self._models = site, model, models.registry
        self.registry: Registry[_TransformJob] = Registry("transform job")

    def operations(self) -> dict[str, Operation]:
        """Return the operations by AWS's names of them."""
        return {
            "CreateTransformJob": self._create,
            "DescribeTransformJob": self._describe,
            "StopTransformJob": self._stop,
            "ListTransformJobs": self._list,
        }

    def close(self) -> None:
        """End all jobs."""
        for job in self.registry.all():
            job.stopping.set()

    def _create(self, request: dict[str, Any]) -> dict[str, Any]:
        check_shape(self._model, "CreateTransformJob", request)
        source, output = request["TransformInput"], request["TransformOutput"]
        refuse_unsupported(
            {
                "transform inputs other than an S3 prefix": (
                    source["DataSource"]["S3DataSource"]["S3DataType"] != "S3Prefix"
                ),
                "splitting of objects (SplitType)": source.get("SplitType", "None") != "None",
                "assembling of answers (AssembleWith)": output.get("AssembleWith", "None") != "None",
                "compressed objects (CompressionType)": source.get("CompressionType", "None") != "None",
            }
        )
        job = _TransformJob(self._site, request, self._models.get(request["ModelName"]).request)
        self.registry.add(job)
        job.start()
        return {"TransformJobArn": job.arn}

    def _describe(self, request: dict[str, Any]) -> dict[str, Any]:
        check_shape(self._model, "DescribeTransformJob", request)
        return self.registry.get(request["TransformJobName"]).description()

    def _stop(self, request: dict[str, Any]) -> dict[str, Any]:
        check_shape(self._model, "StopTransformJob", request)
        self.registry.get(request["TransformJobName"]).stop()
        return {}

    def _list(self, request: dict[str, Any]) -> dict[str, Any]:
        check_shape(self._model, "ListTransformJobs", request)
        found = [one for job in self.registry.all() if is_wanted(one := job.summary(), request, "TransformJob")]
        order = request.get("SortOrder", "Descending")
        key = itemgetter(_SORT_KEYS[request.get("SortBy", "CreationTime")])
        return page("TransformJobSummaries", found, {**request, "SortOrder": order}, key)
