"""Jobs followed in this process, on a scripted SageMaker."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bincounter.cloud import job_runner
from bincounter.cloud.job_runner import JobRunner, RunningJob
from bincounter.cloud.jobs import Job, read_job
from bincounter.errors import Interrupted

LOG = ["Invoking script with the following command:", "python start.py", "epoch 1 of 2: val/accuracy=0.5"]


@dataclass
class Scripted:
    """An account whose jobs log an epoch and fail, or run for ever."""

    ends: bool
    region: str = "us-east-1"
    created: list[str] = field(default_factory=list)

    @property
    def sagemaker(self) -> Any:
        def describe(TrainingJobName: str) -> dict[str, str]:  # noqa: N803
            status = "Failed" if self.ends else "InProgress"
            return {"TrainingJobStatus": status, "FailureReason": "no more", "SecondaryStatus": "Training"}

        def create(**request: str) -> None:
            self.created.extend(request.values())

        return SimpleNamespace(
            meta=SimpleNamespace(endpoint_url="http://127.0.0.1:1"),
            describe_training_job=describe,
            create_training_job=create,
        )

    @property
    def logs(self) -> Any:
        def events(nextToken: str = "", **_: Any) -> dict[str, Any]:  # noqa: N803
            lines = [] if nextToken else [{"message": line, "timestamp": 0} for line in LOG]
            return {"events": lines, "nextForwardToken": "end"}

        pages = [{"logStreams": [{"logStreamName": "job/algo-1-1"}]}]
        return SimpleNamespace(
            exceptions=SimpleNamespace(ResourceNotFoundException=KeyError),
            get_paginator=lambda _: SimpleNamespace(paginate=lambda **_: pages),
            get_log_events=events,
        )

    @property
    def s3(self) -> Any:
        return SimpleNamespace(get_paginator=lambda _: SimpleNamespace(paginate=lambda **_: []))

    def console_link(self, name: str) -> str:
        return name


@pytest.fixture
def tasks(tmp_path: Path) -> list[RunningJob]:
    """Three jobs to submit."""
    jobs = [
        Job(f"job-{number}", number, tmp_path / str(number), "us-east-1", f"s3://b/{number}", [], 1.0)
        for number in range(3)
    ]
    return [RunningJob(job, {"TrainingJobName": job.name}) for job in jobs]


def runner(account: Scripted, tasks: Sequence[RunningJob], judge: Callable[..., bool] | None = None) -> JobRunner:
    return JobRunner(account, tasks, at_once=1, judge=judge)  # type: ignore[arg-type]


def test_an_error_of_the_pruner_is_logged_and_the_job_is_followed(
    tasks: list[RunningJob], caplog: pytest.LogCaptureFixture
) -> None:
    def locked(*_: object) -> bool:
        raise RuntimeError("the database is locked")

    caplog.set_level(logging.WARNING)
    runner(Scripted(ends=True), tasks[:1], locked).run_all()
    assert "no more" in str(tasks[0].error)
    assert "job-0 could not be pruned (RuntimeError('the database is locked'))" in caplog.text


def test_ctrl_c_names_the_jobs_that_run_and_those_that_will_not(
    tasks: list[RunningJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    presses: list[int] = []

    def pressed(_: object) -> None:
        presses.append(len(presses))
        raise KeyboardInterrupt

    monkeypatch.setattr(job_runner, "wait", pressed)
    account = Scripted(ends=False)
    with pytest.raises(Interrupted) as left:
        runner(account, tasks).run_all()
    assert presses == [0, 1]  # the second one while the followers return
    assert str(left.value).startswith("job-0 may still run, and be billed: follow with bincounter attach")
    assert str(left.value).endswith(". 2 of 3 jobs were not submitted: launch the values of job 1, 2 again")
    assert account.created == ["job-0"]
    assert read_job(tasks[0].job.folder / "job.json").name == "job-0"
