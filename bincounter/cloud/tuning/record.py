"""One tuning job, and the file that remembers it: a search that is started again follows it instead of paying twice."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bincounter.cloud.aws_errors import answered_by_aws
from bincounter.errors import UserError
from bincounter.files import write_text

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

RECORD = "tuning.json"  # in the search's folder
ENDED = ("Completed", "Failed", "Stopped", "DeleteFailed")


@dataclass(frozen=True)
class TuningJob:
    """A tuning job and the search it carries out.

    Attributes:
        name: of the job.
        study: name of the search.
        region: of the job.
        trials: that it was asked for.
        usd_per_hour: of all instances of one trial, on demand.
        identity: digests of what is searched, as bincounter.sweep.plan has them.
        status: ``InProgress``, or what it ended with.
        instance_type: of a trial, such as ``ml.g5.xlarge``; empty in a record that an earlier version wrote.
        instance_count: how many of them a trial has.
        price_origin: where ``usd_per_hour`` is from, in words.
        rehearsed: whether it runs on this machine, so that nothing is paid.
    """

    name: str
    study: str
    region: str
    trials: int
    usd_per_hour: float
    identity: Mapping[str, str]
    status: str = "InProgress"
    instance_type: str = ""
    instance_count: int = 1
    price_origin: str = ""
    rehearsed: bool = False

    def save(self, folder: Path) -> None:
        """Write ``tuning.json`` into the search's folder."""
        write_text(folder / RECORD, json.dumps(vars(self), indent=2) + "\n")


def load(folder: Path) -> TuningJob | None:
    """The tuning job of a search's folder, or ``None``.

    Raises:
        UserError: its record is damaged.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        return TuningJob(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise UserError(f"{path} is damaged: bring it back from a copy, or remove it, which forgets its job") from None


def submit(account: "Account", job: TuningJob, request: dict[str, Any], folder: Path) -> None:
    """Send CreateHyperParameterTuningJob; the record is there before the job is, so that none is lost."""
    from botocore.exceptions import ClientError

    job.save(folder)
    with answered_by_aws(f"submitting {job.name}"):
        try:
            account.sagemaker.create_hyper_parameter_tuning_job(**request)
        except ClientError as error:
            if error.response["Error"]["Code"] == "ResourceInUse":
                return  # our own first try, whose answer was lost: nobody else has a name of ours
            (folder / RECORD).unlink()
            raise


def exists(account: "Account", job: TuningJob) -> bool:
    """Whether SageMaker knows a tuning job, in this account and the job's region."""
    from botocore.exceptions import ClientError

    with answered_by_aws(f"asking for {job.name}"):
        try:
            account.sagemaker.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=job.name)
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("ResourceNotFound", "ValidationException"):
                raise
            return False
    return True


def describe(account: "Account", name: str) -> dict[str, Any]:
    """DescribeHyperParameterTuningJob."""
    with answered_by_aws(f"asking for {name}"):
        return account.sagemaker.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)


def trials(account: "Account", name: str) -> list[dict[str, Any]]:
    """The summaries of a tuning job's training jobs, in the order they were begun."""
    with answered_by_aws(f"listing the training jobs of {name}"):
        pages = account.sagemaker.get_paginator("list_training_jobs_for_hyper_parameter_tuning_job").paginate(
            HyperParameterTuningJobName=name, SortBy="CreationTime", SortOrder="Ascending"
        )
        found = [summary for page in pages for summary in page["TrainingJobSummaries"]]
    return sorted(found, key=lambda summary: (summary["CreationTime"], summary["TrainingJobName"]))


def stop(account: "Account", name: str) -> None:
    """Ask SageMaker to stop a tuning job and its training jobs; one that has ended is left alone."""
    from botocore.exceptions import ClientError

    with answered_by_aws(f"stopping {name}"):
        try:
            account.sagemaker.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
        except ClientError as error:
            if error.response["Error"]["Code"] != "ValidationException":  # it is stopping already, or has ended
                raise
