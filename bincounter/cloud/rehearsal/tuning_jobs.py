"""The API's operations on hyperparameter tuning jobs."""

import threading
from operator import itemgetter
from typing import Any

from bincounter.cloud.rehearsal.answers import Operation, Refused
from bincounter.cloud.rehearsal.checks import check_shape
from bincounter.cloud.rehearsal.listing import is_wanted, page
from bincounter.cloud.rehearsal.training_jobs import TrainingJobs
from bincounter.cloud.rehearsal.tuning_checks import check_tuning_rules, check_warm_start
from bincounter.cloud.rehearsal.tuning_job import TuningJob, training_request
from bincounter.cloud.rehearsal.tuning_record import TuningRecord
from bincounter.cloud.rehearsal.tuning_search import search_for

_KIND = "HyperParameterTuningJob"
_SORT_KEYS = {"Name": f"{_KIND}Name", "CreationTime": "CreationTime", "Status": f"{_KIND}Status"}
_VALUE = "FinalHyperParameterTuningJobObjectiveMetric"
_TRAINING_SORT_KEYS = {"Name": "TrainingJobName", "CreationTime": "CreationTime", "Status": "TrainingJobStatus"}


class TuningJobs:
    """All tuning jobs of a control plane.

    Args:
        training_jobs: where their training jobs run.
        model: botocore's service model of SageMaker.
    """

    def __init__(self, training_jobs: TrainingJobs, model: Any) -> None:
        self._training_jobs = training_jobs
        self._model = model
        self._records: dict[str, TuningRecord] = {}  # by names in lower case: AWS takes no notice of case
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def operations(self) -> dict[str, Operation]:
        """What is answered here, by AWS's names."""
        return {
            f"Create{_KIND}": self._create,
            f"Describe{_KIND}": self._describe,
            f"Stop{_KIND}": self._stop,
            f"List{_KIND}s": self._list,
            f"ListTrainingJobsFor{_KIND}": self._list_training_jobs,
        }

    def close(self) -> None:
        """Start no further training job."""
        self._closed.set()

    def _check_shape(self, operation: str, request: dict[str, Any]) -> None:
        check_shape(self._model.operation_model(operation).input_shape, request)

    def _create(self, request: dict[str, Any]) -> dict[str, Any]:
        self._check_shape(f"Create{_KIND}", request)
        check_tuning_rules(request)
        config = request["HyperParameterTuningJobConfig"]
        tuned = [each["Name"] for ranges in config["ParameterRanges"].values() for each in ranges]
        self._training_jobs.check(training_request(request, 1, dict.fromkeys(tuned, "")))
        parents = self._parents(request)
        past = [tried for parent in parents for tried in parent.evaluated()]
        search = search_for(config, past)
        record = TuningRecord(request, parents)
        with self._lock:
            if record.name.lower() in self._records:
                raise Refused("ResourceInUse", f"A tuning job with this name exists already: {record.arn}")
            self._records[record.name.lower()] = record
        TuningJob(self._training_jobs, record, search, self._closed).start()
        return {f"{_KIND}Arn": record.arn}

    def _parents(self, request: dict[str, Any]) -> list[TuningRecord]:
        named = request.get("WarmStartConfig", {}).get("ParentHyperParameterTuningJobs", [])
        names = [parent.get(f"{_KIND}Name", "") for parent in named]
        with self._lock:
            parents = {name: self._records.get(name.lower()) for name in names}
        missing = [name for name, parent in parents.items() if parent is None]
        if missing:
            raise Refused("ValidationException", f"There is no parent tuning job {', '.join(missing)}.")
        found = [parent for parent in parents.values() if parent is not None]
        check_warm_start(request, [parent.description() for parent in found])
        return found

    def _record(self, operation: str, request: dict[str, Any]) -> TuningRecord:
        self._check_shape(operation, request)
        name = request[f"{_KIND}Name"]
        with self._lock:
            record = self._records.get(name.lower())
        if record is None:
            raise Refused("ResourceNotFound", f"There is no tuning job {name}.")
        return record

    def _describe(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._record(f"Describe{_KIND}", request).description()

    def _stop(self, request: dict[str, Any]) -> dict[str, Any]:
        self._record(f"Stop{_KIND}", request).stop()
        return {}

    def _list(self, request: dict[str, Any]) -> dict[str, Any]:
        self._check_shape(f"List{_KIND}s", request)
        with self._lock:
            records = list(self._records.values())
        found = [summary for record in records if is_wanted(summary := record.summary(), request, _KIND)]
        return page(f"{_KIND}Summaries", found, request, itemgetter(_SORT_KEYS[request.get("SortBy", "Name")]))

    def _list_training_jobs(self, request: dict[str, Any]) -> dict[str, Any]:
        record = self._record(f"ListTrainingJobsFor{_KIND}", request)
        trials = [trial.summary(record.name) for trial in record.trials]
        found = [trial for trial in trials if is_wanted(trial, request, "TrainingJob")]
        order = request.get("SortBy", "Name")
        if order != "FinalObjectiveMetricValue":
            return page("TrainingJobSummaries", found, request, itemgetter(_TRAINING_SORT_KEYS[order]))
        valued = [trial for trial in found if _VALUE in trial]
        return page("TrainingJobSummaries", valued, request, lambda trial: trial[_VALUE]["Value"])
