"""Deletion of an endpoint and of its resources.

Any request may be denied, throttled or lost: billed resources go first, and no failed look-up prevents a deletion.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from bincounter.cloud.endpoints.api_objects import SAGEMAKER, Call
from bincounter.cloud.endpoints.attempts import Attempts, send_removal
from bincounter.cloud.endpoints.autoscaling import removal_calls, remove_autoscaling
from bincounter.cloud.endpoints.deployment_plan import bucket_uri, print_calls
from bincounter.cloud.endpoints.endpoint_requests import EndpointSpec
from bincounter.cloud.endpoints.endpoint_state import (
    deploy_command,
    describe,
    describe_config,
    describe_model,
    log_group,
    wait_until_settled,
    watch_state,
)
from bincounter.cloud.endpoints.resources import LIST_JOBS, EndpointResources, find_resources, models_of
from bincounter.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

log = logging.getLogger(__name__)


_CHANGING = ("Creating", "Updating", "SystemUpdating", "RollingBack")


def remove_unused(account: "Account", name: str, *, keep: Collection[str]) -> None:
    """Delete an endpoint's configurations and models that are not in use; they are free, so errors are logged.

    Args:
        account: account of the endpoint.
        name: name of the endpoint.
        keep: names of the configurations to keep, with their models.
    """
    attempts = Attempts()
    _remove_free(account, attempts, find_resources(account, attempts, name), keep)
    if attempts.left:
        log.warning("Free, and not deleted: %s", "; ".join(attempts.left))
    if attempts.unchecked:
        log.warning("%s", attempts.report())


def _remove_free(
    account: "Account", attempts: Attempts, there: EndpointResources, keep: Collection[str] = ()
) -> EndpointResources:
    """Delete configurations and models that are not in use; returns the deleted ones."""
    configs = [
        attempts.look(f"describing the configuration {one}", partial(describe_config, account, one), {}) for one in keep
    ]
    jobs = [
        attempts.look(
            f"describing the transform job {job}",
            partial(account.sagemaker.describe_transform_job, TransformJobName=job),
            {},
        )
        for job in there.transforms
    ]
    unsure = any(one == {} for one in (*configs, *jobs)) or (keep and LIST_JOBS in attempts.unchecked)
    used = {model for config in configs for model in models_of(config)} | {job.get("ModelName") for job in jobs}
    return EndpointResources(
        [
            name
            for name in there.configs
            if name not in keep and attempts.remove(account, _config_removal(name), f"the configuration {name}")
        ],
        [
            name
            for name in there.models
            if not (unsure or name in used) and attempts.remove(account, _model_removal(name), f"the model {name}")
        ],
    )


def _config_removal(name: str) -> Call:
    return Call(SAGEMAKER, "DeleteEndpointConfig", {"EndpointConfigName": name})


def _model_removal(name: str) -> Call:
    return Call(SAGEMAKER, "DeleteModel", {"ModelName": name})


def delete(account: "Account", spec: EndpointSpec) -> "Removal":
    """Delete an endpoint and its resources, and log the outcome; missing resources are not an error.

    Args:
        account: account of the endpoint.
        spec: settings of the endpoint.

    Raises:
        ConfigError: the endpoint is busy, and ``target.wait`` is false.
        Interrupted: by Ctrl-C; the deletion continues at AWS.
    """
    removal = remove(account, spec, refuse_busy=True)
    gone, attempts = removal.gone, removal.attempts
    if not (removal.existed or gone or attempts.left):
        nothing = "No endpoint %s, and no resources of it, in %s: nothing to delete. Set target.region for another."
        log.info(nothing, spec.name, account.region)
    else:
        log.info(
            "%s: %d configuration%s and %d model%s deleted%s",
            spec.name,
            *_counted(gone.configs),
            *_counted(gone.models),
            "." if attempts.left or attempts.unchecked else "; nothing is billed any more.",
        )
        log.info("Not deleted: %s", "; ".join(removal.stays))
    if attempts.unchecked:
        log.warning("%s", attempts.report())
    return removal


def show_deletion(account: "Account", spec: EndpointSpec) -> None:
    """Print the requests that :func:`delete` would send."""
    attempts = Attempts()
    there = _look_at_endpoint(account, spec.name, attempts)
    ours = find_resources(account, attempts, spec.name)
    calls = []
    if there is not None:
        calls.append(Call(SAGEMAKER, "DeleteEndpoint", {"EndpointName": spec.name}))
    calls += [_transform_stop(job) for job in ours.transforms]
    if there is not None:
        calls += removal_calls(account, spec, attempts)
    print_calls(account, [*calls, *map(_config_removal, ours.configs), *map(_model_removal, ours.models)])
    if attempts.unchecked:
        log.warning("%s", attempts.report())


@dataclass
class Removal:
    """Outcome of a deletion.

    Attributes:
        name: name of the endpoint.
        attempts: requests that failed.
        existed: whether the endpoint existed, or may have.
        ended: whether the endpoint is deleted, or was already.
        gone: deleted configurations and models, and stopped transform jobs.
        stays: places that the endpoint has written to, which cost a few cents a month.
    """

    name: str
    attempts: Attempts
    existed: bool
    ended: bool = False
    gone: EndpointResources = field(default_factory=EndpointResources)
    stays: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Check that all was deleted.

        Raises:
            ResourceError: names the resources that were not, with the reasons.
        """
        if self.attempts.left:
            billed = "" if self.ended else "; the endpoint may be billed"
            raise ResourceError(
                f"not deleted of name={self.name}: {'; '.join(self.attempts.left)}{billed}: correct the cause, then "
                "run action=delete again"
            )


