"""Hyperparameter tuning jobs: their run, and the API operations on them."""

import secrets
import threading
import traceback
from operator import itemgetter
from typing import Any

from sagemaker_rehearsal.protocol import Operation, Refused, check_shape, is_wanted, page
from sagemaker_rehearsal.training_jobs import TrainingJobs
from sagemaker_rehearsal.tuning_checks import check_tuning_rules
from sagemaker_rehearsal.tuning_record import Trial, TuningRecord
from sagemaker_rehearsal.tuning_search import Values, choices, is_behind_median

_KIND = "HyperParameterTuningJob"
_SORT_KEYS = {"Name": f"{_KIND}Name", "CreationTime": "CreationTime", "Status": f"{_KIND}Status"}
_VALUE = "FinalHyperParameterTuningJobObjectiveMetric"
_TRAINING_SORT_KEYS = {"Name": "TrainingJobName", "CreationTime": "CreationTime", "Status": "TrainingJobStatus"}
_TICK = 0.1  # seconds between two checks of the training jobs

# Members copied from a tuning job's definition to the requests of its training jobs.
_COPIED = (
    "AlgorithmSpecification",
    "RoleArn",
    "InputDataConfig",
    "VpcConfig",
    "OutputDataConfig",
    "ResourceConfig",
    "StoppingCondition",
    "EnableNetworkIsolation",
    "EnableInterContainerTrafficEncryption",
    "EnableManagedSpotTraining",
    "CheckpointConfig",
    "RetryStrategy",
    "Environment",
)


def training_request(request: dict[str, Any], number: int, values: Values) -> dict[str, Any]:
    """Return the body of CreateTrainingJob for one training job of a tuning job.

    All of them share ``CheckpointConfig``: AWS documents no folder for each, and a shared one is the harder case.

    Args:
        request: body of CreateHyperParameterTuningJob.
        number: number of the training job, from 1.
        values: values of the tuned hyperparameters.
    """
    definition = request["TrainingJobDefinition"]
    metric = request["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"]["MetricName"]
    static = definition.get("StaticHyperParameters", {})
    return {
        "TrainingJobName": f"{request['HyperParameterTuningJobName']}-{number:03d}-{secrets.token_hex(4)}",
        "HyperParameters": {**static, **values, "_tuning_objective_metric": metric},
        **{name: definition[name] for name in _COPIED if name in definition},
    }


class TuningJob:
    """One tuning job, run by a thread of its own.

    Args:
        training_jobs: training jobs of the plane, to launch more.
        record: record with the request, for the tuning job's state.
        closed: event at the end of the plane.
    """

    def __init__(self, training_jobs: TrainingJobs, record: TuningRecord, closed: threading.Event) -> None:
        self._training_jobs = training_jobs
        self._record = record
        self._closed = closed
        config = record.request["HyperParameterTuningJobConfig"]
        limits = config["ResourceLimits"]
        self._objective = config["HyperParameterTuningJobObjective"]
        self._parallel: int = limits["MaxParallelTrainingJobs"]
        self._number: float = limits.get("MaxNumberOfTrainingJobs", float("inf"))  # a grid ends by itself
        self._choices = choices(config)
        self._stops_early = config.get("TrainingJobEarlyStoppingType") == "Auto"
        self._running: list[Trial] = []

    def start(self) -> None:
        """Start the tuning job's thread."""
        threading.Thread(target=self._run, name=self._record.name, daemon=True).start()

    def _run(self) -> None:
        try:
            while self._advance() and not self._closed.wait(_TICK):
                pass
        except Exception as error:  # any: clients wait for the end of the tuning job
            traceback.print_exc()
            for trial in self._running:
                trial.stop()
            self._record.finish("Failed", f"InternalServerError: the rehearsal itself failed: {error!r}")

    def _advance(self) -> bool:
        """Start and stop training jobs as due; return True if the tuning job continues."""
        self._running = [trial for trial in self._running if not trial.ended]
        stopping = self._record.stop_requested.is_set()
        for trial in self._running:
            if stopping or (self._stops_early and self._is_behind(trial)):
                trial.stop()
        while not stopping and len(self._running) < self._parallel and self._start_next():
            pass
        if not self._running:
            self._finish(stopping)
        return bool(self._running)

    def _is_behind(self, trial: Trial) -> bool:
        others = [other.progress() for other in self._record.trials if other is not trial]
        return is_behind_median(trial.progress().values, others)

    def _start_next(self) -> bool:
        number = len(self._record.trials) + 1
        values = next(self._choices, None) if number <= self._number else None
        if values is None:
            return False
        request = training_request(self._record.request, number, values)
        trial = Trial(self._training_jobs.launch(request, self._record.arn), values, self._objective)
        self._running.append(trial)
        self._record.add(trial)
        return True

    def _finish(self, stopping: bool) -> None:
        if stopping:
            self._record.finish("Stopped")
        elif self._record.best():
            self._record.finish("Completed")
        elif all(trial.record.status == "Failed" for trial in self._record.trials):
            self._record.finish("Failed", "All training jobs failed: see the FailureReason of each.")
        else:
            metric = self._objective["MetricName"]
            self._record.finish("Failed", f"No training job logged the objective metric {metric}.")


class TuningJobs:
    """All tuning jobs of a control plane.

    Args:
        training_jobs: training jobs of the plane, to launch more.
        model: botocore's service model of SageMaker.
    """

    def __init__(self, training_jobs: TrainingJobs, model: Any) -> None:
        self._training_jobs = training_jobs
        self._model = model
        self._records: dict[str, TuningRecord] = {}  # by lower-case names: AWS ignores case
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def operations(self) -> dict[str, Operation]:
        """Return the operations by AWS's names of them."""
        return {
            f"Create{_KIND}": self._create,
            f"Describe{_KIND}": self._describe,
            f"Stop{_KIND}": self._stop,
            f"List{_KIND}s": self._list,
            f"ListTrainingJobsFor{_KIND}": self._list_training_jobs,
        }

    def close(self) -> None:
        """Start no more training jobs."""
        self._closed.set()

    def _create(self, request: dict[str, Any]) -> dict[str, Any]:
        check_shape(self._model, f"Create{_KIND}", request)
        check_tuning_rules(request)
        config = request["HyperParameterTuningJobConfig"]
        tuned = [each["Name"] for ranges in config["ParameterRanges"].values() for each in ranges]
        self._training_jobs.check(training_request(request, 1, dict.fromkeys(tuned, "")))
        record = TuningRecord(request)
        with self._lock:
            if record.name.lower() in self._records:
                raise Refused("ResourceInUse", f"A tuning job with this name exists already: {record.arn}")
            self._records[record.name.lower()] = record
        TuningJob(self._training_jobs, record, self._closed).start()
        return {f"{_KIND}Arn": record.arn}

    def _record(self, operation: str, request: dict[str, Any]) -> TuningRecord:
        check_shape(self._model, operation, request)
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
        check_shape(self._model, f"List{_KIND}s", request)
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
