"""What a job left behind, brought into the run's folder: it then looks as if the run had been carried out here."""

import csv
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from bincounter.cloud.aws_errors import answered_by_aws
from bincounter.cloud.jobs import Job
from bincounter.cloud.overrides import HERE, without
from bincounter.cloud.prices import saving_percent
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
    below = f"{prefix}/"
    with answered_by_aws(f"fetching {job.checkpoint_uri}"), ThreadPoolExecutor(_AT_ONCE) as pool:
        pages = account.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=below)
        keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
        names = {key: key.removeprefix(below) for key in keys}
        names = {key: name for key, name in names.items() if _belongs_to_run(name) and wanted(name)}
        for _ in pool.map(lambda key: _fetch_one(account, bucket, key, job.folder / names[key]), names):
            pass
    _name_what_lies_here(job)


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
