"""What a training job is asked to have AWS watch: SageMaker Debugger's part of CreateTrainingJob.

``debugger=smdebug`` and ``profiler.sagemaker_interval`` alone ask for it; whatever else watches a run does so inside
the container. Output goes where AWS puts it below the folder of all jobs: ``<job>/debug-output``,
``<job>/profiler-output`` and ``<job>/rule-output/<rule>``.
"""

from collections.abc import Mapping
from typing import Any

from bincounter.cloud.images import rules_image
from bincounter.config.sagemaker_rules import DEBUG_RULES
from bincounter.config.smdebug import hook_config


def inspection_request(
    debugger: Mapping[str, Any], profiler: Mapping[str, Any], *, folder_uri: str, region: str
) -> dict[str, Any]:
    """The members of CreateTrainingJob that the settings stand for; none where nothing is asked of AWS.

    Args:
        debugger: the settings as plain containers.
        profiler: the same.
        folder_uri: ``s3://`` folder under which SageMaker keeps a folder for each job.
        region: of the job.

    Raises:
        ConfigError: AWS has no rules in the region.
    """
    members: dict[str, Any] = {}
    if debugger.get("kind") == "smdebug":
        # Without a LocalPath, tensors are saved in a folder of AWS's own, which goes to S3 as they come.
        members["DebugHookConfig"] = {"S3OutputPath": folder_uri, **hook_config(debugger)}
        parameters = debugger["sagemaker_parameters"]
        members["DebugRuleConfigurations"] = [
            _rule(name, DEBUG_RULES[name].invoke, parameters.get(name, {}), region)
            for name in debugger["sagemaker_rules"]
        ]
    if profiler.get("sagemaker_interval") is not None:
        members["ProfilerConfig"] = {
            "S3OutputPath": folder_uri,
            "ProfilingIntervalInMilliseconds": profiler["sagemaker_interval"],
        }
        members["ProfilerRuleConfigurations"] = [_rule(name, name, {}, region) for name in profiler["sagemaker_rules"]]
    return {name: member for name, member in members.items() if member}


def _rule(name: str, invoke: str, parameters: Mapping[str, Any], region: str) -> dict[str, Any]:
    """Without an instance of its own a built-in rule is AWS's, and free."""
    return {
        "RuleConfigurationName": name,
        "RuleEvaluatorImage": rules_image(region),
        "RuleParameters": {"rule_to_invoke": invoke, **{key: str(value) for key, value in parameters.items()}},
    }
