"""Find the resources of an endpoint by their tag, and delete them."""

import logging
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from bincounter.cloud.aws_errors import is_missing, translate_endpoint_errors
from bincounter.cloud.endpoints.api_objects import SAGEMAKER, Call
from bincounter.cloud.endpoints.autoscaling import read_autoscaling
from bincounter.cloud.endpoints.deployment_plan import bucket_uri, print_calls
from bincounter.cloud.endpoints.endpoint_requests import TAG, EndpointSpec
from bincounter.cloud.endpoints.endpoint_state import (
    describe,
    describe_config,
    describe_model,
    log_group,
    wait_until_settled,
    watch_state,
)
from bincounter.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

log = logging.getLogger(__name__)


_OURS = re.compile(r".+-[0-9a-f]{8}")


@dataclass
class EndpointResources:
    """Names of the resources that carry an endpoint's tag.

    Attributes:
        configs: endpoint configurations, which are free.
        models: models, which are free.
        transforms: running transform jobs.
    """

    configs: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    transforms: list[str] = field(default_factory=list)


def find_resources(account: "Account", name: str | None = None) -> EndpointResources:
    """Find resources by their tag.

    Args:
        account: account to search.
        name: name of the endpoint; ``None`` for the resources of all endpoints.
    """
    with translate_endpoint_errors("listing the resources of the endpoint"):
        client = account.sagemaker
        narrow: dict[str, Any] = {"NameContains": name} if name else {}
        configs = _pages(client, "list_endpoint_configs", "EndpointConfigs", **narrow)
        models = _pages(client, "list_models", "Models", **narrow)
        jobs = _pages(client, "list_transform_jobs", "TransformJobSummaries", StatusEquals="InProgress")
        return EndpointResources(
            [one["EndpointConfigName"] for one in configs if _is_ours(client, one, "EndpointConfig", name)],
            [one["ModelName"] for one in models if _is_ours(client, one, "Model", name)],
            [one["TransformJobName"] for one in jobs if is_tagged(client, one["TransformJobArn"], name)],
        )


def is_tagged(client: Any, arn: str, name: str | None = None) -> bool:
    """Return whether a resource carries the tag of bincounter.

    Args:
        client: SageMaker client of boto3.
        arn: ARN of the resource.
        name: required value of the tag; ``None`` for any value.
    """
    from botocore.exceptions import ClientError

    try:
        tags = _pages(client, "list_tags", "Tags", ResourceArn=arn)
        values = [tag["Value"] for tag in tags if tag["Key"] == TAG]
    except ClientError as error:
        if is_missing(error):  # deleted in the meantime
            return False
        raise
    return bool(values) and name in (None, *values)


def remove_unused(account: "Account", name: str, *, keep: Collection[str]) -> EndpointResources:
    """Delete an endpoint's configurations and models that are not in use.

    Args:
        account: account of the endpoint.
        name: name of the endpoint.
        keep: names of the configurations to keep, with their models.

    Returns:
        the deleted resources, and the running transform jobs, whose models are kept.
    """
    there = find_resources(account, name)
    used: set[str] = set()
    for config in keep:
        used |= models_of(describe_config(account, config))
    for job in there.transforms:
        with translate_endpoint_errors(f"describing the transform job {job}"):
            used.add(account.sagemaker.describe_transform_job(TransformJobName=job)["ModelName"])
    gone = EndpointResources(
        [config for config in there.configs if config not in keep],
        [model for model in there.models if model not in used],
        there.transforms,
    )
    for call in _removal_calls(gone):
        _send(account, call)
    return gone


def models_of(config: dict[str, Any] | None) -> set[str]:
    """Return the names of the models of an endpoint configuration."""
    return {variant["ModelName"] for variant in config["ProductionVariants"]} if config else set()


def _removal_calls(there: EndpointResources) -> list[Call]:
    return [
        *(Call(SAGEMAKER, "DeleteEndpointConfig", {"EndpointConfigName": name}) for name in there.configs),
        *(Call(SAGEMAKER, "DeleteModel", {"ModelName": name}) for name in there.models),
    ]


def _send(account: "Account", call: Call) -> None:
    """Send a request that deletes or stops a resource; a missing resource is not an error."""
    from botocore.exceptions import ClientError

    with translate_endpoint_errors(f"deleting {', '.join(map(str, call.request.values()))}"):
        try:
            call.send(account)
        except ClientError as error:
            if not is_missing(error):
                raise


def _is_ours(client: Any, listed: dict[str, Any], kind: str, name: str | None) -> bool:
    """Check the name first: tags are one request each, and an account may have thousands of models."""
    fits = _OURS.fullmatch(listed[f"{kind}Name"]) and listed[f"{kind}Name"].startswith(f"{name}-" if name else "")
    return bool(fits) and is_tagged(client, listed[f"{kind}Arn"], name)


