"""The scores by name, and which way each of them is better."""

from bincounter.config.choices import one_of

METRICS = {
    "accuracy": "max",
    "rmse": "min",
    "mae": "min",
    "within_one": "max",
    "macro_f1": "max",
    "ece": "min",
    "cross_entropy": "min",
}


def mode_of(metric: str, key: str = "optimized_metric") -> str:
    """``max`` or ``min``: the better direction of a logged metric such as ``val/accuracy``.

    Raises:
        ConfigError: when no run logs a metric of that name.
    """
    one_of(key, metric, [f"val/{name}" for name in METRICS])
    return METRICS[metric.removeprefix("val/")]
