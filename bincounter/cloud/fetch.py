"""What a job left behind, brought into the run's folder: it then looks as if the run had been carried out here."""

import csv
import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from bincounter.cloud.aws_errors import answered_by_aws
from bincounter.cloud.jobs import Job
from bincounter.cloud.overrides import HERE, without
from bincounter.cloud.prices import saving_percent
from bincounter.cloud.rule_states import STATUSES
from bincounter.data.s3.address import parse, refusal
from bincounter.files import replacing, write_text

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

log = logging.getLogger(__name__)

_AT_ONCE = 8  # objects


def fetch(account: "Account", job: Job, wanted: Callable[[str], bool] = lambda _: True) -> None:
    """Bring the run's folder here from where SageMaker keeps it.

    Args:
        account: that the job ran in.
        job: with its folder.
        wanted: which of the run's files, by their names in it.
    """
    bucket, prefix = parse(job.checkpoint_uri)
    _fetch_below(account, bucket, f"{prefix}/", job.folder, wanted)
    _name_what_lies_here(job)


def fetch_inspection(account: "Account", job: Job) -> None:
    """Bring here what AWS's Debugger and Profiler kept of a job: tensors, samples of the machine, output of rules.

    Args:
        account: that the job ran in.
        job: with its folder, described.
    """
    for uri, folder in _inspected(job):
        bucket, prefix = parse(uri)
        _fetch_below(account, bucket, f"{prefix}/", folder)


def _inspected(job: Job) -> Iterator[tuple[str, Path]]:
    """Places in S3, and the folders that they come to."""
    told, debugger, profile = job.description, job.folder / "debugger", job.folder / "profile"
    if hook := told.get("DebugHookConfig"):
        yield f"{hook['S3OutputPath'].rstrip('/')}/{job.name}/debug-output", debugger / "smdebug"
    if samples := told.get("ProfilerConfig", {}).get("S3OutputPath"):
        yield f"{samples.rstrip('/')}/{job.name}/profiler-output", profile / "aws" / "profiler-output"
    for statuses, folder in zip(STATUSES, (debugger, profile), strict=True):
        for rule in told.get(statuses, ()):
            name = rule["RuleConfigurationName"]
            output = told["OutputDataConfig"]["S3OutputPath"].rstrip("/")
            yield f"{output}/{job.name}/rule-output/{name}", folder / "aws" / name


def _fetch_below(
    account: "Account", bucket: str, below: str, folder: Path, wanted: Callable[[str], bool] = lambda _: True
) -> None:
    """Bring a prefix's objects into a folder, under the rest of their names."""
    with answered_by_aws(f"fetching s3://{bucket}/{below}"), ThreadPoolExecutor(_AT_ONCE) as pool:
        pages = account.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=below)
        keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
        names = {key: key.removeprefix(below) for key in keys}
        names = {key: name for key, name in names.items() if _belongs_to_run(name) and wanted(name)}
        for _ in pool.map(lambda key: _fetch_one(account, bucket, key, folder / names[key]), names):
            pass


def _name_what_lies_here(job: Job) -> None:
    """The run's own overrides name the container's folders; to go on with it here, they have to be those given here."""
    path = job.folder / "overrides.txt"
    if path.exists():
        write_text(path, "".join(f"{line}\n" for line in without(job.overrides, *HERE, "paths.output_dir", "hydra")))


def _belongs_to_run(name: str) -> bool:
    """Whether an object is a file of the run, not a lock or what a killed write has left."""
    last = name.rpartition("/")[2]
    return bool(last) and last != ".lock" and not last.endswith(".part") and refusal(name) is None


def _fetch_one(account: "Account", bucket: str, key: str, path: Path) -> None:
    with replacing(path, "wb") as file:
        account.s3.download_fileobj(bucket, key, file)


def cost(job: Job) -> str:
    """What a job took and cost, in a sentence."""
    trained, billed = (job.description.get(key) for key in ("TrainingTimeInSeconds", "BillableTimeInSeconds"))
    if trained is None or billed is None:
        return "no time was billed"
    usd = billed / 3600 * job.usd_per_hour
    saved = ""
    if job.description.get("EnableManagedSpotTraining"):
        saved = f", managed spot saving {saving_percent(trained, billed):.1f} %"
    return f"{trained} s of training, {billed} s billed{saved}, {usd:.4f} USD"


def best_value(folder: Path, metric: str, mode: str) -> float | None:
    """The best value of ``metric`` that a run logged: what a sweep optimises.

    Args:
        folder: of the run.
        metric: such as ``val/accuracy``.
        mode: ``max`` or ``min``.
    """
    path = folder / "logs" / "metrics.csv"
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            values = [float(row[metric]) for row in csv.DictReader(file) if row.get(metric)]
        return (max if mode == "max" else min)(values, default=None)
    scores = folder / "metrics.json"  # without the CSV logger: what the best checkpoint scored
    if not scores.exists():
        return None
    return json.loads(scores.read_text(encoding="utf-8"))["val"][metric.removeprefix("val/")]
