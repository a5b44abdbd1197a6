"""API operations on training jobs."""

import threading
from operator import itemgetter
from typing import Any

from sagemaker_rehearsal.protocol import Operation, Refused, check_shape, is_wanted, page
from sagemaker_rehearsal.request_checks import check_rehearsable, check_rules
from sagemaker_rehearsal.site import Site
from sagemaker_rehearsal.training_job import TrainingJob
from sagemaker_rehearsal.training_record import JobRecord

_SORT_KEYS = {"Name": "TrainingJobName", "CreationTime": "CreationTime", "Status": "TrainingJobStatus"}


class TrainingJobs:
    """All training jobs of a control plane.

    Args:
        site: state shared by all jobs.
        model: botocore's service model of SageMaker.
    """

    def __init__(self, site: Site, model: Any) -> None:
        self._site = site
        self._model = model
        self._records: dict[str, JobRecord] = {}
        self._lock = threading.Lock()

    def operations(self) -> dict[str, Operation]:
        """Return the operations by AWS's names of them."""
        return {
            "CreateTrainingJob": self._create,
            "DescribeTrainingJob": self._describe,
            "StopTrainingJob": self._stop,
            "ListTrainingJobs": self._list,
        }

    def _create(self, request: dict[str, Any]) -> dict[str, Any]:
        self.check(request)
        return {"TrainingJobArn": self.launch(request).arn}

    def check(self, request: dict[str, Any]) -> None:
        """Check the body of a CreateTrainingJob.

        Raises:
            Refused: AWS rejects the request, or it cannot be rehearsed.
        """
        check_shape(self._model, "CreateTrainingJob", request)
        check_rules(request)
        check_rehearsable(request)

    def launch(self, request: dict[str, Any], tuning_job_arn: str | None = None) -> JobRecord:
        """Start a training job.

        Args:
            request: body of CreateTrainingJob, checked.
            tuning_job_arn: ARN of its tuning job, if any.

        Raises:
            Refused: the name is taken.
        """
        record = JobRecord(request, tuning_job_arn)
        with self._lock:
            if record.name in self._records:
                raise Refused("ResourceInUse", f"A training job with this name exists already: {record.arn}")
            self._records[record.name] = record
        TrainingJob(self._site, record).start()
        return record

    def _record(self, operation: str, request: dict[str, Any]) -> JobRecord:
        check_shape(self._model, operation, request)
        with self._lock:
            record = self._records.get(request["TrainingJobName"])
        if record is None:
            raise Refused("ValidationException", "Requested resource not found.")
        return record

    def _describe(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._record("DescribeTrainingJob", request).description()

    def _stop(self, request: dict[str, Any]) -> dict[str, Any]:
        self._record("StopTrainingJob", request).stop()
        return {}

    def _list(self, request: dict[str, Any]) -> dict[str, Any]:
        check_shape(self._model, "ListTrainingJobs", request)
        unknown = request.keys() & {"WarmPoolStatusEquals", "TrainingPlanArnEquals"}
        if unknown:
            raise Refused(
                "ValidationException", f"The rehearsal does not support filtering by {', '.join(sorted(unknown))}."
            )
        with self._lock:
            records = list(self._records.values())
        found = [summary for record in records if is_wanted(summary := record.summary(), request, "TrainingJob")]
        key = itemgetter(_SORT_KEYS[request.get("SortBy", "CreationTime")])
        return page("TrainingJobSummaries", found, request, key)