def remove(account: "Account", spec: EndpointSpec, *, refuse_busy: bool = False) -> Removal:
    """Delete an endpoint, its autoscaling, configurations and models, and stop its transform jobs.

    Requests that fail are in the result.

    Args:
        account: account of the endpoint.
        spec: settings of the endpoint.
        refuse_busy: raise if the endpoint is busy and ``target.wait`` is false, before anything is sent.

    Raises:
        ConfigError: as above.
        Interrupted: by Ctrl-C; the deletion continues at AWS.
    """
    name, attempts = spec.name, Attempts()
    there = _look_at_endpoint(account, name, attempts)
    if there and there["EndpointStatus"] in _CHANGING:
        if refuse_busy and not spec.target["wait"]:
            raise ConfigError(
                f"the endpoint name={name} is {there['EndpointStatus']}, and cannot be deleted until that has "
                "ended: remove target.wait=false, or try again later"
            )
        log.info("The endpoint is %s, and will be deleted when that has ended.", there["EndpointStatus"])
        there = _settled(account, spec, attempts, there)
    removal = Removal(name, attempts, existed=there is not None)
    removal.ended = there is None or _delete_endpoint(account, spec, there, attempts)
    config, models = _describe_resources(account, there, attempts)
    removal.stays = _what_stays(account, spec, config, models)
    ours = find_resources(account, attempts, name, configs=[config] if config else [], models=models)
    ours.transforms = _stop_transforms(account, spec, ours.transforms, attempts)
    if removal.ended:
        remove_autoscaling(account, spec, attempts)
        left = _settled(account, spec, attempts, None) if removal.existed and spec.target["wait"] else None
        if left:
            removal.ended = False
            attempts.left.append(f"the endpoint {name} (it is {left['EndpointStatus']})")
    if removal.ended:  # else it may still need its configuration and its models
        removal.gone = _remove_free(account, attempts, ours)
        attempts.left += [f"{one} (its tags cannot be read, so it may be another's)" for one in ours.unknown]
    return removal


