"""Training jobs and their record job.json: submit, describe, stop, fetch results."""

import json
import logging
import math
import re
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from bincounter.cloud.aws_errors import create_once, describe_if_exists, stop_unless_ended, translate_errors
from bincounter.cloud.debugger_rules import RULE_STATUS_KEYS
from bincounter.cloud.instances import saving_percent
from bincounter.config.overrides import LAUNCH_KEYS, drop_overrides
from bincounter.data.s3.address import parse_address, unusable_reason
from bincounter.errors import ConfigError, UserError
from bincounter.files import atomic_write, lock, write_text
from bincounter.redaction import mask_argument

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

log = logging.getLogger(__name__)


JOB_RECORD = "job.json"  # in the run's folder
EARLIER_JOBS = "earlier_jobs"  # beside it: records of the run's earlier jobs, which were billed too
ENDED_STATUSES = ("Completed", "Failed", "Stopped")
_NAME_LENGTH = 63  # SageMaker's limit
_AT_ONCE = 8  # objects fetched at a time


@dataclass
class Job:
    """Training job and the folder of its run.

    Attributes:
        name: of the job.
        number: in its multirun; marks its log lines.
        folder: of the run, on this machine.
        region: of the job.
        checkpoint_uri: ``s3://`` folder where SageMaker keeps the run's folder.
        overrides: arguments of ``bincounter train`` that start this run.
        usd_per_hour: of all its instances, on demand.
        description: the kept parts of the last DescribeTrainingJob.
        pruned: whether the pruning policy has stopped it.
        instance_type: such as ``ml.g5.xlarge``; empty in a record that an earlier version wrote.
        instance_count: how many of them.
        price_origin: source of ``usd_per_hour``.
        rehearsed: whether it ran on this machine, so that nothing was paid.
        fetched: whether the run's folder was downloaded after the job's end; it may have been resumed here since.
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
    fetched: bool = False

    @property
    def stopped_by_hand(self) -> bool:
        """Return True if a person has stopped it, so that it can be resumed from its checkpoints."""
        return self.description.get("SecondaryStatus") == "Stopped" and not self.pruned

    def save(self) -> None:
        """Write ``job.json`` into the run's folder."""
        content = {**vars(self), "folder": None}
        del content["folder"]
        write_text(self.folder / JOB_RECORD, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")


def find_records(folder: Path) -> list[Path]:
    """Find the records of the jobs of a run's folder, or of a multirun's.

    Raises:
        ConfigError: no job was submitted from there.
    """
    records = sorted([*folder.glob(JOB_RECORD), *folder.glob(f"*/{JOB_RECORD}")])
    if not records:
        raise ConfigError(
            f"{folder} holds no {JOB_RECORD}: name the folder of a run that launcher=sagemaker has submitted"
        )
    return records


def read_job(record: Path) -> Job:
    """Read a record; the job's folder is the record's.

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
    """Return True if the record in a job's folder is its own, not that of the run's earlier job."""
    record = job.folder / JOB_RECORD
    return record.exists() and read_job(record).name == job.name


def is_fetched(job: Job) -> bool:
    """Return True if a command has downloaded the job's run, by the record in its folder."""
    return is_recorded(job) and read_job(job.folder / JOB_RECORD).fetched


def move_to_earlier(folder: Path) -> Path | None:
    """Move the record of a run's job to its earlier ones, which were billed too.

    Args:
        folder: of the run.

    Returns:
        its new path, or ``None`` where there was no record.
    """
    record = folder / JOB_RECORD
    if not record.exists():
        return None
    kept = folder / EARLIER_JOBS / f"{read_job(record).name}.json"
    kept.parent.mkdir(exist_ok=True)
    return record.replace(kept)


def in_region(account: "Account", region: str) -> "Account":
    """Return an account in the region of a job, which may be another one than that of the launch."""
    from bincounter.cloud.account import Account

    return account if account.region == region else Account(region)


def find_submitted(account: "Account", folder: Path) -> Job | None:
    """Describe the job of a run's folder; a record of a job of a rehearsal that has ended is deleted.

    Raises:
        ConfigError: this account does not have the job.
    """
    record = folder / JOB_RECORD
    if not record.exists():
        return None
    job = read_job(record)
    described = description_of(in_region(account, job.region), job.name)
    if described is not None:
        job.description = described
        return job
    if not job.rehearsed:  # it may still run, and be billed, in another account
        raise ConfigError(
            f"{record} names the job {job.name}, which this account does not have in {job.region}: use the "
            "credentials it was started with, or remove that file"
        )
    record.unlink()
    return None


def job_name(task_name: str, number: int) -> str:
    """Make a unique name: task, time, number in the multirun, random digits."""
    ending = f"-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{number}-{secrets.token_hex(2)}"
    task = re.sub(r"[^a-zA-Z0-9]+", "-", f"bincounter-{task_name}").strip("-")
    return task[: _NAME_LENGTH - len(ending)].rstrip("-") + ending


def submit(account: "Account", job: Job, request: dict[str, Any]) -> None:
    """Send CreateTrainingJob; the record is written first, and deleted if the job was not created.

    Raises:
        NotAnswered: it may have been created.
        BinCounterError: it was not.
    """
    job.rehearsed = is_local_endpoint(account)
    before = move_to_earlier(job.folder)
    job.save()
    client = account.sagemaker

    def undo() -> None:
        (job.folder / JOB_RECORD).unlink()
        if before is not None:
            before.replace(job.folder / JOB_RECORD)

    create_once(
        lambda: client.create_training_job(**request),
        lambda: client.describe_training_job(TrainingJobName=job.name),
        f"submitting {job.name}",
        later="look for it before you run this command again",
        undo=undo,
    )


def stop(account: "Account", name: str) -> None:
    """Send StopTrainingJob; a job that has ended is left alone."""
    stop_unless_ended(lambda: account.sagemaker.stop_training_job(TrainingJobName=name), name)


def describe(account: "Account", name: str) -> dict[str, Any]:
    """Return DescribeTrainingJob.

    Raises:
        ConfigError: there is no such job.
    """
    described = description_of(account, name)
    if described is None:
        raise ConfigError(
            f"SageMaker has no job {name}: it was never created, or in another account; set AWS_PROFILE to that, or "
            "run its command again"
        )
    return described


def description_of(account: "Account", name: str) -> dict[str, Any] | None:
    """Return DescribeTrainingJob; ``None`` if there is no such job."""
    ask = partial(account.sagemaker.describe_training_job, TrainingJobName=name)
    return describe_if_exists(ask, f"describing {name}")


def is_local_endpoint(account: "Account") -> bool:
    """Return True if requests go to a rehearsal on this machine, which has no throttling and no delayed logs."""
    return urlsplit(account.sagemaker.meta.endpoint_url).hostname in ("127.0.0.1", "localhost")


def fetch_run(account: "Account", job: Job, wanted: Callable[[str], bool] | None = None) -> None:
    """Download the run's folder from S3, once: a run that was resumed here is not overwritten.

    Args:
        account: that the job ran in.
        job: that has ended, with its folder.
        wanted: filter of the run's files, by their names in it; ``None`` for all.

    Raises:
        UserError: a process uses the folder.
        BinCounterError: the files cannot be downloaded.
    """
    bucket, prefix = parse_address(job.checkpoint_uri)
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.folder / ".lock").open("w") as file:  # that of bincounter train
        if not lock(file, wait=0):
            raise UserError(f"{job.folder} is in use by another process: wait for it, or stop it")
        if is_fetched(job):
            again = f'to fetch them again, set "fetched" to false in its {JOB_RECORD}'
            log.info("%s was fetched before, and the files in %s are kept: %s", job.name, job.folder, again)
            return
        _fetch_below(account, bucket, f"{prefix}/", job.folder, wanted or (lambda _: True))
        _rewrite_overrides(job)
        if wanted is None:
            job.fetched = True
            job.save()


