"""Rules on CreateHyperParameterTuningJob: requests that AWS rejects, and requests that cannot be rehearsed.

The rules are AWS's, from the API reference and from its guide to automatic model tuning. The training jobs of a tuning
job are checked as training jobs.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from sagemaker_rehearsal.protocol import Refused
from sagemaker_rehearsal.request_checks import refuse_first, refuse_unsupported
from sagemaker_rehearsal.tuning_search import combinations

_MOST_PARAMETERS = 30
_MOST_JOBS = {"MaxNumberOfTrainingJobs": 750, "MaxParallelTrainingJobs": 100}
_WHOLE = re.compile(r"[-+]?\d+")


def check_tuning_rules(request: dict[str, Any]) -> None:
    """Check the rules between the members of a request.

    Args:
        request: body with a valid shape, see :func:`~sagemaker_rehearsal.protocol.check_shape`.

    Raises:
        Refused: a rule is broken.
    """
    config = request["HyperParameterTuningJobConfig"]
    _check_rehearsable(request, config)
    definition = request.get("TrainingJobDefinition", {})
    metrics = [metric["Name"] for metric in definition.get("AlgorithmSpecification", {}).get("MetricDefinitions", [])]
    objective = config.get("HyperParameterTuningJobObjective", {}).get("MetricName")
    refuse_first(
        {
            "TrainingJobDefinition is required.": not definition,
            "HyperParameterTuningJobObjective is required.": objective is None,
            f"The objective metric {objective} is not one of MetricDefinitions: {', '.join(metrics)}.": (
                objective not in metrics
            ),
        }
    )
    _check_ranges(config.get("ParameterRanges", {}), definition.get("StaticHyperParameters", {}))
    _check_strategy(config)
    _check_limits(config)


def _check_rehearsable(request: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    ranges = config.get("ParameterRanges", {})
    bounds = [*ranges.get("IntegerParameterRanges", []), *ranges.get("ContinuousParameterRanges", [])]
    refuse_unsupported(
        {
            "the Hyperband strategy": config["Strategy"] == "Hyperband",
            "warm starts (WarmStartConfig)": "WarmStartConfig" in request,
            "Autotune": "Autotune" in request or "AutoParameters" in ranges,
            "several TrainingJobDefinitions, or an objective and ranges inside of one": (
                "TrainingJobDefinitions" in request
                or bool(request.get("TrainingJobDefinition", {}).keys() & {"TuningObjective", "HyperParameterRanges"})
            ),
            "HyperParameterTuningResourceConfig": (
                "HyperParameterTuningResourceConfig" in request.get("TrainingJobDefinition", {})
            ),
            "TuningJobCompletionCriteria": "TuningJobCompletionCriteria" in config,
            "MaxRuntimeInSeconds of a tuning job": "MaxRuntimeInSeconds" in config["ResourceLimits"],
            "ReverseLogarithmic scaling": any(each.get("ScalingType") == "ReverseLogarithmic" for each in bounds),
        }
    )


def _check_ranges(ranges: Mapping[str, Any], static: Mapping[str, str]) -> None:
    names = [each["Name"] for kind in ranges.values() for each in kind]
    both = sorted({*names} & static.keys())
    refuse_first(
        {
            "ParameterRanges holds no range.": not names,
            f"ParameterRanges holds {len(names)} ranges, more than {_MOST_PARAMETERS}.": len(names) > _MOST_PARAMETERS,
            "ParameterRanges names a hyperparameter twice.": len(set(names)) < len(names),
            f"Hyperparameters both static and tuned: {', '.join(both)}.": bool(both),
        }
    )
    for each in ranges.get("IntegerParameterRanges", []):
        if not (_WHOLE.fullmatch(each["MinValue"]) and _WHOLE.fullmatch(each["MaxValue"])):
            raise Refused("ValidationException", f"The bounds of {each['Name']} must be whole numbers.")
        _check_bounds(each)
    for each in ranges.get("ContinuousParameterRanges", []):
        _check_bounds(each)


def _check_bounds(bounds: Mapping[str, str]) -> None:
    name = bounds["Name"]
    try:
        low, high = float(bounds["MinValue"]), float(bounds["MaxValue"])
    except ValueError:
        raise Refused("ValidationException", f"The bounds of {name} must be numbers.") from None
    refuse_first(
        {
            f"The bounds of {name} must be finite.": not (math.isfinite(low) and math.isfinite(high)),
            f"MinValue of {name} must be less than its MaxValue.": low >= high,
            f"Logarithmic scaling of {name} needs bounds greater than 0.": (
                bounds.get("ScalingType") == "Logarithmic" and low <= 0
            ),
        }
    )


def _check_strategy(config: Mapping[str, Any]) -> None:
    ranges, is_grid = config["ParameterRanges"], config["Strategy"] == "Grid"
    jobs = config["ResourceLimits"].get("MaxNumberOfTrainingJobs")
    cells = combinations(ranges)
    refuse_first(
        {
            "The Grid strategy takes categorical ranges only.": is_grid
            and any(ranges.get(f"{kind}ParameterRanges") for kind in ("Integer", "Continuous")),
            f"MaxNumberOfTrainingJobs of a Grid is the number of its combinations, {cells}, or is left out.": (
                is_grid and jobs not in (None, cells)
            ),
            "MaxNumberOfTrainingJobs is required.": not is_grid and jobs is None,
            "StrategyConfig is for the Hyperband strategy only.": "StrategyConfig" in config,
        }
    )


def _check_limits(config: Mapping[str, Any]) -> None:
    limits = {"MaxNumberOfTrainingJobs": combinations(config["ParameterRanges"]), **config["ResourceLimits"]}
    for name, most in _MOST_JOBS.items():
        if limits[name] > most:
            raise Refused(
                "ResourceLimitExceeded", f"{name} is {limits[name]}, and the limit of this account is {most}."
            )
