"""Hydra overrides as SageMaker hyperparameters, and back, without a change of values.

A hyperparameter is a string under a string, in no order. Its key is the override's own, as written before the ``=``
(``model.optimizer.lr``, ``+trainer.profiler``, ``~logger``), so that the console can be read; its value is JSON, or a
bare word that is not JSON. Values from a tuning job have the same form.
"""

import json
import re
from collections.abc import Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from bincounter.config.quoting import hydra_source, json_ready
from bincounter.errors import ConfigError

MAX_KEY_LENGTH = 256
MAX_VALUE_LENGTH = 2500
SPOT_VARIABLE = "BINCOUNTER_SPOT"  # SageMaker's own variables do not show it in the container
MAX_HYPERPARAMETERS = 90
"""CreateTrainingJob accepts 100; the toolkit and tuning jobs need some of them."""

# Prefixes of the toolkit's hyperparameters and of those that a tuning job adds.
_NOT_OURS = ("sagemaker_", "_")
_BARE = re.compile(r"[A-Za-z0-9_./:@%+=,-]+")
# JSON allows these, and the shells and log viewers on the way to the container change them.
_UNSAFE = re.compile(r"[^ -~]|['`$!]")


def encode_overrides(overrides: Sequence[str]) -> dict[str, str]:
    """Write overrides as hyperparameters.

    Args:
        overrides: as on a command line; of several for one key the last one counts.

    Returns:
        Key to text, for CreateTrainingJob.

    Raises:
        ConfigError: a sweep, or more than a training job accepts.
        HydraException: an override that cannot be parsed.
    """
    chosen: dict[str, Override] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.is_sweep_override():
            raise ConfigError(
                f"{override.input_line} is a sweep, which is several jobs: add -m, or quote the value if it is one text"
            )
        _take(chosen, override)
    encoded = {key: _text(override) for key, override in chosen.items()}
    _refuse_too_much(encoded)
    return encoded


def decode_overrides(hyperparameters: Mapping[str, str]) -> list[str]:
    """Read overrides from hyperparameters; those of the toolkit and of a tuning job are skipped.

    Args:
        hyperparameters: key to text, as in ``hyperparameters.json``.

    Returns:
        Overrides, quoted for Hydra's grammar, a node before its members.
    """
    ours = {key: text for key, text in hyperparameters.items() if not key.startswith(_NOT_OURS)}
    return [_override(key, ours[key]) for key in sorted(ours, key=_place)]


def _take(chosen: dict[str, Override], override: Override) -> None:
    """Replace earlier overrides of the same key; a ``+`` of theirs is kept."""
    key = override.get_key_element()
    name = key.lstrip("+~")
    if override.is_delete():
        for earlier in (name, f"+{name}", f"++{name}"):
            chosen.pop(earlier, None)
    else:
        added = next((prefix for prefix in ("++", "+") if chosen.pop(f"{prefix}{name}", None) is not None), "")
        chosen.pop(name, None)
        key = key if key != name else f"{added}{name}"  # it changes a key that an earlier one added
    chosen[key] = override


def _text(override: Override) -> str:
    if override.is_delete() and override.value_type is None:
        return ""
    value = override.value()
    if isinstance(value, str) and _BARE.fullmatch(value) and not _is_json(value):
        return value
    text = json.dumps(json_ready(value), ensure_ascii=True, separators=(",", ":"))
    if "\\u0000" in text:
        raise ConfigError(f"{override.get_key_element()} contains a NUL character: remove it")
    return _UNSAFE.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _refuse_too_much(encoded: Mapping[str, str]) -> None:
    remedy = "put them into an experiment file (conf/experiment), which has no limit"
    if len(encoded) > MAX_HYPERPARAMETERS:
        raise ConfigError(
            f"{len(encoded)} overrides are more than the {MAX_HYPERPARAMETERS} that a training job accepts: {remedy}"
        )
    for key, text in encoded.items():
        if len(key) > MAX_KEY_LENGTH:
            raise ConfigError(f"{key[:40]}... is longer than the {MAX_KEY_LENGTH} characters of a key: {remedy}")
        if len(text) > MAX_VALUE_LENGTH:
            raise ConfigError(
                f"the value of {key} has {len(text)} characters, and a training job accepts {MAX_VALUE_LENGTH}: "
                f"{remedy}"
            )
        if key.startswith(_NOT_OURS):
            raise ConfigError(f"{key} begins like SageMaker's own hyperparameters: write ++{key}, which sets the same")


def _place(key: str) -> tuple[list[str], bool]:
    """Sort key of an override: after those of its parent nodes, and after a deletion of its key."""
    return re.split(r"[./@]", key.lstrip("+~")), not key.startswith("~")


def _override(key: str, text: str) -> str:
    if key.startswith("~") and not text:
        return key
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return f"{key}={hydra_source(value)}"
