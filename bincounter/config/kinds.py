"""Which option of a group settings are of, said by themselves."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from bincounter.config.choices import one_of
from bincounter.errors import ConfigError


def check_kind(group: str, settings: Mapping[str, Any], schemas: Mapping[str, type]) -> None:
    """Refuse a ``kind`` that was set apart from what it stands for.

    Args:
        group: of the settings, such as ``debugger``.
        settings: as plain containers.
        schemas: of the group's options, by their names.

    Raises:
        ConfigError: another option's settings are there.
    """
    kind = settings["kind"]
    one_of(f"{group}.kind", kind, schemas)
    if set(settings) != {each.name for each in fields(schemas[kind])}:
        raise ConfigError(f"{group}.kind={kind} follows from {group}={kind}: write that instead")
