"""One training job from its submission to its end, and the file that remembers it."""

import json
import math
import re
import secrets
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from bincounter.cloud.aws_errors import answered_by_aws
from bincounter.errors import ConfigError, UserError
from bincounter.files import write_text

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

RECORD = "job.json"  # in the run's folder
EARLIER = "earlier_jobs"  # beside it: records of the run's jobs before, which were billed too
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
        instance_type: such as ``ml.g5.xlarge``; empty in a record that an earlier version wrote.
        instance_count: how many of them.
        price_origin: where ``usd_per_hour`` is from, in words.
        rehearsed: whether it ran on this machine, so that nothing was paid.
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
    instance_type: str = ""
    instance_count: int = 1
    price_origin: str = ""
    rehearsed: bool = False

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
    return [read(record) for record in records]


def read(record: Path) -> Job:
    """The job that a record is of; its folder is the record's.

    Raises:
        UserError: the record is damaged.
    """
    try:
        job = Job(**json.loads(record.read_text(encoding="utf-8")), folder=record.parent)
        whole = isinstance(job.name, str) and isinstance(job.description, dict) and 0 <= job.usd_per_hour < math.inf
    except (ValueError, TypeError):
        whole = False
    if not whole:
        raise UserError(f"{record} is damaged: bring it back from a copy, or remove it, which forgets its job here")
    return job


def is_recorded(job: Job) -> bool:
    """Whether the record in a job's folder is its own, not that of the run's job before."""
    record = job.folder / RECORD
    return record.exists() and read(record).name == job.name


def set_aside(folder: Path) -> Path | None:
    """Make room for the record of another job of a run; that of the one before is kept, since it was billed.

    Args:
        folder: of the run.

    Returns:
        where it lies now, or ``None`` where there was none.
    """
    record = folder / RECORD
    if not record.exists():
        return None
    kept = folder / EARLIER / f"{read(record).name}.json"
    kept.parent.mkdir(exist_ok=True)
    return record.replace(kept)


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

    job.rehearsed = answered_here(account)
    before = set_aside(job.folder)
    job.save()
    with answered_by_aws(f"submitting {job.name}"):
        try:
            account.sagemaker.create_training_job(**request)
        except ClientError as error:
            if error.response["Error"]["Code"] == "ResourceInUse":
                return  # our own first try, whose answer was lost: nobody else has a name of ours
            (job.folder / RECORD).unlink()
            if before is not None:
                before.replace(job.folder / RECORD)
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
