"""State of a tuning job and its training jobs, described as by DescribeHyperParameterTuningJob."""

import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any

from sagemaker_rehearsal import ACCOUNT, REGION
from sagemaker_rehearsal.protocol import Refused
from sagemaker_rehearsal.training_record import ENDED, JobRecord
from sagemaker_rehearsal.tuning_search import Progress, Values

_COUNTED = {
    "Completed": "Completed",
    "InProgress": "InProgress",
    "Stopping": "InProgress",
    "Failed": "NonRetryableError",
    "Stopped": "Stopped",
}


class Trial:
    """Training job of a tuning job.

    Args:
        record: record of the training job.
        values: values of the tuned hyperparameters.
        objective: ``HyperParameterTuningJobObjective``.
    """

    def __init__(self, record: JobRecord, values: Values, objective: dict[str, str]) -> None:
        self.record = record
        self._values = values
        self._objective = objective
        self._sign = 1 if objective["Type"] == "Maximize" else -1

    @property
    def ended(self) -> bool:
        """True if the training job has ended."""
        return self.record.status in ENDED

    @property
    def value(self) -> float | None:
        """Last value of the objective, if the job completed or was stopped."""
        values = self.record.metrics.values(self._objective["MetricName"])
        return values[-1] if values and self.record.status in ("Completed", "Stopped") else None

    @property
    def score(self) -> float:
        """Value, signed so that more is better; minus infinity without a value."""
        return float("-inf") if self.value is None else self._sign * self.value

    def progress(self) -> Progress:
        """Return its values so far, signed so that more is better."""
        values = self.record.metrics.values(self._objective["MetricName"])
        return Progress([self._sign * value for value in values], self.record.status == "Completed")

    def stop(self) -> None:
        """Stop the training job, if it runs."""
        with suppress(Refused):
            self.record.stop()

    def summary(self, tuning_job: str) -> dict[str, Any]:
        """Return its ``HyperParameterTrainingJobSummary``."""
        described, value = self.record.description(), self.value
        names = ("TrainingJobName", "TrainingJobArn", "CreationTime", "TrainingStartTime", "TrainingEndTime")
        kept = ("TrainingJobStatus", "FailureReason")
        summary: dict[str, Any] = {name: described[name] for name in (*names, *kept) if name in described}
        summary |= {"TuningJobName": tuning_job, "TunedHyperParameters": self._values}
        ended = summary["TrainingJobStatus"] in ENDED
        summary["ObjectiveStatus"] = "Pending" if not ended else "Failed" if value is None else "Succeeded"
        if ended and value is not None:
            summary["FinalHyperParameterTuningJobObjectiveMetric"] = {
                "Type": self._objective["Type"],
                "MetricName": self._objective["MetricName"],
                "Value": value,
            }
        return summary


class TuningRecord:
    """State of a tuning job, written by its thread and read by requests.

    Args:
        request: body of CreateHyperParameterTuningJob.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.name: str = request["HyperParameterTuningJobName"]
        self.arn = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:hyper-parameter-tuning-job/{self.name}"
        self.stop_requested = threading.Event()
        self._lock = threading.Lock()
        self._trials: list[Trial] = []
        self._created = self._modified = time.time()
        self._status = "InProgress"
        self._failure = ""

    @property
    def trials(self) -> list[Trial]:
        """Training jobs so far, oldest first."""
        with self._lock:
            return list(self._trials)

    def add(self, trial: Trial) -> None:
        """Add a training job."""
        with self._lock:
            self._trials.append(trial)

    def stop(self) -> None:
        """Request the end of the tuning job: StopHyperParameterTuningJob.

        Raises:
            Refused: the tuning job has ended.
        """
        with self._lock:
            if self._status in ENDED:
                raise Refused("ValidationException", f"The tuning job has ended: its status is {self._status}.")
            self._status, self._modified = "Stopping", time.time()
        self.stop_requested.set()

    def finish(self, status: str, failure: str = "") -> None:
        """End the tuning job.

        Args:
            status: ``Completed``, ``Failed`` or ``Stopped``.
            failure: ``FailureReason``.
        """
        with self._lock:
            self._status, self._failure, self._modified = status, failure, time.time()

    def best(self) -> Trial | None:
        """Return the training job with the best value, the oldest of equal ones."""
        valued = [trial for trial in self.trials if trial.value is not None]
        return max(valued, key=lambda trial: trial.score, default=None)

    def summary(self) -> dict[str, Any]:
        """Return its ``HyperParameterTuningJobSummary``."""
        config = self.request["HyperParameterTuningJobConfig"]
        # Read before the training jobs: an ended tuning job must not count one in progress.
        with self._lock:
            status, modified = self._status, self._modified
        trials = [trial.summary(self.name) for trial in self.trials]
        jobs = Counter(_COUNTED[trial["TrainingJobStatus"]] for trial in trials)
        objectives = Counter(trial["ObjectiveStatus"] for trial in trials)
        summary = {
            "HyperParameterTuningJobName": self.name,
            "HyperParameterTuningJobArn": self.arn,
            "HyperParameterTuningJobStatus": status,
            "Strategy": config["Strategy"],
            "CreationTime": self._created,
            "LastModifiedTime": modified,
            "TrainingJobStatusCounters": {name: jobs[name] for name in (*_COUNTED.values(), "RetryableError")},
            "ObjectiveStatusCounters": {name: objectives[name] for name in ("Succeeded", "Pending", "Failed")},
            "ResourceLimits": config["ResourceLimits"],
        }
        return {**summary, "HyperParameterTuningEndTime": modified} if status in ENDED else summary

    def description(self) -> dict[str, Any]:
        """Return the response of DescribeHyperParameterTuningJob."""
        summary = self.summary()
        requested = {name: member for name, member in self.request.items() if name != "Tags"}  # they are in ListTags
        described = {**requested, **summary}
        del described["Strategy"], described["ResourceLimits"]  # they are in HyperParameterTuningJobConfig
        until = summary.get("HyperParameterTuningEndTime", time.time())
        described["ConsumedResources"] = {"RuntimeInSeconds": int(until - self._created)}
        best = self.best()
        if best:
            described["BestTrainingJob"] = best.summary(self.name)
        return {**described, "FailureReason": self._failure} if self._failure else described
