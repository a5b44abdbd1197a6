"""Batch Transform: a job that counts all photos of a folder in S3, and ends with its instances."""

import logging
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from bincounter.cloud.aws_errors import answered, explain_endpoint_failure
from bincounter.cloud.endpoints.api_objects import Call
from bincounter.cloud.endpoints.deployment_plan import (
    Cost,
    PlannedModel,
    plan_model,
    refuse_above,
    show_calls,
    transform_cost,
)
from bincounter.cloud.endpoints.endpoint_requests import Wanted, transform_call
from bincounter.cloud.endpoints.endpoint_state import TRANSFORM_JOBS, last_line, watched
from bincounter.data.layouts.base import PHOTO_SUFFIXES
from bincounter.errors import DataError, ResourceError

if TYPE_CHECKING:
    from bincounter.cloud.account import Account
    from bincounter.serving.packing.archive import Package

log = logging.getLogger(__name__)

_ANY_PHOTO = "application/octet-stream"


class PlannedJob(NamedTuple):
    """A transform job: its model, CreateTransformJob, and what it costs."""

    model: PlannedModel
    call: Call
    cost: Cost


def planned(account: "Account", wanted: Wanted, package: "Package", *, source: str, output: str) -> PlannedJob:
    """Write and check the requests of a job.

    Raises:
        BinCounterError: SageMaker would not take them, or they are above ``target.max_usd_per_hour``.
    """
    model = plan_model(account, wanted, package)
    cost = transform_cost(wanted)
    refuse_above(cost, wanted.target["max_usd_per_hour"])
    call = transform_call(wanted, model=model.call, source=source, content_type=_ANY_PHOTO, output=output)
    return PlannedJob(model, call, cost)


def transform(account: "Account", wanted: Wanted, package: "Package", *, source: str, output: str, dry: bool) -> None:
    """Count all photos of a folder.

    Args:
        account: that the job runs in.
        wanted: its instances.
        package: the packed checkpoint.
        source: ``s3://`` folder of photos.
        output: ``s3://`` folder of answers, ``<photo>.out`` each.
        dry: print the requests instead.

    Raises:
        BinCounterError: the job could not be started, or has failed.
        Interrupted: by Ctrl-C; AWS goes on.
    """
    job = planned(account, wanted, package, source=source, output=output)
    if dry:
        show_calls([job.model.call, job.call])
        return
    job.call.request["TransformInput"]["ContentType"] = _content_type(account, source)
    job.model.make(account, wanted)
    name = job.call.request["TransformJobName"]
    with answered(f"creating the transform job {name}"):
        job.call.send(account)
    if not wanted.target["wait"]:
        log.info("%s is under way, and billed until it ends. See it with: python deploy.py action=list", name)
        return
    ended = watched(
        account,
        lambda: account.sagemaker.describe_transform_job(TransformJobName=name),
        "TransformJobStatus",
        name,
        "python deploy.py action=list",
    )
    assert ended is not None
    _tell(account, ended, source, output)


def _tell(account: "Account", ended: dict[str, Any], source: str, output: str) -> None:
    answers = {PurePosixPath(name).name for name in _names(account, output)}
    photos = _names(account, source)
    missing = [name for name in photos if f"{PurePosixPath(name).name}.out" not in answers]
    name, state = ended["TransformJobName"], ended["TransformJobStatus"]
    told = f"{len(photos) - len(missing)} of {len(photos)} photos have an answer in {output}"
    if state != "Completed":
        line = last_line(account, TRANSFORM_JOBS, f"{name}/")
        reason = explain_endpoint_failure(ended.get("FailureReason", ""), line)
        raise ResourceError(f"{name} is {state} ({reason}), and {told}: correct that, and run the same command again")
    seconds = (ended["TransformEndTime"] - ended["TransformStartTime"]).total_seconds()
    log.info("%s: %s, after %.0f s", name, told, seconds)
    log.info("Its model stays until action=delete, and is free.")
    if missing:
        raise ResourceError(f"{name} has no answer for {len(missing)} photos ({missing[0]}): see whether they are well")
    print(output, flush=True)


def _content_type(account: "Account", source: str) -> str:
    """What a job says of all its photos.

    Raises:
        DataError: nothing lies there, or something that is no photo, which would fail the job.
    """
    names = _names(account, source)
    if not names:
        raise DataError(f"nothing lies under {source}: correct input, its letters' case included")
    strange = [name for name in names if PurePosixPath(name).suffix.lower() not in PHOTO_SUFFIXES]
    if strange:
        raise DataError(
            f"{len(strange)} of the {len(names)} objects under {source} are no photos ({strange[0]}), and a transform "
            f"job fails by them: name a folder of {', '.join(sorted(PHOTO_SUFFIXES))} files alone"
        )
    kinds = {PurePosixPath(name).suffix.lower() for name in names}
    if kinds <= {".jpg", ".jpeg"}:
        return "image/jpeg"
    return "image/png" if kinds == {".png"} else _ANY_PHOTO


def _names(account: "Account", uri: str) -> list[str]:
    """Keys of the objects below an ``s3://`` folder."""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    folder = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
    with answered(f"listing {uri}"):
        pages = account.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=folder)
        keys = [one["Key"] for page in pages for one in page.get("Contents", ())]
    return [key for key in keys if not key.endswith("/")]
