"""SageMaker's model registry: a version for each checkpoint that is served, where ``target.request`` asks for it."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bincounter.cloud.aws_errors import answered
from bincounter.cloud.endpoints.api_objects import Call, called
from bincounter.cloud.endpoints.endpoint_requests import Wanted
from bincounter.cloud.endpoints.endpoint_state import found

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

log = logging.getLogger(__name__)


def registry_calls(wanted: Wanted, model: Call) -> list[Call]:
    """CreateModelPackageGroup and CreateModelPackage, or nothing.

    Args:
        wanted: what the command wants.
        model: CreateModel.

    Raises:
        ConfigError: SageMaker does not take what ``target.request`` adds.
    """
    if not {"ModelPackage", "ModelPackageGroup"} & set(wanted.extra):
        return []
    group = called("ModelPackageGroup", {"ModelPackageGroupName": wanted.name, "Tags": wanted.tags}, wanted.extra)
    container = model.request["PrimaryContainer"]
    members = ("Image", "ModelDataUrl", "Environment")
    package = {
        "ModelPackageGroupName": group.request["ModelPackageGroupName"],
        "ModelPackageDescription": f"Counts the items in a bin; served as {wanted.name}",
        "InferenceSpecification": {
            "Containers": [{member: container[member] for member in members if member in container}],
            "SupportedContentTypes": ["image/jpeg", "image/png", "application/json"],
            "SupportedResponseMIMETypes": ["application/json", "text/csv"],
        },
    }
    return [group, called("ModelPackage", package, wanted.extra)]


def enter(account: "Account", group: Call, package: Call) -> None:
    """Register a version, unless the newest one has the same archive.

    Args:
        account: whose registry.
        group: CreateModelPackageGroup, sent where there is no such group.
        package: CreateModelPackage.
    """
    name, client = group.request["ModelPackageGroupName"], account.sagemaker
    doing = f"registering a version in {name}"
    if found(lambda: client.describe_model_package_group(ModelPackageGroupName=name), doing) is None:
        with answered(doing):
            group.send(account)
    with answered(doing):
        listed = client.list_model_packages(
            ModelPackageGroupName=name, SortBy="CreationTime", SortOrder="Descending", MaxResults=1
        )["ModelPackageSummaryList"]
        if listed:
            newest = client.describe_model_package(ModelPackageName=listed[0]["ModelPackageArn"])
            if _archive(newest) == _archive(package.request):
                return
        arn = package.send(account)["ModelPackageArn"]
    log.info("Registered: %s", arn)


def _archive(package: Mapping[str, Any]) -> str:
    return str(package["InferenceSpecification"]["Containers"][0].get("ModelDataUrl"))
