"""Resuming a run: find its folder, replay its overrides, reject a changed configuration.

The module imports nothing heavy, so that a wrong path is reported at once.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from bincounter.config.checks import PATH
from bincounter.config.overrides import drop_overrides
from bincounter.config.quoting import override_of, shell_command
from bincounter.config.train_schema import DataConfig, ModelConfig
from bincounter.errors import ConfigError, ResourceError, UserError
from bincounter.files import check_mapping, expand_user, lock, read_file, read_json
from bincounter.redaction import MASK, mask_argument

log = logging.getLogger(__name__)

_RESTORE = "restore it, or start a new run"

_RENAMED_TARGETS = {
    "lightning.pytorch.callbacks.EMAWeightAveraging": "bincounter.training.averaging.EMAWeightAveraging",
    "bincounter.cloud.container.cluster.SageMakerEnvironment": "bincounter.cloud.container.SageMakerEnvironment",
}
"""Targets that have moved, by their earlier names; those of backbones and objectives, in checkpoints, stay."""

_GROUPS = {"data": DataConfig, "model": ModelConfig}

# Settings that do not change a run's results. Of the photos the bytes are compared, not their place.
FREE = (
    "paths",
    "data.source",
    "data.sync",
    "launcher",
    "hparams_search",
    "dry_run",
    "logger",
    "tags",
    "task_name",
    "ckpt_path",
    "test",
    "checkpoint",
    "debugger",
    "profiler",
    "trainer.max_time",
    "trainer.log_every_n_steps",
    "trainer.enable_progress_bar",
    "trainer.profiler",
    "callbacks.progress_bar",
    "data.num_workers",
    "data.cache",
)


def expand_resume_overrides(overrides: list[str], compose: Callable[[list[str]], DictConfig]) -> list[str]:
    """Put the overrides of a resumed run in front of those of the command line.

    Args:
        overrides: overrides of the command line.
        compose: composes the configuration of overrides.

    Returns:
        The complete overrides; ``overrides`` unless ``ckpt_path`` is ``last``, ``latest`` or a file to resume from.

    Raises:
        ConfigError: the run to resume is not named, or missing.
    """
    parsed = OverridesParser.create().parse_overrides(overrides)
    given = {override.key_or_group: override for override in parsed}
    for key in given.keys() & {"ckpt_path", "paths.output_dir"}:  # read before the configuration is checked
        if given[key].value() == "":
            PATH.check(key, "")
    wanted = given["ckpt_path"].value() if "ckpt_path" in given else None
    if wanted is None or ("train" in given and given["train"].value() is False):
        return overrides
    if given["ckpt_path"].is_sweep_override():
        raise ConfigError("ckpt_path names several runs: resume one at a time, or score them by adding train=false")
    if wanted == "latest":
        folder = _latest(Path(compose(_without(parsed, "ckpt_path")).paths.log_dir))
    elif wanted != "last":
        folder = _run_of(Path(expand_user(str(wanted))), given)
    elif "paths.output_dir" in given:
        folder = _folder(given["paths.output_dir"])
    else:
        raise ConfigError("ckpt_path=last needs the run's folder: add paths.output_dir=RUN, or use ckpt_path=latest")
    stored = _stored(folder, given)
    if not (folder / "overrides.txt").exists() and given.keys() <= {"ckpt_path", "paths.output_dir"}:
        raise ConfigError(
            f"paths.output_dir={folder} has no run to resume; bincounter train ckpt_path=latest finds the newest"
        )
    now = _without(parsed, "ckpt_path", "paths.output_dir")
    return [*stored, *now, "ckpt_path=last", override_of("paths.output_dir", folder)]


def _folder(override: Override) -> Path:
    return Path(expand_user(str(override.value())))


def _run_of(checkpoint: Path, given: Mapping[str, Override]) -> Path:
    """Return the run's folder of a checkpoint, or of a run's folder; a run is resumed only there."""
    if (checkpoint / "overrides.txt").is_file():
        checkpoint = checkpoint / "checkpoints" / "last.ckpt"
    folder = checkpoint.parent.parent
    elsewhere = "paths.output_dir" in given and _folder(given["paths.output_dir"]) != folder
    if checkpoint.name != "last.ckpt" or not (folder / "overrides.txt").exists() or elsewhere:
        raise ConfigError(
            f"ckpt_path={checkpoint}: a run is resumed in its own folder, by ckpt_path=last paths.output_dir=RUN; to "
            f"start a new run from its weights, use {shell_command(settings={'model.weights': checkpoint})}"
        )
    return folder


def _latest(log_dir: Path) -> Path:
    unfinished = [path.parent for path in log_dir.rglob("config.yaml") if _is_resumable(path.parent)]
    if not unfinished:
        raise ConfigError(
            f"ckpt_path=latest: {log_dir} has no unfinished run (those with debug=... are not resumed so); start one "
            "without ckpt_path"
        )
    return max(unfinished, key=_progress)


def _is_resumable(run: Path) -> bool:
    """Return True if a folder holds an unfinished training run that no process is using.

    Trials of a search, which the search resumes or has pruned, and debug runs are not resumable by themselves.
    """
    if is_debug_run(run):
        return False
    config = stored_config(run) or {}
    if (run / "metrics.json").exists() or not config.get("train") or config.get("hparams_search"):
        return False
    return not is_in_use(run)


def is_in_use(run: Path) -> bool:
    """Return True if a process of this machine holds the lock of a run's folder."""
    path = run / ".lock"
    if not path.exists():
        return False
    with path.open() as file, suppress(ResourceError):  # a file system without locks
        return not lock(file, wait=0, shared=True)
    return False


