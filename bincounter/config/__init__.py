"""Configuration: schemas with bounds, rules between settings, messages for wrong overrides."""

from bincounter.config.checks import METRICS, metric_mode
from bincounter.config.train_schema import register
from bincounter.config.validate import validate

__all__ = ["METRICS", "metric_mode", "register", "validate"]
