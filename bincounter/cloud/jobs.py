"""One training job from its submission to its end, and the file that remembers it."""

import json
import re
import secrets
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from bincounter.cloud.aws_errors import answered_by_aws
from bincounter.errors import ConfigError
from bincounter.files import write_text

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

RECORD = "job.json"  # in the run's folder
ENDED = ("Completed", "Failed", "Stopped")
_NAME_LENGTH = 63  # SageMaker's limit
_POLL_FIRST, _POLL_LONGEST = 1.0, 10.0  # seconds between two questions; DescribeTrainingJob is throttled
_POLL_HERE = 0.2  # nobody throttles a rehearsal


@dataclass
class Job:
    """A training job and the run folder it fills.

    Attributes:
        name: of the job.
        number: in its multirun; tells its lines on screen from those of others.
        folder: of the run, on this machine.
        region: of the job.
        checkpoint_uri: where SageMaker keeps the run's folder.
        overrides: what starts this run after ``python train.py``.
        usd_per_hour: of all its instances, on demand.
        description: what DescribeTrainingJob told last, the parts that are kept.
        pruned: whether it was asked to stop since others promise more.
    """

    name: str
    number: int
    folder: Path
    region: str
    checkpoint_uri: str
    overrides: list[str]
    usd_per_hour: float
    description: dict[str, Any] = field(default_factory=dict)
    pruned: bool = False

    @property
    def stopped_by_hand(self) -> bool:
        """Whether a person has ended it, and it may be gone on with from its checkpoints."""
        return self.description.get("SecondaryStatus") == "Stopped" and not self.pruned

    def save(self) -> None:
        """Write ``job.json`` into the run's folder."""
        content = {**vars(self), "folder": None}
        del content["folder"]
        write_text(self.folder / RECORD, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")


def load(folder: Path) -> list[Job]:
    """The jobs of a run's folder, or of a multirun's.

    Raises:
        ConfigError: no job was submitted from there.
    """
    records = sorted([*folder.glob(RECORD), *folder.glob(f"*/{RECORD}")])
    if not records:
        raise ConfigError(f"{folder} holds no {RECORD}: name the folder of a run that launcher=sagemaker has submitted")
    return [Job(**json.loads(record.read_text(encoding="utf-8")), folder=record.parent) for record in records]


def under_way(account: "Account", folder: Path) -> Job | None:
    """The job that was submitted for a run's folder, or ``None`` where the record is of one that never was."""
    from botocore.exceptions import ClientError

    if not (folder / RECORD).exists():
        return None
    job = load(folder)[0]
    with answered_by_aws(f"asking for {job.name}"):
        try:
            job.description = account.sagemaker.describe_training_job(TrainingJobName=job.name)
        except ClientError as error:
            if error.response["Error"]["Code"] != "ValidationException":
                raise
            (folder / RECORD).unlink()
            return None
    return job


def job_name(task_name: str, number: int) -> str:
    """A name that no other job of the account has: the task, when, which one of a multirun, and a few random digits."""
    ending = f"-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{number}-{secrets.token_hex(2)}"
    task = re.sub(r"[^a-zA-Z0-9]+", "-", f"bincounter-{task_name}").strip("-")
    return task[: _NAME_LENGTH - len(ending)].rstrip("-") + ending


def submit(account: "Account", job: Job, request: dict[str, Any]) -> None:
    """Send CreateTrainingJob; the record is there before the job is, so that none is lost."""
    from botocore.exceptions import ClientError

    job.save()
    with answered_by_aws(f"submitting {job.name}"):
        try:
            account.sagemaker.create_training_job(**request)
        except ClientError as error:
            if error.response["Error"]["Code"] == "ResourceInUse":
                return  # our own first try, whose answer was lost: nobody else has a name of ours
            (job.folder / RECORD).unlink()
            raise


def stop(account: "Account", name: str) -> None:
    """Ask SageMaker to stop a job, which ends some minutes later with what it has; one that has ended is left alone."""
    from botocore.exceptions import ClientError

    with answered_by_aws(f"stopping {name}"):
        try:
            account.sagemaker.stop_training_job(TrainingJobName=name)
        except ClientError as error:
            if error.response["Error"]["Code"] != "ValidationException":  # it is stopping already, or has ended
                raise


def describe(account: "Account", name: str) -> dict[str, Any]:
    """DescribeTrainingJob."""
    with answered_by_aws(f"asking for {name}"):
        return account.sagemaker.describe_training_job(TrainingJobName=name)


def answered_here(account: "Account") -> bool:
    """Whether requests go to a control plane on this machine, which throttles nobody and whose logs are never late."""
    return urlsplit(account.sagemaker.meta.endpoint_url).hostname in ("127.0.0.1", "localhost")


class Pace:
    """How often to ask: soon while things change, seldom while nothing does.

    Args:
        leave: ends a rest.
        here: ask often, as a control plane on this machine may be.
    """

    def __init__(self, leave: threading.Event, *, here: bool = False) -> None:
        self._leave, self._here = leave, here
        self._seconds = _POLL_FIRST

    def rest(self, *, changed: bool) -> bool:
        """Wait; returns whether to leave instead of asking again."""
        self._seconds = _POLL_FIRST if changed else min(self._seconds * 1.3, _POLL_LONGEST)
        return self._leave.wait(_POLL_HERE if self._here else self._seconds)