def fetch_inspection(account: "Account", job: Job) -> None:
    """Download the output of AWS's Debugger and Profiler for a job: tensors, samples of the machine, rules.

    Args:
        account: that the job ran in.
        job: with its folder, described.
    """
    for uri, folder in _inspected(job):
        bucket, prefix = parse_address(uri)
        _fetch_below(account, bucket, f"{prefix}/", folder)


def _inspected(job: Job) -> Iterator[tuple[str, Path]]:
    """Yield places in S3, and the folders to download them to."""
    described, debugger, profile = job.description, job.folder / "debugger", job.folder / "profile"
    if hook := described.get("DebugHookConfig"):
        yield f"{hook['S3OutputPath'].rstrip('/')}/{job.name}/debug-output", debugger / "smdebug"
    if samples := described.get("ProfilerConfig", {}).get("S3OutputPath"):
        yield f"{samples.rstrip('/')}/{job.name}/profiler-output", profile / "aws" / "profiler-output"
    for statuses, folder in zip(RULE_STATUS_KEYS, (debugger, profile), strict=True):
        for rule in described.get(statuses, ()):
            name = rule["RuleConfigurationName"]
            output = described["OutputDataConfig"]["S3OutputPath"].rstrip("/")
            yield f"{output}/{job.name}/rule-output/{name}", folder / "aws" / name


def _fetch_below(
    account: "Account", bucket: str, below: str, folder: Path, wanted: Callable[[str], bool] = lambda _: True
) -> None:
    """Download the objects below a prefix into a folder, under the rest of their names."""
    with translate_errors(f"fetching s3://{bucket}/{below}"), ThreadPoolExecutor(_AT_ONCE) as pool:
        pages = account.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=below)
        keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
        names = {key: key.removeprefix(below) for key in keys}
        names = {key: name for key, name in names.items() if _belongs_to_run(name) and wanted(name)}
        for _ in pool.map(lambda key: _fetch_one(account, bucket, key, folder / names[key]), names):
            pass


def _rewrite_overrides(job: Job) -> None:
    """Write the overrides given here: the container's name its own folders, and cannot resume the run here."""
    path = job.folder / "overrides.txt"
    if path.exists():
        kept = drop_overrides(job.overrides, *LAUNCH_KEYS, "paths.output_dir", "hydra")
        write_text(path, "".join(f"{mask_argument(line)}\n" for line in kept))


def _belongs_to_run(name: str) -> bool:
    """Return True if an object is a file of the run, not a lock or the rest of a killed write."""
    last = name.rpartition("/")[2]
    return bool(last) and last != ".lock" and not last.endswith(".part") and unusable_reason(name) is None


def _fetch_one(account: "Account", bucket: str, key: str, path: Path) -> None:
    with atomic_write(path, "wb") as file:
        account.s3.download_fileobj(bucket, key, file)


def format_cost(job: Job) -> str:
    """Format time and cost of a job."""
    trained, billed = (job.description.get(key) for key in ("TrainingTimeInSeconds", "BillableTimeInSeconds"))
    if trained is None or billed is None:
        return "no time was billed"
    usd = billed / 3600 * job.usd_per_hour
    saved = ""
    if job.description.get("EnableManagedSpotTraining"):
        saved = f", managed spot saving {saving_percent(trained, billed):.1f} %"
    return f"{trained} s of training, {billed} s billed{saved}, {usd:.4f} USD"
