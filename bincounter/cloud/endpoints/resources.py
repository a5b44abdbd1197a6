"""Resources of endpoints, found by their tag."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bincounter.cloud.aws_errors import is_missing
from bincounter.cloud.endpoints.attempts import Attempts
from bincounter.cloud.endpoints.endpoint_requests import TAG

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

_OURS = re.compile(r".+-[0-9a-f]{8}")
_OUR_JOB = re.compile(r".+-\d{10}-[0-9a-f]{4}")
LIST_JOBS = "listing the transform jobs"


@dataclass
class EndpointResources:
    """Names of the resources that carry an endpoint's tag.

    Attributes:
        configs: endpoint configurations, which are free.
        models: models, which are free.
        transforms: running transform jobs.
        unknown: resources with the name of one of these, whose tags cannot be read.
    """

    configs: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    transforms: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.configs or self.models or self.transforms or self.unknown)


def find_resources(
    account: "Account",
    attempts: Attempts,
    name: str | None = None,
    *,
    configs: Sequence[dict[str, Any]] = (),
    models: Sequence[dict[str, Any]] = (),
) -> EndpointResources:
    """Find resources by their tag.

    Args:
        account: account to search.
        attempts: takes the look-ups that fail.
        name: name of the endpoint; ``None`` for the resources of all endpoints.
        configs: descriptions of configurations, to use if they cannot be listed.
        models: descriptions of models, to use if they cannot be listed.
    """
    narrow: dict[str, Any] = {"NameContains": name} if name else {}

    def listed(what: str, operation: str, member: str, known: Sequence[dict[str, Any]] = (), **asked: Any) -> Any:
        return attempts.look(what, lambda: list(_pages(account, operation, member, **asked)), known)

    listings = {
        "EndpointConfig": listed(
            "listing the configurations", "list_endpoint_configs", "EndpointConfigs", configs, **narrow
        ),
        "Model": listed("listing the models", "list_models", "Models", models, **narrow),
        "TransformJob": listed(LIST_JOBS, "list_transform_jobs", "TransformJobSummaries", StatusEquals="InProgress"),
    }
    found = EndpointResources()
    ours = {"EndpointConfig": found.configs, "Model": found.models, "TransformJob": found.transforms}
    for kind, resources in listings.items():
        for one in resources:
            called = one[f"{kind}Name"]
            pattern = _OUR_JOB if kind == "TransformJob" else _OURS
            fits = pattern.fullmatch(called) and called.startswith(f"{name}-" if name else "")
            # Names first: tags are one request each, and an account may have thousands of models.
            if not fits and kind != "TransformJob":
                continue
            tagged = is_tagged(account, one[f"{kind}Arn"], attempts, name)
            if tagged:
                ours[kind].append(called)
            elif tagged is None and fits:
                found.unknown.append(called)
    return found


def is_tagged(account: "Account", arn: str, attempts: Attempts, name: str | None = None) -> bool | None:
    """Return True if a resource carries the tag of bincounter; ``None`` if its tags cannot be read.

    Args:
        account: account of the resource.
        arn: ARN of the resource.
        attempts: takes the look-up if it fails; the tags of further resources are not asked for then.
        name: required value of the tag; ``None`` for any value.
    """
    from botocore.exceptions import ClientError

    def read() -> bool:
        try:
            tags = list(_pages(account, "list_tags", "Tags", ResourceArn=arn))
        except ClientError as error:
            if is_missing(error):  # deleted in the meantime
                return False
            raise
        values = [tag["Value"] for tag in tags if tag["Key"] == TAG]
        return bool(values) and name in (None, *values)

    return attempts.look("reading the tags of resources", read, None)


def models_of(config: dict[str, Any] | None) -> set[str]:
    """Return the names of the models of an endpoint configuration."""
    return {variant["ModelName"] for variant in config["ProductionVariants"]} if config else set()


def _pages(account: "Account", operation: str, member: str, **asked: Any) -> Iterator[dict[str, Any]]:
    for page in account.sagemaker.get_paginator(operation).paginate(**asked):
        yield from page[member]
