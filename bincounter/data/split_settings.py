"""Checks of the counts and of the settings of a split, for a configuration and for :class:`BinDataModule`."""

from collections.abc import Mapping, Sequence
from typing import Any

from bincounter.errors import ConfigError, check_choice

METHODS = ("grouped", "given", "random")
"""Methods of :func:`bincounter.data.splits.assign_splits`."""

_DEFAULTS: dict[str, Any] = {"method": "grouped", "fractions": (0.8, 0.1, 0.1), "seed": 0, "fold": None}


def complete_split(split: Mapping[str, Any] | None, *, training: bool = True) -> dict[str, Any]:
    """Add the defaults of a split's ``method, fractions, seed, fold``, and check them.

    Args:
        split: settings by name.
        training: require photos to train and to validate on.

    Raises:
        ConfigError: a setting is unknown or out of range, or contradicts another.
    """
    for name in split or {}:
        check_choice("split", name, _DEFAULTS)
    settings = {**_DEFAULTS, **(split or {})}
    settings["fractions"] = tuple(settings["fractions"])
    check_choice("data.split.method", settings["method"], METHODS)
    _check_fractions(list(settings["fractions"]), training=training)
    if settings["fold"] is not None:
        _check_fold(**settings)
    return settings


def check_counts(counts: Sequence[int] | None, *, training: bool = True) -> None:
    """Check the wanted counts.

    Args:
        counts: ``None`` for all.
        training: require two to distinguish.

    Raises:
        ConfigError: there are too few, one is negative, or one is named twice.
    """
    if counts is None:
        return
    key = f"data.counts={list(counts)}"
    if any(count < 0 for count in counts):
        raise ConfigError(f"{key} has a negative count; write what bins can hold, as in [0,1,2,3,4,5]")
    if len(set(counts)) != len(counts):
        raise ConfigError(f"{key} has a count twice: name each once")
    if len(counts) < (2 if training else 1):
        raise ConfigError(f"{key} leaves nothing to distinguish: name two counts or more")


def _check_fractions(fractions: list[float], *, training: bool) -> None:
    key = f"data.split.fractions={fractions}".replace(" ", "")
    if len(fractions) != 3 or any(not 0 <= f <= 1 for f in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(
            f"{key}: write three shares for training, validation and test that add up to 1, as in [0.8,0.1,0.1]"
        )
    if training and (fractions[0] == 0 or fractions[1] == 0):
        raise ConfigError(f"{key} leaves no photos to train or to validate on; only train=false can do without")


def _check_fold(*, method: str, fractions: Sequence[float], seed: int, fold: int) -> None:
    given, share = f"data.split.fold={fold}", fractions[2]
    parts = round(1 / share) if share else 0
    if parts < 2 or abs(parts * share - 1) > 0.02:
        raise ConfigError(
            f"{given} needs a test share of one in so many: set data.split.fractions, as in [0.6,0.2,0.2] for 5 parts"
        )
    if not 0 <= fold < parts:
        raise ConfigError(f"{given} is out of range: a test share of {share:g} makes {parts} parts, 0 to {parts - 1}")
    if method == "given":
        raise ConfigError(f"{given} makes a split of its own: remove data.split.method=given")