def _progress(run: Path) -> tuple[bool, float]:
    """Sort key: runs with a checkpoint above those that failed to start, then by time."""
    last = run / "checkpoints" / "last.ckpt"
    return (True, last.stat().st_mtime) if last.exists() else (False, run.stat().st_mtime)


def _stored(folder: Path, given: Mapping[str, Override]) -> list[str]:
    """Return the overrides of the run's start, except those given now and those with a secret."""
    stored = _overrides(folder)
    # A trial is resumed as a run, without its search.
    search = [o.key_or_group for o in stored if re.match(r"hparams_search\b", o.key_or_group)]
    return _without(stored, "ckpt_path", "paths.output_dir", *search, *_replaced(stored, given), *given)


def _overrides(run: Path) -> list[Override]:
    return read_file(run / "overrides.txt", lambda file: _parse_overrides(file.read()), _RESTORE) or []


def _parse_overrides(text: str) -> list[Override]:
    for before, now in _RENAMED_TARGETS.items():
        text = text.replace(before, now)
    return OverridesParser.create().parse_overrides([line for line in text.splitlines() if line and MASK not in line])


def _renamed_targets(node: Any) -> Any:
    """Copy a stored configuration, with the present names of :data:`_RENAMED_TARGETS`."""
    if isinstance(node, Mapping):
        return {key: _renamed_targets(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_renamed_targets(value) for value in node]
    return _RENAMED_TARGETS.get(node, node) if isinstance(node, str) else node


def _replaced(stored: Sequence[Override], given: Mapping[str, Override]) -> list[str]:
    """Return keys of the run's debugger, profiler and loggers that others are given for."""
    before = {override.key_or_group: override.value() for override in stored}
    groups = ("debugger", "profiler", "logger")
    other = {group for group in groups if group in given and given[group].value() != before.get(group)}
    loggers: Any = given["logger"].value() if "logger" in other else []
    kept = tuple(f"logger.{name}." for name in (loggers if isinstance(loggers, list) else [loggers]))
    return [key for key in before if key.partition(".")[0] in other and not key.startswith(kept)]


def _without(overrides: Sequence[Override], *keys: str) -> list[str]:
    """Drop overrides by key; order and repetitions stay, as in ``~a +a=...``."""
    return [o.input_line for o in overrides if o.key_or_group not in keys and o.input_line]


def check_unchanged(
    before: Mapping[str, Any], now: Mapping[str, Any], run: Path, arguments: Sequence[str] = ()
) -> None:
    """Check that a run is resumed with an equivalent configuration.

    Args:
        before: the run's configuration, secrets masked.
        now: the configuration of this command, secrets masked.
        run: the run's folder, for the message.
        arguments: arguments of this command, for the message.

    Raises:
        ConfigError: a setting differs; the message has the first one.
    """
    defaults = flatten({name: OmegaConf.to_container(OmegaConf.structured(schema)) for name, schema in _GROUPS.items()})
    defaults["objective.squared_error"] = 0.0
    # The defaults are for settings that an older version did not have.
    old, new = defaults | flatten(before), defaults | flatten(_renamed_targets(now))
    for key in sorted({*old, *new}):
        if old.get(key) == new.get(key) or any(key == free or key.startswith(f"{free}.") for free in FREE):
            continue
        raise ConfigError(
            f"{key} is {new.get(key, 'absent')} here and {old.get(key, 'absent')} in {run}: a run is resumed with "
            f"its own configuration; drop the override, or {_new_run(run, arguments)}"
        )


def _new_run(run: Path, arguments: Sequence[str]) -> str:
    """Return the advice that starts a new run in place of a resumed one."""
    if "launcher=container" in arguments:  # whose paths do not exist where the job is submitted
        return "leave launcher.checkpoint_uri out (or name another) to start a new run"
    options = [each for each in arguments if each.startswith("--")]
    overrides = drop_overrides(arguments[len(options) :], "ckpt_path", "paths", "model.weights")
    best, last = (run / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    weights = {"model.weights": best if best.exists() else last}
    command = shell_command("bincounter", "train", *options, *map(mask_argument, overrides), settings=weights)
    return f"start a new run from its weights with {command}"


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a nested mapping by their dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def stored_config(run: Path) -> dict[str, Any] | None:
    """Return the configuration in a run's folder; ``None`` if it is missing.

    Raises:
        UserError: the file is corrupt.
    """
    return read_file(
        run / "config.yaml",
        lambda file: _renamed_targets(check_mapping(OmegaConf.to_container(OmegaConf.load(file)) or None)),
        _RESTORE,
    )


def is_debug_run(run: Path) -> bool:
    """Return True for a run with ``debug=...``, fast_dev_run or overfit_batches.

    A run with unreadable files counts as one, with a warning.
    """
    try:
        trainer = check_mapping((stored_config(run) or {}).get("trainer") or {})
        origin = read_json(run / "provenance.json", _RESTORE) or {}
        old = "debug" not in origin and any(
            override.key_or_group == "debug" and override.value() for override in _overrides(run)
        )
    except (UserError, TypeError) as error:
        log.warning("Left out: %s", error)
        return True
    return bool(origin.get("debug") or old or trainer.get("fast_dev_run") or trainer.get("overfit_batches"))
