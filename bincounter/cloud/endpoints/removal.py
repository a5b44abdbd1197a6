"""An endpoint's end: nothing that bills stays, and what else stays is told."""

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from bincounter.cloud.endpoints.autoscaling import registered
from bincounter.cloud.endpoints.belongings import Belongings, belongings, models_of, remove_unused
from bincounter.cloud.endpoints.errors import answered, is_missing
from bincounter.cloud.endpoints.logs import group_of
from bincounter.cloud.endpoints.objects import SAGEMAKER, Call
from bincounter.cloud.endpoints.planning import bucket_uri, show_calls
from bincounter.cloud.endpoints.requests import Wanted
from bincounter.cloud.endpoints.states import describe, describe_config, describe_model, settled, watched
from bincounter.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

log = logging.getLogger(__name__)

_CHANGING = ("Creating", "Updating", "SystemUpdating", "RollingBack")


def delete(account: "Account", wanted: Wanted, *, dry: bool) -> None:
    """Take an endpoint away, and all that belongs to it; what is gone already is no error.

    Args:
        account: that it is in.
        wanted: its name.
        dry: print the requests instead.

    Raises:
        BinCounterError: something could not be deleted.
        Interrupted: by Ctrl-C; AWS goes on.
    """
    there = describe(account, wanted.name)
    if dry:
        _show(account, wanted, there)
        return
    if there and there["EndpointStatus"] in _CHANGING and not wanted.target["wait"]:
        raise ConfigError(
            f"the endpoint name={wanted.name} is {there['EndpointStatus']}, and cannot be deleted until that has "
            "ended: leave target.wait=false out, or try again later"
        )
    config = describe_config(account, there["EndpointConfigName"]) if there else None
    stays = _what_stays(account, wanted, config)
    gone = remove(account, wanted)
    if there is None and not (gone.configs or gone.models or gone.transforms):
        log.info("There is no endpoint %s, and nothing that belongs to one.", wanted.name)
        return
    log.info(
        "%s: %d configuration%s and %d model%s deleted; nothing of it bills any more.",
        wanted.name,
        *_counted(gone.configs),
        *_counted(gone.models),
    )
    log.info("What stays, and is yours to delete: %s", "; ".join(stays))


def remove(account: "Account", wanted: Wanted) -> Belongings:
    """Delete an endpoint, its autoscaling, configurations and models, and stop its transform jobs.

    Raises:
        BinCounterError: something could not be deleted.
        Interrupted: by Ctrl-C; AWS goes on.
    """
    there = describe(account, wanted.name)
    if there and there["EndpointStatus"] in _CHANGING:
        log.info("It is %s, and is deleted when that has ended.", there["EndpointStatus"])
        there = settled(account, wanted.name)
    _stop_transforms(account, wanted)
    if there:
        registered(account, wanted.name).remove(account)
        if there["EndpointStatus"] != "Deleting":
            _send(account, Call(SAGEMAKER, "DeleteEndpoint", {"EndpointName": wanted.name}))
        if wanted.target["wait"]:
            _await_end(account, wanted)
    return remove_unused(account, wanted.name, keep=[])


def _stop_transforms(account: "Account", wanted: Wanted) -> None:
    jobs = belongings(account, wanted.name).transforms
    for job in jobs:
        log.info("Stopping the transform job %s", job)
        _send(account, Call(SAGEMAKER, "StopTransformJob", {"TransformJobName": job}))
    for job in jobs if wanted.target["wait"] else ():
        ask = partial(account.sagemaker.describe_transform_job, TransformJobName=job)
        watched(account, ask, "TransformJobStatus", job, "python deploy.py action=list")


def _await_end(account: "Account", wanted: Wanted) -> None:
    left = settled(account, wanted.name)
    if left is not None:
        raise ResourceError(
            f"the endpoint {wanted.name} is {left['EndpointStatus']} instead of gone, and may be billed: run "
            "action=delete again"
        )


def _send(account: "Account", call: Call) -> None:
    from botocore.exceptions import ClientError

    with answered(f"deleting {', '.join(map(str, call.request.values()))}"):
        try:
            call.send(account)
        except ClientError as error:
            if not is_missing(error):
                raise


def _show(account: "Account", wanted: Wanted, there: dict[str, Any] | None) -> None:
    ours = belongings(account, wanted.name)
    calls = [Call(SAGEMAKER, "StopTransformJob", {"TransformJobName": job}) for job in ours.transforms]
    if there:
        calls += registered(account, wanted.name).removal()
        calls.append(Call(SAGEMAKER, "DeleteEndpoint", {"EndpointName": wanted.name}))
    calls += [Call(SAGEMAKER, "DeleteEndpointConfig", {"EndpointConfigName": name}) for name in ours.configs]
    calls += [Call(SAGEMAKER, "DeleteModel", {"ModelName": name}) for name in ours.models]
    show_calls(calls)


def _what_stays(account: "Account", wanted: Wanted, config: dict[str, Any] | None) -> list[str]:
    """Places that an endpoint has written to, for a few cents a month."""
    models = [describe_model(account, name) for name in models_of(config)]
    archives = [model["PrimaryContainer"]["ModelDataUrl"] for model in models if model]
    stays = [f"the archive {uri}" for uri in archives] or [f"archives under {bucket_uri(account, wanted)}/models"]
    stays.append(f"the log group {group_of(wanted.name)}")
    outputs = (config or {}).get("AsyncInferenceConfig", {}).get("OutputConfig", {})
    stays += [f"answers in {outputs[member]}" for member in ("S3OutputPath", "S3FailurePath") if member in outputs]
    capture = (config or {}).get("DataCaptureConfig", {})
    if "DestinationS3Uri" in capture:
        stays.append(f"captured requests in {capture['DestinationS3Uri']}")
    if {"ModelPackage", "ModelPackageGroup"} & set(wanted.extra):
        stays.append("versions in the model registry")
    return stays


def _counted(names: list[str]) -> tuple[int, str]:
    return len(names), "" if len(names) == 1 else "s"
