"""A tuning job from its start to its end: training jobs, as many at a time as are allowed, until there are enough."""

import secrets
import threading
import traceback
from typing import Any

from bincounter.cloud.rehearsal.training_jobs import TrainingJobs
from bincounter.cloud.rehearsal.tuning_record import Trial, TuningRecord
from bincounter.cloud.rehearsal.tuning_search import Search, Values
from bincounter.cloud.rehearsal.tuning_stops import rule_for

_TICK = 0.1  # seconds between two looks at the training jobs

# Members that a training job's request takes from the tuning job's definition as they are.
_TAKEN = (
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
    """CreateTrainingJob's body for one training job of a tuning job.

    ``CheckpointConfig`` is the same for all of them: whether AWS has a folder for each below it is not documented, and
    without is the harder case.

    Args:
        request: the body of CreateHyperParameterTuningJob.
        number: of the training job, from 1.
        values: of the tuned hyperparameters.
    """
    definition = request["TrainingJobDefinition"]
    metric = request["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"]["MetricName"]
    static = definition.get("StaticHyperParameters", {})
    return {
        "TrainingJobName": f"{request['HyperParameterTuningJobName']}-{number:03d}-{secrets.token_hex(4)}",
        "HyperParameters": {**static, **values, "_tuning_objective_metric": metric},
        **{name: definition[name] for name in _TAKEN if name in definition},
    }


class TuningJob:
    """Runs one tuning job in a thread.

    Args:
        training_jobs: where its training jobs run.
        record: what is asked for, and where its state goes.
        search: chooses the values.
        closed: is set when the plane ends.
    """

    def __init__(
        self, training_jobs: TrainingJobs, record: TuningRecord, search: Search, closed: threading.Event
    ) -> None:
        self._training_jobs = training_jobs
        self._record = record
        self._search = search
        self._closed = closed
        config = record.request["HyperParameterTuningJobConfig"]
        limits = config["ResourceLimits"]
        self._objective = config["HyperParameterTuningJobObjective"]
        self._parallel: int = limits["MaxParallelTrainingJobs"]
        self._number: float = limits.get("MaxNumberOfTrainingJobs", float("inf"))  # a grid ends by itself
        self._rule = rule_for(record.request)
        self._running: list[Trial] = []

    def start(self) -> None:
        """Start the tuning job's thread."""
        threading.Thread(target=self._run, name=self._record.name, daemon=True).start()

    def _run(self) -> None:
        try:
            while self._advance() and not self._closed.wait(_TICK):
                pass
        except Exception as error:  # whatever goes wrong here, the client must see an end
            traceback.print_exc()
            for trial in self._running:
                trial.stop()
            self._record.finish("Failed", f"InternalServerError: the rehearsal itself failed: {error!r}")

    def _advance(self) -> bool:
        """Bring everything up to date; whether something is still to come."""
        self._learn()
        stopping = self._record.stop_requested.is_set()
        for trial in self._running:
            if stopping or self._is_hopeless(trial):
                trial.stop()
        while not stopping and len(self._running) < self._parallel and self._start_next():
            pass
        if not self._running:
            self._finish(stopping)
        return bool(self._running)

    def _learn(self) -> None:
        """Tell the search what has ended."""
        for trial in [trial for trial in self._running if trial.ended]:
            self._running.remove(trial)
            self._search.learn(trial.choice.number, trial.value)

    def _is_hopeless(self, trial: Trial) -> bool:
        others = [other.progress() for other in self._record.trials if other is not trial]
        return self._rule.gives_up(trial.progress().values, others)

    def _start_next(self) -> bool:
        number = len(self._record.trials) + 1
        choice = self._search.choose() if number <= self._number else None
        if choice is None:
            return False
        request = training_request(self._record.request, number, choice.values)
        trial = Trial(self._training_jobs.launch(request, self._record.arn), choice, self._objective)
        self._running.append(trial)
        self._record.add(trial)
        return True

    def _finish(self, stopping: bool) -> None:
        if stopping:
            self._record.finish("Stopped")
        elif self._record.best():
            self._record.finish("Completed")
        elif all(trial.record.status == "Failed" for trial in self._record.trials):
            self._record.finish("Failed", "All training jobs failed: look at the FailureReason of each.")
        else:
            metric = self._objective["MetricName"]
            self._record.finish("Failed", f"No training job logged the objective metric {metric}.")
