"""What of an account belongs to an endpoint, or to none any more: found again by the tag."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bincounter.cloud.endpoints.errors import answered, is_missing
from bincounter.cloud.endpoints.requests import TAG
from bincounter.cloud.endpoints.states import describe_config

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

_OURS = re.compile(r".+-[0-9a-f]{8}")


@dataclass
class Belongings:
    """Names of what carries an endpoint's tag.

    Attributes:
        configs: endpoint configurations; they cost nothing.
        models: they cost nothing.
        transforms: jobs that run.
    """

    configs: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    transforms: list[str] = field(default_factory=list)


def belongings(account: "Account", name: str | None = None) -> Belongings:
    """What carries the tag.

    Args:
        account: to look through.
        name: of the endpoint; ``None`` for those of all endpoints.
    """
    with answered("listing what belongs to the endpoint"):
        client = account.sagemaker
        narrow: dict[str, Any] = {"NameContains": name} if name else {}
        configs = _pages(client, "list_endpoint_configs", "EndpointConfigs", **narrow)
        models = _pages(client, "list_models", "Models", **narrow)
        jobs = _pages(client, "list_transform_jobs", "TransformJobSummaries", StatusEquals="InProgress")
        return Belongings(
            [one["EndpointConfigName"] for one in configs if _is_ours(client, one, "EndpointConfig", name)],
            [one["ModelName"] for one in models if _is_ours(client, one, "Model", name)],
            [one["TransformJobName"] for one in jobs if tagged(client, one["TransformJobArn"], name)],
        )


def tagged(client: Any, arn: str, name: str | None = None) -> bool:
    """Whether something carries our tag.

    Args:
        client: boto3's of SageMaker.
        arn: of it.
        name: that the tag has to hold; ``None`` for any.
    """
    from botocore.exceptions import ClientError

    try:
        tags = _pages(client, "list_tags", "Tags", ResourceArn=arn)
        values = [tag["Value"] for tag in tags if tag["Key"] == TAG]
    except ClientError as error:
        if is_missing(error):  # it went away meanwhile
            return False
        raise
    return bool(values) and name in (None, *values)


def remove_unused(account: "Account", name: str, *, keep: Collection[str]) -> Belongings:
    """Delete an endpoint's configurations and models, but for those in use.

    Args:
        account: that they are in.
        name: of the endpoint.
        keep: names of configurations that stay, and their models with them.

    Returns:
        what was deleted, and the transform jobs that run, whose models stay.
    """
    there = belongings(account, name)
    used: set[str] = set()
    for config in keep:
        used |= models_of(describe_config(account, config))
    for job in there.transforms:
        with answered(f"asking for the transform job {job}"):
            used.add(account.sagemaker.describe_transform_job(TransformJobName=job)["ModelName"])
    gone = Belongings(
        [config for config in there.configs if config not in keep],
        [model for model in there.models if model not in used],
        there.transforms,
    )
    for config in gone.configs:
        _delete(account, "endpoint_config", EndpointConfigName=config)
    for model in gone.models:
        _delete(account, "model", ModelName=model)
    return gone


def models_of(config: dict[str, Any] | None) -> set[str]:
    """The models of an endpoint configuration."""
    return {variant["ModelName"] for variant in config["ProductionVariants"]} if config else set()


def _delete(account: "Account", kind: str, **which: str) -> None:
    from botocore.exceptions import ClientError

    with answered(f"deleting {', '.join(which.values())}"):
        try:
            getattr(account.sagemaker, f"delete_{kind}")(**which)
        except ClientError as error:
            if not is_missing(error):
                raise


def _is_ours(client: Any, listed: dict[str, Any], kind: str, name: str | None) -> bool:
    """Names are looked at first: tags are one request each, and an account may have thousands of models."""
    fits = _OURS.fullmatch(listed[f"{kind}Name"]) and listed[f"{kind}Name"].startswith(f"{name}-" if name else "")
    return bool(fits) and tagged(client, listed[f"{kind}Arn"], name)


def _pages(client: Any, operation: str, member: str, **asked: Any) -> Iterator[dict[str, Any]]:
    for page in client.get_paginator(operation).paginate(**asked):
        yield from page[member]
