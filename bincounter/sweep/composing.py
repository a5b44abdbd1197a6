"""A trial's configuration, composed from what all trials have in common wherever that comes to the same.

Hydra reads every file, and decides which, for each job anew; that takes longer than all that the study is asked.
Trials that differ in values alone, in no group's choice, read the same files: these are composed once.
"""

import copy
from collections.abc import Sequence

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf


class TrialLoader(ConfigLoaderImpl):
    """Composes what Hydra's own loader would.

    Args:
        loader: Hydra's own.
        common: the overrides that every trial begins with.
    """

    def __init__(self, loader: ConfigLoader, common: Sequence[str]) -> None:
        super().__init__(loader.get_search_path())
        self._common = list(common)
        self._begun: tuple[DictConfig, list[Override]] | None = None
        self._groups: dict[str, bool] = {}

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Compose one trial.

        Args:
            master_config: of the search.
            sweep_overrides: of the trial.

        Raises:
            HydraException: they do not fit the configuration.
        """
        own = OverridesParser.create().parse_overrides(sweep_overrides[len(self._common) :])
        if sweep_overrides[: len(self._common)] != self._common or any(map(self._chooses, own)):
            return super().load_sweep_config(master_config, sweep_overrides)
        begun, before = self._begin(master_config)
        self.validate_sweep_overrides_legal(own, RunMode.RUN, from_shell=True)
        cfg = copy.deepcopy(begun)
        self._apply_overrides_to_config(own, cfg)
        for each in own:
            told = cfg.hydra.overrides.hydra if each.is_hydra_override() else cfg.hydra.overrides.task
            told.append(each.input_line)
        naming = cfg.hydra.job.config.override_dirname
        cfg.hydra.job.override_dirname = get_overrides_dirname(
            [each for each in (*before, *own) if not each.is_hydra_override()],
            exclude_keys=naming.exclude_keys,
            item_sep=naming.item_sep,
            kv_sep=naming.kv_sep,
        )
        OmegaConf.copy_cache(from_config=master_config, to_config=cfg)
        return cfg

    def _chooses(self, override: Override) -> bool:
        """Whether an override may decide which files are read."""
        key = override.key_or_group
        if key not in self._groups:
            self._groups[key] = self.repository.group_exists(key) or key == "hydra.searchpath"
        return self._groups[key]

    def _begin(self, master_config: DictConfig) -> tuple[DictConfig, list[Override]]:
        if self._begun is None:
            cfg = super().load_sweep_config(master_config, self._common)
            self._begun = cfg, OverridesParser.create().parse_overrides(self._common)
        return self._begun