def _pages(client: Any, operation: str, member: str, **asked: Any) -> Iterator[dict[str, Any]]:
    for page in client.get_paginator(operation).paginate(**asked):
        yield from page[member]


_CHANGING = ("Creating", "Updating", "SystemUpdating", "RollingBack")


def delete(account: "Account", spec: EndpointSpec, *, dry: bool) -> None:
    """Delete an endpoint and its resources; missing ones are not an error.

    Args:
        account: account of the endpoint.
        spec: settings of the endpoint.
        dry: print the requests instead.

    Raises:
        BinCounterError: a resource could not be deleted.
        Interrupted: by Ctrl-C; the deletion goes on at AWS.
    """
    there = describe(account, spec.name)
    if dry:
        _show(account, spec, there)
        return
    if there and there["EndpointStatus"] in _CHANGING and not spec.target["wait"]:
        raise ConfigError(
            f"the endpoint name={spec.name} is {there['EndpointStatus']}, and cannot be deleted until that has "
            "ended: remove target.wait=false, or try again later"
        )
    config = describe_config(account, there["EndpointConfigName"]) if there else None
    stays = _what_stays(account, spec, config)
    gone = remove(account, spec)
    if there is None and not (gone.configs or gone.models or gone.transforms):
        log.info("No endpoint %s, and no resources of it: nothing to delete.", spec.name)
        return
    log.info(
        "%s: %d configuration%s and %d model%s deleted; nothing is billed any more.",
        spec.name,
        *_counted(gone.configs),
        *_counted(gone.models),
    )
    log.info("Not deleted: %s", "; ".join(stays))


def remove(account: "Account", spec: EndpointSpec) -> EndpointResources:
    """Delete an endpoint, its autoscaling, configurations and models, and stop its transform jobs.

    Raises:
        BinCounterError: a resource could not be deleted.
        Interrupted: by Ctrl-C; the deletion goes on at AWS.
    """
    there = describe(account, spec.name)
    if there and there["EndpointStatus"] in _CHANGING:
        log.info("The endpoint is %s, and will be deleted when that has ended.", there["EndpointStatus"])
        there = wait_until_settled(account, spec.name)
    _stop_transforms(account, spec)
    if there:
        read_autoscaling(account, spec.name).remove(account)
        if there["EndpointStatus"] != "Deleting":
            _send(account, Call(SAGEMAKER, "DeleteEndpoint", {"EndpointName": spec.name}))
        if spec.target["wait"]:
            left = wait_until_settled(account, spec.name)
            if left is not None:
                raise ResourceError(
                    f"the endpoint {spec.name} is {left['EndpointStatus']} instead of deleted, and may be billed: "
                    "run action=delete again"
                )
    return remove_unused(account, spec.name, keep=[])


def _stop_transforms(account: "Account", spec: EndpointSpec) -> None:
    jobs = find_resources(account, spec.name).transforms
    for job in jobs:
        log.info("Stopping the transform job %s", job)
        _send(account, Call(SAGEMAKER, "StopTransformJob", {"TransformJobName": job}))
    for job in jobs if spec.target["wait"] else ():
        ask = partial(account.sagemaker.describe_transform_job, TransformJobName=job)
        watch_state(account, ask, "TransformJobStatus", job, "python deploy.py action=list")


def _show(account: "Account", spec: EndpointSpec, there: dict[str, Any] | None) -> None:
    ours = find_resources(account, spec.name)
    calls = [Call(SAGEMAKER, "StopTransformJob", {"TransformJobName": job}) for job in ours.transforms]
    if there:
        calls += read_autoscaling(account, spec.name).removal()
        calls.append(Call(SAGEMAKER, "DeleteEndpoint", {"EndpointName": spec.name}))
    print_calls([*calls, *_removal_calls(ours)])


def _what_stays(account: "Account", spec: EndpointSpec, config: dict[str, Any] | None) -> list[str]:
    """Return the places that an endpoint has written to, which cost a few cents a month."""
    models = [describe_model(account, name) for name in models_of(config)]
    archives = [model["PrimaryContainer"]["ModelDataUrl"] for model in models if model]
    stays = [f"the archive {uri}" for uri in archives] or [f"archives under {bucket_uri(account, spec)}/models"]
    stays.append(f"the log group {log_group(spec.name)}")
    outputs = (config or {}).get("AsyncInferenceConfig", {}).get("OutputConfig", {})
    stays += [f"answers in {outputs[member]}" for member in ("S3OutputPath", "S3FailurePath") if member in outputs]
    capture = (config or {}).get("DataCaptureConfig", {})
    if "DestinationS3Uri" in capture:
        stays.append(f"captured requests in {capture['DestinationS3Uri']}")
    return stays


def _counted(names: list[str]) -> tuple[int, str]:
    return len(names), "" if len(names) == 1 else "s"
