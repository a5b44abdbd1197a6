"""Overrides by the key they set."""

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser

HERE = ("launcher", "dry_run", "hparams_search")
"""Keys that say where and what for a run is carried out, not what it is."""


def without(overrides: Sequence[str], *keys: str) -> list[str]:
    """Overrides but those of ``keys`` and of what lies below them."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [
        override.input_line
        for override in parsed
        if override.input_line
        and not any(f"{override.key_or_group.replace('/', '.')}.".startswith(f"{key}.") for key in keys)
    ]