def _look_at_endpoint(account: "Account", name: str, attempts: Attempts) -> dict[str, Any] | None:
    """Return DescribeEndpoint; ``None`` if the endpoint does not exist, and ``{}`` if that is not known."""
    return attempts.look(f"describing the endpoint {name}", partial(describe, account, name), {})


def _settled(
    account: "Account", spec: EndpointSpec, attempts: Attempts, default: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Wait for the endpoint, unless its state cannot be described."""
    return attempts.look(f"describing the endpoint {spec.name}", partial(wait_until_settled, account, spec), default)


def _delete_endpoint(account: "Account", spec: EndpointSpec, there: dict[str, Any], attempts: Attempts) -> bool:
    """Send DeleteEndpoint; return whether the endpoint is being deleted."""
    call = Call(SAGEMAKER, "DeleteEndpoint", {"EndpointName": spec.name})
    now: dict[str, Any] | None = there
    for _ in range(2):
        if now is None or now.get("EndpointStatus") == "Deleting":
            return True
        error = send_removal(account, call)
        if error is None:
            return True
        now = _look_at_endpoint(account, spec.name, attempts)  # the answer may be lost, or autoscaling has begun
        if now and now["EndpointStatus"] in _CHANGING and spec.target["wait"]:
            now = _settled(account, spec, attempts, now)
        elif now is None or now.get("EndpointStatus") == "Deleting":
            return True
        else:
            break
    attempts.left.append(f"the endpoint {spec.name} ({error})")
    return False


def _stop_transforms(account: "Account", spec: EndpointSpec, jobs: Sequence[str], attempts: Attempts) -> list[str]:
    """Stop transform jobs; returns the ones that still run."""
    running = []
    for job in jobs:
        log.info("Stopping the transform job %s", job)
        if not attempts.remove(account, _transform_stop(job), f"the transform job {job}"):
            running.append(job)
    for job in jobs if spec.target["wait"] else ():
        if job not in running:
            ask = partial(account.sagemaker.describe_transform_job, TransformJobName=job)
            see = deploy_command(spec, "action=list")
            attempts.look(
                f"waiting for the transform job {job}",
                partial(watch_state, account, ask, "TransformJobStatus", job, see),
                None,
            )
    return running


def _transform_stop(job: str) -> Call:
    return Call(SAGEMAKER, "StopTransformJob", {"TransformJobName": job})


def _describe_resources(
    account: "Account", there: dict[str, Any] | None, attempts: Attempts
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Return the configuration of an endpoint and its models, as far as they can be described."""
    if not there:
        return None, []
    ask = partial(describe_config, account, there["EndpointConfigName"])
    config = attempts.look("describing the configuration", ask, None)
    described = [
        attempts.look(f"describing the model {name}", partial(describe_model, account, name), None)
        for name in sorted(models_of(config))
    ]
    return config, [model for model in described if model]


def _what_stays(
    account: "Account", spec: EndpointSpec, config: dict[str, Any] | None, models: Sequence[dict[str, Any]]
) -> list[str]:
    """Return the places that an endpoint has written to, which cost a few cents a month."""
    stays = [f"the archive {model['PrimaryContainer']['ModelDataUrl']}" for model in models]
    if not stays:
        folder = Attempts().look("looking up the account", partial(bucket_uri, account, spec), "your bucket")
        stays.append(f"archives under {folder}/models")
    stays.append(f"the log group {log_group(spec.name)}")
    outputs = (config or {}).get("AsyncInferenceConfig", {}).get("OutputConfig", {})
    stays += [f"answers in {outputs[member]}" for member in ("S3OutputPath", "S3FailurePath") if member in outputs]
    capture = (config or {}).get("DataCaptureConfig", {})
    if "DestinationS3Uri" in capture:
        stays.append(f"captured requests in {capture['DestinationS3Uri']}")
    return stays


def _counted(names: list[str]) -> tuple[int, str]:
    return len(names), "" if len(names) == 1 else "s"
