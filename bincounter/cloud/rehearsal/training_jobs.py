"""The API's operations on training jobs."""

import threading
from typing import Any

from bincounter.cloud.rehearsal.answers import Operation, Refused
from bincounter.cloud.rehearsal.checks import check_rehearsable, check_rules, check_shape
from bincounter.cloud.rehearsal.job import Job
from bincounter.cloud.rehearsal.record import JobRecord
from bincounter.cloud.rehearsal.site import Site

_PAGE = 10  # AWS's default of MaxResults
_SORT_KEYS = {"Name": "TrainingJobName", "CreationTime": "CreationTime", "Status": "TrainingJobStatus"}


class TrainingJobs:
    """All training jobs of a control plane.

    Args:
        site: where they run.
        model: botocore's service model of SageMaker.
    """

    def __init__(self, site: Site, model: Any) -> None:
        self._site = site
        self._model = model
        self._records: dict[str, JobRecord] = {}
        self._lock = threading.Lock()

    def operations(self) -> dict[str, Operation]:
        """What is answered here, by AWS's names."""
        return {
            "CreateTrainingJob": self._create,
            "DescribeTrainingJob": self._describe,
            "StopTrainingJob": self._stop,
            "ListTrainingJobs": self._list,
        }

    def _check_shape(self, operation: str, request: dict[str, Any]) -> None:
        check_shape(self._model.operation_model(operation).input_shape, request)

    def _create(self, request: dict[str, Any]) -> dict[str, Any]:
        self._check_shape("CreateTrainingJob", request)
        check_rules(request)
        check_rehearsable(request)
        record = JobRecord(request)
        with self._lock:
            if record.name in self._records:
                raise Refused("ResourceInUse", f"A training job with this name exists already: {record.arn}")
            self._records[record.name] = record
        Job(self._site, record).start()
        return {"TrainingJobArn": record.arn}

    def _record(self, operation: str, request: dict[str, Any]) -> JobRecord:
        self._check_shape(operation, request)
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
        self._check_shape("ListTrainingJobs", request)
        unknown = request.keys() & {"WarmPoolStatusEquals", "TrainingPlanArnEquals"}
        if unknown:
            raise Refused("ValidationException", f"The rehearsal does not filter by {', '.join(sorted(unknown))}.")
        with self._lock:
            records = list(self._records.values())
        found = [summary for record in records if _wanted(summary := record.summary(), request)]
        key = _SORT_KEYS[request.get("SortBy", "CreationTime")]
        found.sort(key=lambda summary: summary[key], reverse=request.get("SortOrder") == "Descending")
        start = int(request.get("NextToken", "0"))
        end = start + request.get("MaxResults", _PAGE)
        page = {"TrainingJobSummaries": found[start:end]}
        return {**page, "NextToken": str(end)} if end < len(found) else page


def _wanted(summary: dict[str, Any], request: dict[str, Any]) -> bool:
    if request.get("NameContains", "") not in summary["TrainingJobName"]:
        return False
    if request.get("StatusEquals", summary["TrainingJobStatus"]) != summary["TrainingJobStatus"]:
        return False
    return all(
        request.get(f"{moment}After", float("-inf")) <= summary[moment] <= request.get(f"{moment}Before", float("inf"))
        for moment in ("CreationTime", "LastModifiedTime")
    )
