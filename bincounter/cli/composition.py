"""Composition of configurations as ``hydra.main`` does it, outside of a Hydra app."""

import functools
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.config_loader import ConfigLoader
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from bincounter.cli.hydra_internals import ROOTS, conf_dir, hydra_loader, parse_overrides, prepare_hydra
from bincounter.config.overrides import (
    Groups,
    check_overrides,
    choices_of,
    compose_groups,
    explain_override_error,
    list_options,
    read_groups,
    setting_hints,
)
from bincounter.config.quoting import keep_text, override_of, schema_hint
from bincounter.errors import ConfigError
from bincounter.files import expand_user

_composed: dict[Any, DictConfig | None] = {}
"""Settings that keys can name, by composer, folder, choices, and the files with their times."""


@dataclass(frozen=True)
class Composer:
    """Composer of configurations outside a Hydra app.

    Attributes:
        command: ``train`` or ``deploy``.
        config_name: the primary file, without its suffix.
        config_dir: a further folder of configuration files.
    """

    command: str
    config_name: str
    config_dir: Path | None = None

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """Compose a configuration.

        Raises:
            HydraException: an override is wrong.
        """
        with self.loader() as loader:
            cfg = loader.load_configuration(self.config_name, list(overrides), RunMode.RUN, from_shell=False)
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg

    def loader(self) -> AbstractContextManager[ConfigLoader]:
        """Initialise Hydra in this block, and return its loader."""
        return hydra_loader(self.config_dir)

    def groups(self, overrides: Sequence[str]) -> Groups:
        """Read the groups' options in all folders of the search path."""
        folders = self._folders(overrides)
        return read_groups(folders, self._primary(folders))

    def _folders(self, overrides: Sequence[str]) -> list[Path]:
        """Return the folders of the search path that are on this machine."""
        folders = [conf_dir(), *([self.config_dir] if self.config_dir else [])]
        searched = OmegaConf.select(self._primary(folders), "hydra.searchpath", default=[])
        for override in overrides:
            if override.startswith("hydra.searchpath="):
                searched = parse_overrides([override])[0].value()
        listed = [searched] if isinstance(searched, str) else searched or []  # Hydra refuses a value that is not a list
        local = [str(each).removeprefix("file://") for each in listed]
        return [*folders, *(Path(each) for each in local if Path(each).is_dir())]

    def _primary(self, folders: Sequence[Path]) -> Any:
        found = [path for folder in folders if (path := folder / f"{self.config_name}.yaml").is_file()]
        return OmegaConf.load(found[0]) if found else OmegaConf.create()

    def keep_text(self, overrides: Sequence[str], *, sweep: bool = False) -> list[str]:
        """Quote values of text settings (:func:`bincounter.config.quoting.keep_text`); expand a sweep's globs."""
        of_settings = setting_hints(ROOTS[self.command], functools.cache(lambda: self._settings(overrides)))

        def hint(key: str) -> Any:
            of_hydra = key.startswith("hydra.")
            return schema_hint(key.removeprefix("hydra."), HydraConf) if of_hydra else of_settings(key)

        kept = [_with_home(override) for override in keep_text(overrides, hint, sweep=sweep)]
        return [list_options(each, self.groups(kept)) if sweep and "=glob(" in each else each for each in kept]

    def _settings(self, overrides: Sequence[str]) -> DictConfig | None:
        """Compose all settings that a key can name; once for the same choices and files, as jobs of a sweep have."""
        folders = self._folders(overrides)
        groups = read_groups(folders, self._primary(folders))
        choices = choices_of(overrides, groups)
        files = [path for folder in folders for path in folder.rglob("*.yaml") if path.is_file()]
        key = (self, Path.cwd(), tuple(choices), tuple((path, path.stat().st_mtime_ns) for path in files))
        if key not in _composed:
            _composed[key] = compose_groups(choices, self)
        return _composed[key]

    def explain(self, error: Exception, overrides: list[str]) -> str:
        """Return one line about the override that made Hydra raise ``error``."""
        return explain_override_error(error, overrides, self.groups(overrides), self, self.command)


def _with_home(override: str) -> str:
    """Expand ``~`` in Hydra's search path, which it reads before it composes."""
    key, _, text = override.partition("=")
    folders = parse_overrides([override])[0].value() if key == "hydra.searchpath" and "~" in text else None
    return override_of(key, [expand_user(str(each)) for each in folders]) if isinstance(folders, list) else override


def compose(
    overrides: Sequence[str], *, config_name: str = "train", config_dir: Path | None = None, internal: bool = True
) -> DictConfig:
    """Compose a configuration, for commands that are not Hydra apps.

    Args:
        overrides: as on a command line.
        config_name: the primary file in ``conf``, without its suffix.
        config_dir: a further folder of configuration files.
        internal: accept internal options.

    Raises:
        ConfigError: an override is wrong.
    """
    prepare_hydra()
    composer = Composer(config_name, config_name, checked_folder(config_dir))
    kept = list(overrides)
    try:
        kept = composer.keep_text(overrides)
        check_overrides(kept, composer.groups(kept), internal=internal)
        return composer(kept)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(composer.explain(error, kept)) from None


def checked_folder(config_dir: str | Path | None) -> Path | None:
    """Check the folder of ``--config-dir``, append it to ``sys.path``, and return it.

    Raises:
        ConfigError: it does not exist.
    """
    if config_dir is None:
        return None
    folder = Path(expand_user(str(config_dir)))
    if not folder.is_dir():
        raise ConfigError(f"--config-dir={config_dir} is not a folder: name one that holds groups, such as experiment/")
    if str(folder.resolve()) not in sys.path:
        sys.path.append(str(folder.resolve()))
    return folder
