"""Application Auto Scaling of an endpoint: register, describe, deregister, restore."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bincounter.cloud.aws_errors import translate_endpoint_errors
from bincounter.cloud.endpoints.api_objects import AUTOSCALING, Call, build_call
from bincounter.cloud.endpoints.attempts import Attempts, send_removal
from bincounter.cloud.endpoints.endpoint_requests import VARIANT, EndpointSpec
from bincounter.errors import ConfigError

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

_NAMESPACE = "sagemaker"
_INSTANCES, _SERVERLESS = "sagemaker:variant:DesiredInstanceCount", "sagemaker:variant:DesiredProvisionedConcurrency"
_DESCRIBING = "describing the autoscaling"
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
    where = _where(spec)
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

    def matches(self, calls: Sequence[Call]) -> bool:
        """Return True if just this is registered by ``calls``; AWS adds members of its own."""
        there = [call.request for call in (*self.targets, *self.policies)]
        asked = [call.request for call in calls]
        return len(there) == len(asked) and all(any(one.items() <= each.items() for each in there) for one in asked)

    def restore(self, account: "Account") -> None:
        """Register everything again."""
        for call in (*self.targets, *self.policies):
            with translate_endpoint_errors("registering the endpoint's autoscaling again"):
                call.send(account)

    def remove(self, account: "Account") -> None:
        """Deregister everything; AWS deletes the policies of a target with it."""
        for call in map(_deregistration, self.targets):
            with translate_endpoint_errors("ending the endpoint's autoscaling"):
                call.send(account)


def removal_calls(account: "Account", spec: EndpointSpec, attempts: Attempts) -> list[Call]:
    """Return the requests that deregister an endpoint's autoscaling, for all targets that it has or may have."""
    targets = attempts.look(_DESCRIBING, lambda: read_targets(account, spec.name), None)
    if targets is None:
        targets = [Call(AUTOSCALING, "", _where(spec))]
    return [_deregistration(target) for target in targets]


def remove_autoscaling(account: "Account", spec: EndpointSpec, attempts: Attempts) -> None:
    """Deregister the autoscaling of an endpoint that is deleted."""
    calls = removal_calls(account, spec, attempts)
    if _DESCRIBING not in attempts.unchecked:
        for call in calls:
            attempts.remove(account, call, f"the autoscaling of {spec.name}")
    elif not [error for call in calls if (error := send_removal(account, call))]:
        del attempts.unchecked[_DESCRIBING]  # nothing is registered any more


def _deregistration(target: Call) -> Call:
    request = _only(target.request, *_resource(""), "ScalableDimension")
    return Call(AUTOSCALING, "DeregisterScalableTarget", request)


def read_targets(account: "Account", name: str) -> list[Call]:
    """Read the registered autoscaling targets of an endpoint, as the requests that register them again."""
    where = _resource(name)
    with translate_endpoint_errors(f"describing the autoscaling of {name}"):
        targets = account.autoscaling.describe_scalable_targets(
            ServiceNamespace=_NAMESPACE, ResourceIds=[where["ResourceId"]]
        )["ScalableTargets"]
    members = (*where, "ScalableDimension", *_TARGET_MEMBERS)
    return [Call(AUTOSCALING, "RegisterScalableTarget", _only(target, *members)) for target in targets]


def read_autoscaling(account: "Account", name: str) -> Autoscaling:
    """Read the autoscaling of an endpoint, policies included."""
    targets = read_targets(account, name)
    if not targets:
        return Autoscaling([], [])
    where = _resource(name)
    with translate_endpoint_errors(f"describing the autoscaling of {name}"):
        policies = account.autoscaling.describe_scaling_policies(**where)["ScalingPolicies"]
    members = (*where, "ScalableDimension", *_POLICY_MEMBERS)
    return Autoscaling(targets, [Call(AUTOSCALING, "PutScalingPolicy", _only(policy, *members)) for policy in policies])


def _where(spec: EndpointSpec) -> dict[str, str]:
    dimension = _SERVERLESS if spec.kind == "serverless" else _INSTANCES
    return {**_resource(spec.name), "ScalableDimension": dimension}


def _resource(name: str) -> dict[str, str]:
    return {"ServiceNamespace": _NAMESPACE, "ResourceId": f"endpoint/{name}/variant/{VARIANT}"}


def _only(described: dict[str, Any], *members: str) -> dict[str, Any]:
    return {member: described[member] for member in members if member in described}
