"""State of a training job, described as by DescribeTrainingJob."""

import math
import threading
import time
from typing import Any

from sagemaker_rehearsal import ACCOUNT, REGION
from sagemaker_rehearsal.container_logs import Metrics
from sagemaker_rehearsal.protocol import Refused
from sagemaker_rehearsal.storage import join_uri

SPOT_PRICE = 0.3
"""Billed fraction of a spot job's training seconds; invented, since AWS's varies."""

NO_RULES = "The rehearsal has none of AWS's rules: nothing was evaluated."
"""``StatusDetails`` of every rule."""

ENDED = ("Completed", "Failed", "Stopped")
_INSTANCES_HELD = ("Downloading", "Training", "Stopping", "Uploading")


class JobRecord:
    """State of a training job, written by the job's thread and read by requests.

    Args:
        request: body of CreateTrainingJob.
        tuning_job_arn: ARN of its tuning job, if any.
    """

    def __init__(self, request: dict[str, Any], tuning_job_arn: str | None = None) -> None:
        self.request = request
        self._tuning = {"TuningJobArn": tuning_job_arn} if tuning_job_arn else {}
        self.name: str = request["TrainingJobName"]
        self.arn = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:training-job/{self.name}"
        self.created = time.time()
        self.status = "InProgress"
        self.stop_requested = threading.Event()
        self.metrics = Metrics(request["AlgorithmSpecification"].get("MetricDefinitions", []))
        self._lock = threading.Lock()
        self._transitions: list[dict[str, Any]] = []
        self._modified = self.created
        self._failure = ""
        self._model = False

    def enter(self, secondary: str, message: str) -> None:
        """Enter another ``SecondaryStatus``, when stopping only ``Uploading``."""
        with self._lock:
            if self.status == "InProgress" or secondary == "Uploading":
                self._enter(secondary, message)

    def stop(self) -> None:
        """Request the end of the job: StopTrainingJob.

        Raises:
            Refused: the job has ended.
        """
        with self._lock:
            if self.status in ENDED:
                raise Refused("ValidationException", f"The training job has ended: its status is {self.status}.")
            if self.status == "InProgress":
                self.status = "Stopping"
                self._enter("Stopping", "Stopping the training job")
        self.stop_requested.set()

    def finish(self, status: str, secondary: str, message: str, failure: str = "", model: bool = False) -> None:
        """End the job.

        Args:
            status: ``Completed``, ``Failed`` or ``Stopped``.
            secondary: the last ``SecondaryStatus``.
            message: its ``StatusMessage``.
            failure: ``FailureReason``.
            model: ``model.tar.gz`` was uploaded.
        """
        with self._lock:
            self._failure, self._model = failure, model
            self._enter(secondary, message)
            self._transitions[-1]["EndTime"] = self._modified
            self.status = status

    def _enter(self, secondary: str, message: str) -> None:
        self._modified = time.time()
        if self._transitions:
            self._transitions[-1].setdefault("EndTime", self._modified)
        self._transitions.append({"Status": secondary, "StartTime": self._modified, "StatusMessage": message})

    def training_seconds(self) -> float:
        """Return the seconds with instances, over all attempts."""
        now = time.time()
        with self._lock:
            held = [entry for entry in self._transitions if entry["Status"] in _INSTANCES_HELD]
            return sum(entry.get("EndTime", now) - entry["StartTime"] for entry in held)

    def summary(self) -> dict[str, Any]:
        """Return the job's entry in ListTrainingJobs."""
        with self._lock:
            summary = {
                "TrainingJobName": self.name,
                "TrainingJobArn": self.arn,
                "CreationTime": self.created,
                "LastModifiedTime": self._modified,
                "TrainingJobStatus": self.status,
                "SecondaryStatus": self._transitions[-1]["Status"] if self._transitions else "Starting",
            }
            if self.status in ENDED:
                summary["TrainingEndTime"] = self._modified
            return summary

    def description(self) -> dict[str, Any]:
        """Return the response of DescribeTrainingJob."""
        disabled = ("EnableManagedSpotTraining", "EnableNetworkIsolation", "EnableInterContainerTrafficEncryption")
        description = {**dict.fromkeys(disabled, False), **self.request, **self._tuning, **self.summary()}
        description.pop("Tags", None)  # they are in ListTags
        description |= self._rules()
        with self._lock:
            description["SecondaryStatusTransitions"] = [dict(entry) for entry in self._transitions]
            started = [entry["StartTime"] for entry in self._transitions if entry["Status"] == "Downloading"]
        if started:
            description["TrainingStartTime"] = started[0]
        if description["TrainingJobStatus"] in ENDED:
            description |= self._result()
        return description

    def _rules(self) -> dict[str, Any]:
        """Return a status for each of AWS's rules, none of which are evaluated."""
        requested = {kind: self.request.get(f"{kind}RuleConfigurations", []) for kind in ("Debug", "Profiler")}
        return {
            f"{kind}RuleEvaluationStatuses": [
                {
                    "RuleConfigurationName": rule["RuleConfigurationName"],
                    "RuleEvaluationStatus": "Error",
                    "StatusDetails": NO_RULES,
                    "LastModifiedTime": self.created,
                }
                for rule in rules
            ]
            for kind, rules in requested.items()
            if rules
        }

    def _result(self) -> dict[str, Any]:
        seconds = math.ceil(self.training_seconds())
        spot = self.request.get("EnableManagedSpotTraining", False)
        result: dict[str, Any] = {
            "TrainingTimeInSeconds": seconds,
            "BillableTimeInSeconds": math.ceil(seconds * SPOT_PRICE) if spot else seconds,
            "FinalMetricDataList": self.metrics.final(),
        }
        if self._failure:
            result["FailureReason"] = self._failure
        if self._model:
            result["ModelArtifacts"] = {"S3ModelArtifacts": self.output_uri("model.tar.gz")}
        return result

    def output_uri(self, name: str) -> str:
        """Return the URI of one of the job's archives."""
        return join_uri(self.request["OutputDataConfig"]["S3OutputPath"], self.name, "output", name)
