"""What AWS refuses about CreateHyperParameterTuningJob though every member on its own is right.

The rules are AWS's, from the API reference and from its guide to automatic model tuning. What a tuning job's training
jobs have in common with all training jobs is checked as theirs.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from sagemaker_rehearsal.protocol import Refused
from sagemaker_rehearsal.request_checks import refuse_first
from sagemaker_rehearsal.tuning_search import combinations, most_epochs

_MOST_PARAMETERS = 30
_MOST_EPOCHS = 20_000
_MOST_JOBS = {"MaxNumberOfTrainingJobs": 750, "MaxParallelTrainingJobs": 100}
_WHOLE = re.compile(r"[-+]?\d+")


def check_tuning_rules(request: dict[str, Any]) -> None:
    """Refuse what AWS refuses, and what the rehearsal cannot do.

    Args:
        request: a body that the service model allows.

    Raises:
        Refused: the rule that is broken.
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
            f"The objective metric {objective} is none of MetricDefinitions: {', '.join(metrics)}.": (
                objective not in metrics
            ),
        }
    )
    _check_ranges(config.get("ParameterRanges", {}), definition.get("StaticHyperParameters", {}))
    _check_strategy(request, config)
    _check_limits(config)


def _check_rehearsable(request: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    ranges = config.get("ParameterRanges", {})
    bounds = [*ranges.get("IntegerParameterRanges", []), *ranges.get("ContinuousParameterRanges", [])]
    limits = {
        "no Autotune.": "Autotune" in request or "AutoParameters" in ranges,
        "one TrainingJobDefinition, with the objective and the ranges beside it.": (
            "TrainingJobDefinitions" in request
            or bool(request.get("TrainingJobDefinition", {}).keys() & {"TuningObjective", "HyperParameterRanges"})
        ),
        "no HyperParameterTuningResourceConfig.": (
            "HyperParameterTuningResourceConfig" in request.get("TrainingJobDefinition", {})
        ),
        "no TuningJobCompletionCriteria.": "TuningJobCompletionCriteria" in config,
        "no MaxRuntimeInSeconds of a tuning job.": "MaxRuntimeInSeconds" in config["ResourceLimits"],
        "no ReverseLogarithmic scaling.": any(each.get("ScalingType") == "ReverseLogarithmic" for each in bounds),
    }
    refuse_first({f"The rehearsal knows {limit}": broken for limit, broken in limits.items()})


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
            raise Refused("ValidationException", f"The bounds of {each['Name']} are to be whole numbers.")
        _check_bounds(each)
    for each in ranges.get("ContinuousParameterRanges", []):
        _check_bounds(each)


def _check_bounds(bounds: Mapping[str, str]) -> None:
    name = bounds["Name"]
    try:
        low, high = float(bounds["MinValue"]), float(bounds["MaxValue"])
    except ValueError:
        raise Refused("ValidationException", f"The bounds of {name} are to be numbers.") from None
    refuse_first(
        {
            f"The bounds of {name} are to be finite.": not (math.isfinite(low) and math.isfinite(high)),
            f"MinValue of {name} is to be less than its MaxValue.": low >= high,
            f"Logarithmic scaling of {name} needs bounds greater than 0.": (
                bounds.get("ScalingType") == "Logarithmic" and low <= 0
            ),
        }
    )


def _check_strategy(request: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    strategy, ranges = config["Strategy"], config["ParameterRanges"]
    grid, hyperband = strategy == "Grid", strategy == "Hyperband"
    jobs = config["ResourceLimits"].get("MaxNumberOfTrainingJobs")
    most = most_epochs(request)
    least = config.get("StrategyConfig", {}).get("HyperbandStrategyConfig", {}).get("MinResource", 1)
    cells = combinations(ranges)
    refuse_first(
        {
            "The Grid strategy takes categorical ranges only.": grid
            and any(ranges.get(f"{kind}ParameterRanges") for kind in ("Integer", "Continuous")),
            f"MaxNumberOfTrainingJobs of a Grid is the number of its combinations, {cells}, or is left out.": (
                grid and jobs not in (None, cells)
            ),
            "MaxNumberOfTrainingJobs is required.": not grid and jobs is None,
            "StrategyConfig is for the Hyperband strategy only.": not hyperband and "StrategyConfig" in config,
            "The Hyperband strategy needs TrainingJobEarlyStoppingType Off.": (
                hyperband and config.get("TrainingJobEarlyStoppingType", "Off") != "Off"
            ),
            "The Hyperband strategy needs a MaxResource.": hyperband and most is None,
            f"MaxResource is to be {_MOST_EPOCHS} at most, and at least MinResource ({least}).": (
                hyperband and most is not None and not least <= most <= _MOST_EPOCHS
            ),
        }
    )


def _check_limits(config: Mapping[str, Any]) -> None:
    asked = {"MaxNumberOfTrainingJobs": combinations(config["ParameterRanges"]), **config["ResourceLimits"]}
    for name, most in _MOST_JOBS.items():
        if asked[name] > most:
            raise Refused("ResourceLimitExceeded", f"{name} is {asked[name]}, and the limit of this account is {most}.")


def check_warm_start(request: Mapping[str, Any], parents: list[Mapping[str, Any]]) -> None:
    """Refuse parents that a tuning job cannot go on from.

    Args:
        request: the body.
        parents: ``HyperParameterTuningJobConfig``, ``TrainingJobDefinition`` and status of each, as described.

    Raises:
        Refused: the rule that is broken.
    """
    for parent in parents:
        name = parent["HyperParameterTuningJobName"]
        refuse_first(
            {
                f"The parent tuning job {name} has not ended.": parent["HyperParameterTuningJobStatus"]
                in ("InProgress", "Stopping"),
                f"The parent tuning job {name} has another objective metric.": _objective(parent)
                != _objective(request),
                f"The parent tuning job {name} has {_hyperparameters(parent)} static and tuned hyperparameters, not "
                f"{_hyperparameters(request)}.": _hyperparameters(parent) != _hyperparameters(request),
            }
        )


def _objective(request: Mapping[str, Any]) -> dict[str, str]:
    objective: dict[str, str] = request["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"]
    return objective


def _hyperparameters(request: Mapping[str, Any]) -> int:
    ranges = request["HyperParameterTuningJobConfig"]["ParameterRanges"]
    static = request["TrainingJobDefinition"].get("StaticHyperParameters", {})
    return len(static) + sum(map(len, ranges.values()))
