"""Batch transform: one job that counts the photos of a folder in S3."""

import logging
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from bincounter.cloud.aws_errors import create_once, describe_endpoint_failure, translate_endpoint_errors
from bincounter.cloud.endpoints.api_objects import Call
from bincounter.cloud.endpoints.deployment_plan import (
    Cost,
    PlannedModel,
    check_price,
    plan_model,
    print_calls,
    transform_cost,
)
from bincounter.cloud.endpoints.endpoint_requests import EndpointSpec, transform_call
from bincounter.cloud.endpoints.endpoint_state import TRANSFORM_JOBS, deploy_command, last_error_line, watch_state
from bincounter.data.layouts.base import PHOTO_SUFFIXES, is_photo_name
from bincounter.errors import BinCounterError, DataError, ResourceError

if TYPE_CHECKING:
    from bincounter.cloud.account import Account
    from bincounter.serving.packing.archive import Package

log = logging.getLogger(__name__)

_ANY_PHOTO = "application/octet-stream"


class TransformPlan(NamedTuple):
    """Transform job: its model, CreateTransformJob and its price."""

    model: PlannedModel
    call: Call
    cost: Cost


def plan_transform(
    account: "Account", spec: EndpointSpec, package: "Package", *, source: str, output: str
) -> TransformPlan:
    """Compose and check the requests of a transform job.

    Raises:
        BinCounterError: a request is not valid, or the price is above ``target.max_usd_per_hour``.
    """
    model = plan_model(account, spec, package)
    cost = transform_cost(spec)
    check_price(cost, spec.target["max_usd_per_hour"])
    call = transform_call(spec, model=model.call, source=source, content_type=_ANY_PHOTO, output=output)
    return TransformPlan(model, call, cost)


def transform(
    account: "Account", spec: EndpointSpec, package: "Package", *, source: str, output: str, dry: bool
) -> None:
    """Count the photos of an S3 folder in a transform job.

    Args:
        account: account that the job runs in.
        spec: settings of the job.
        package: the packed checkpoint.
        source: ``s3://`` folder of photos.
        output: ``s3://`` folder of answers, ``<photo>.out`` per photo.
        dry: print the requests instead.

    Raises:
        BinCounterError: the job could not be started, or has failed.
        Interrupted: by Ctrl-C; the job continues at AWS.
    """
    job = plan_transform(account, spec, package, source=source, output=output)
    if dry:
        print_calls(account, [job.model.call, job.call])
        return
    job.call.request["TransformInput"]["ContentType"] = _content_type(account, source)
    job.model.make(account, spec)
    name = job.call.request["TransformJobName"]
    see = deploy_command(spec, "action=list")
    create_once(
        lambda: job.call.send(account),
        lambda: account.sagemaker.describe_transform_job(TransformJobName=name),
        f"creating the transform job {name}",
        later=f"{see} shows it, and action=delete stops it",
        group="target",
    )
    if not spec.target["wait"]:
        log.info("%s runs, and is billed until it ends. List it with: %s", name, see)
        return
    ended = watch_state(
        account,
        lambda: account.sagemaker.describe_transform_job(TransformJobName=name),
        "TransformJobStatus",
        name,
        see,
    )
    assert ended is not None
    _report(account, ended, source, output)


def _report(account: "Account", ended: dict[str, Any], source: str, output: str) -> None:
    name, state = ended["TransformJobName"], ended["TransformJobStatus"]
    missing: list[str] = []
    unlisted = None
    try:
        begun = ended["CreationTime"].replace(microsecond=0)  # S3's times are whole seconds
        answers = {
            key.removeprefix(_folder(output)) for key, time in _objects(account, output).items() if time >= begun
        }
        photos = list(_objects(account, source))
        missing = _unanswered(photos, _folder(source), answers)
        counted = f"{len(photos) - len(missing)} of {len(photos)} photos have an answer in {output}"
    except BinCounterError as error:  # the job has ended in any case
        unlisted = error
        counted = f"its answers in {output} could not be listed"
    if state != "Completed":
        line = last_error_line(account, TRANSFORM_JOBS, f"{name}/")
        reason = describe_endpoint_failure(ended.get("FailureReason", ""), line)
        raise ResourceError(f"{name} is {state} ({reason}), and {counted}: correct the cause, then run this again")
    seconds = (ended["TransformEndTime"] - ended["TransformStartTime"]).total_seconds()
    log.info("%s: %s, after %.0f s", name, counted, seconds)
    log.info("The model of the job is free, and stays until action=delete.")
    if missing:
        raise ResourceError(f"{name} has no answer for {len(missing)} photos ({missing[0]}): check these files")
    if unlisted is not None:
        log.warning("Check that each photo has an answer: %s", unlisted)
    print(output, flush=True)


def _unanswered(photos: Sequence[str], folder: str, answers: Collection[str]) -> list[str]:
    """Return the photos without an answer, which has the photo's name below the folder, maybe after the folder's."""
    parts = folder.split("/")
    leads = ["/".join(parts[number:]) for number in range(len(parts))]
    missing = [[key for key in photos if f"{lead}{key.removeprefix(folder)}.out" not in answers] for lead in leads]
    return min(missing, key=len)


def _content_type(account: "Account", source: str) -> str:
    """Return the content type of all photos of a job.

    Raises:
        DataError: the folder is empty, or has an object that is not a photo, which would fail the job.
    """
    names = list(_objects(account, source))
    if not names:
        one = "name the folder of the photo, whose photos are all counted" if is_photo_name(source) else "correct input"
        raise DataError(f"no objects under {source}/: {one} (upper and lower case matter)")
    if all(PurePosixPath(name).suffix == ".json" for name in names):
        return "application/json"  # requests, such as {"image": BASE64, "expected": 3}
    others = [name for name in names if not is_photo_name(name)]
    if others:
        raise DataError(
            f"{len(others)} of the {len(names)} objects under {source} are not photos ({others[0]}), and a transform "
            f"job fails on them: use a folder with only {', '.join(sorted(PHOTO_SUFFIXES))} files, none hidden, or "
            "with only .json files"
        )
    kinds = {PurePosixPath(name).suffix.lower() for name in names}
    if kinds <= {".jpg", ".jpeg"}:
        return "image/jpeg"
    return "image/png" if kinds == {".png"} else _ANY_PHOTO


def _folder(uri: str) -> str:
    """Return the start of the keys in an ``s3://`` folder."""
    prefix = uri.removeprefix("s3://").partition("/")[2].rstrip("/")
    return f"{prefix}/" if prefix else ""


def _objects(account: "Account", uri: str) -> dict[str, datetime]:
    """List the keys of the objects in an ``s3://`` folder, with the times at which they were written."""
    bucket = uri.removeprefix("s3://").partition("/")[0]
    with translate_endpoint_errors(f"listing {uri}"):
        pages = account.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=_folder(uri))
        found = {one["Key"]: one["LastModified"] for page in pages for one in page.get("Contents", ())}
    return {key: time for key, time in found.items() if not key.endswith("/")}
