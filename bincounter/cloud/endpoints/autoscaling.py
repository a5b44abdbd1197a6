"""How many instances an endpoint has as its load changes: Application Auto Scaling's target and policy."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bincounter.cloud.aws_errors import answered
from bincounter.cloud.endpoints.api_objects import AUTOSCALING, Call, called
from bincounter.cloud.endpoints.endpoint_requests import VARIANT, Wanted
from bincounter.errors import ConfigError

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

_NAMESPACE = "sagemaker"
_INSTANCES, _SERVERLESS = "sagemaker:variant:DesiredInstanceCount", "sagemaker:variant:DesiredProvisionedConcurrency"
_TARGET_MEMBERS = ("MinCapacity", "MaxCapacity", "RoleARN", "SuspendedState")
_POLICY_MEMBERS = (
    "PolicyName",
    "PolicyType",
    "StepScalingPolicyConfiguration",
    "TargetTrackingScalingPolicyConfiguration",
    "PredictiveScalingPolicyConfiguration",
)


def scaling_calls(wanted: Wanted) -> list[Call]:
    """RegisterScalableTarget and PutScalingPolicy, where ``target.request`` asks for them.

    Raises:
        ConfigError: a policy without bounds, bounds without a policy, or something that the API does not take.
    """
    asked = {"ScalableTarget", "ScalingPolicy"} & set(wanted.extra)
    if not asked:
        return []
    if len(asked) == 1:
        there = asked.pop()
        other = "ScalingPolicy" if there == "ScalableTarget" else "ScalableTarget"
        raise ConfigError(f"target.request.{there} changes nothing by itself: add target.request.{other}")
    if not wanted.target["wait"]:
        raise ConfigError(
            "target.request.ScalableTarget is registered once the endpoint is in service: leave target.wait=false out"
        )
    dimension = _SERVERLESS if wanted.kind == "serverless" else _INSTANCES
    where = {**_resource(wanted.name), "ScalableDimension": dimension}
    policy = {"PolicyName": wanted.name, "PolicyType": "TargetTrackingScaling"}
    return [
        called("ScalableTarget", where, wanted.extra),
        called("ScalingPolicy", {**policy, **where}, wanted.extra),
    ]


@dataclass(frozen=True)
class Registered:
    """What is registered of an endpoint: the requests that would register it again."""

    targets: list[Call]
    policies: list[Call]

    def __bool__(self) -> bool:
        return bool(self.targets)

    def restore(self, account: "Account") -> None:
        """Register it all again."""
        for call in (*self.targets, *self.policies):
            with answered("registering the endpoint's autoscaling again"):
                call.send(account)

    def removal(self) -> list[Call]:
        """The requests that take it away; policies go with their target."""
        return [
            Call(AUTOSCALING, "DeregisterScalableTarget", _only(call.request, *_resource(""), "ScalableDimension"))
            for call in self.targets
        ]

    def remove(self, account: "Account") -> None:
        """Take it all away."""
        for call in self.removal():
            with answered("ending the endpoint's autoscaling"):
                call.send(account)


def registered(account: "Account", name: str) -> Registered:
    """What Application Auto Scaling knows of an endpoint."""
    where = _resource(name)
    with answered(f"asking for the autoscaling of {name}"):
        client = account.autoscaling
        targets = client.describe_scalable_targets(ServiceNamespace=_NAMESPACE, ResourceIds=[where["ResourceId"]])[
            "ScalableTargets"
        ]
        if not targets:
            return Registered([], [])
        policies = client.describe_scaling_policies(**where)["ScalingPolicies"]
    members = (*where, "ScalableDimension")
    return Registered(
        [Call(AUTOSCALING, "RegisterScalableTarget", _only(one, *members, *_TARGET_MEMBERS)) for one in targets],
        [Call(AUTOSCALING, "PutScalingPolicy", _only(one, *members, *_POLICY_MEMBERS)) for one in policies],
    )


def _resource(name: str) -> dict[str, str]:
    return {"ServiceNamespace": _NAMESPACE, "ResourceId": f"endpoint/{name}/variant/{VARIANT}"}


def _only(described: dict[str, Any], *members: str) -> dict[str, Any]:
    return {member: described[member] for member in members if member in described}
