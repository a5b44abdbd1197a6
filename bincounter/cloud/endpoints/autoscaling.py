"""Application Auto Scaling of an endpoint: register, describe, deregister, restore."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bincounter.cloud.aws_errors import translate_endpoint_errors
from bincounter.cloud.endpoints.api_objects import AUTOSCALING, Call, build_call
from bincounter.cloud.endpoints.endpoint_requests import VARIANT, EndpointSpec
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


def scaling_calls(spec: EndpointSpec) -> list[Call]:
    """Return RegisterScalableTarget and PutScalingPolicy if ``target.request`` asks for them.

    Raises:
        ConfigError: a policy without bounds, bounds without a policy, or a parameter that the API refuses.
    """
    asked = {"ScalableTarget", "ScalingPolicy"} & set(spec.extra)
    if not asked:
        return []
    if len(asked) == 1:
        given = asked.pop()
        other = "ScalingPolicy" if given == "ScalableTarget" else "ScalableTarget"
        raise ConfigError(f"target.request.{given} has no effect alone: add target.request.{other}")
    if not spec.target["wait"]:
        raise ConfigError(
            "target.request.ScalableTarget is registered once the endpoint is in service: remove target.wait=false"
        )
    dimension = _SERVERLESS if spec.kind == "serverless" else _INSTANCES
    where = {**_resource(spec.name), "ScalableDimension": dimension}
    policy = {"PolicyName": spec.name, "PolicyType": "TargetTrackingScaling"}
    return [
        build_call("ScalableTarget", where, spec.extra),
        build_call("ScalingPolicy", {**policy, **where}, spec.extra),
    ]


@dataclass(frozen=True)
class Autoscaling:
    """Registered autoscaling of an endpoint, as the requests that register it again."""

    targets: list[Call]
    policies: list[Call]

    def __bool__(self) -> bool:
        return bool(self.targets)

    def restore(self, account: "Account") -> None:
        """Register everything again."""
        for call in (*self.targets, *self.policies):
            with translate_endpoint_errors("registering the endpoint's autoscaling again"):
                call.send(account)

    def removal(self) -> list[Call]:
        """Return the requests that deregister it; AWS deletes the policies of a target with it."""
        return [
            Call(AUTOSCALING, "DeregisterScalableTarget", _only(call.request, *_resource(""), "ScalableDimension"))
            for call in self.targets
        ]

    def remove(self, account: "Account") -> None:
        """Deregister everything."""
        for call in self.removal():
            with translate_endpoint_errors("ending the endpoint's autoscaling"):
                call.send(account)


def read_autoscaling(account: "Account", name: str) -> Autoscaling:
    """Read the autoscaling of an endpoint."""
    where = _resource(name)
    with translate_endpoint_errors(f"describing the autoscaling of {name}"):
        client = account.autoscaling
        targets = client.describe_scalable_targets(ServiceNamespace=_NAMESPACE, ResourceIds=[where["ResourceId"]])[
            "ScalableTargets"
        ]
        if not targets:
            return Autoscaling([], [])
        policies = client.describe_scaling_policies(**where)["ScalingPolicies"]
    members = (*where, "ScalableDimension")
    return Autoscaling(
        [Call(AUTOSCALING, "RegisterScalableTarget", _only(target, *members, *_TARGET_MEMBERS)) for target in targets],
        [Call(AUTOSCALING, "PutScalingPolicy", _only(policy, *members, *_POLICY_MEMBERS)) for policy in policies],
    )


def _resource(name: str) -> dict[str, str]:
    return {"ServiceNamespace": _NAMESPACE, "ResourceId": f"endpoint/{name}/variant/{VARIANT}"}


def _only(described: dict[str, Any], *members: str) -> dict[str, Any]:
    return {member: described[member] for member in members if member in described}
