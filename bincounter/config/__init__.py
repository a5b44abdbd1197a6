"""Configuration: schemas with bounds, rules between settings, messages for wrong overrides."""

from bincounter.config.checks import METRICS, mode_of
from bincounter.config.train_schema import register
from bincounter.config.validate import validate

__all__ = ["METRICS", "mode_of", "register", "validate"]
