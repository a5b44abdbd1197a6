"""Hydra's private parts: the loader, the parsers and the methods that bincounter changes; used in this module alone."""

import argparse
import copy
import functools
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra import version
from hydra._internal import hydra as hydra_internal
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins import basic_launcher, basic_sweeper
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core import utils as hydra_utils
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

import bincounter
from bincounter.config import deploy_schema
from bincounter.config.checks import expand_home, mode_of
from bincounter.config.quoting import keep_yaml_text, schema_hint
from bincounter.config.train_schema import TrainConfig, register
from bincounter.files import expand_user
from bincounter.redaction import mask_argument, mask_secrets

offered: dict[str, Sequence[str]] = {}
"""Groups of the running command that a user can choose among, with their options."""
composed: dict[tuple[str, ...], DictConfig] = {}
"""Configuration from which the mode of the running command was read, by its name and overrides."""
made_folders: list[Path] = []
"""Folders that Hydra makes for the running job: the job's folder if it is new, and its new parents."""

ROOTS = {"train": TrainConfig, "deploy": deploy_schema.DeployConfig}


def conf_dir() -> Path:
    """Folder of Hydra's groups: inside an installed package, beside the package in a checkout."""
    package = Path(bincounter.__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


@contextmanager
def hydra_loader(config_dir: Path | None) -> Iterator[ConfigLoader]:
    """Initialise Hydra with ``conf`` and a further folder in this block, and return its loader."""
    path = create_config_search_path(str(conf_dir()))
    if config_dir is not None:
        path.prepend("command-line", f"file://{config_dir.resolve()}", SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()
    version.setbase("1.3")
    try:
        yield Hydra.create_main_hydra2("app", path).config_loader
    finally:
        GlobalHydra.instance().clear()


def read_arguments() -> argparse.Namespace:
    """Parse ``sys.argv`` as Hydra does; overrides are moved behind options: Hydra parses only consecutive ones."""
    for number, (before, word) in enumerate(itertools.pairwise(sys.argv), start=1):
        option, equals, folder = word.rpartition("=")
        if (option if equals else before) in ("--config-dir", "-cd"):
            sys.argv[number] = f"{option}{equals}{expand_user(folder)}"
    arguments, rest = get_args_parser().parse_known_args()
    if rest and not any(word.startswith("-") for word in rest):
        overrides = [*arguments.overrides, *rest]
        sys.argv[1:] = [*(word for word in sys.argv[1:] if word not in overrides), *overrides]
    return get_args_parser().parse_args()


def parse_overrides(overrides: Sequence[str], loader: ConfigLoader | None = None) -> list[Override]:
    """Parse overrides; a loader finds the options of ``glob(...)``."""
    return OverridesParser.create(loader).parse_overrides(list(overrides))


def split_jobs(overrides: Sequence[Override]) -> list[list[str]]:
    """Overrides of each job of a sweep over listed values."""
    return [list(job) for job in BasicSweeper.split_arguments(list(overrides), max_batch_size=None)[0]]


def first_job(overrides: Sequence[Override]) -> list[str]:
    """Overrides of a sweep with the first value of each list, and the start of each interval."""
    return [
        f"{each.get_key_element()}={_first_value(each)}" if each.is_sweep_override() else str(each.input_line)
        for each in overrides
    ]


def _first_value(override: Override) -> str:
    if override.is_interval_sweep():
        return f"{override.value().start:g}"  # type: ignore[union-attr]
    return next(override.sweep_string_iterator())


def prepare_hydra(*, multirun: bool = False) -> None:
    """Register schemas and resolvers with Hydra.

    Args:
        multirun: give each job a folder of its own; a single run keeps the run's folder, even if a launcher
            makes it a multirun of one job.
    """
    _change_hydra()
    OmegaConf.register_new_resolver("mode_of", mode_of, replace=True)
    OmegaConf.register_new_resolver("file_name", lambda text: str(text).replace("/", "-")[:100], replace=True)
    OmegaConf.register_new_resolver("job_folder", lambda number: str(number) if multirun else ".", replace=True)


def _changed(owner: type, name: str) -> Callable[[Callable[..., Any]], None]:
    """Replace a method of Hydra by a function whose first argument is the original method."""

    def replace(function: Callable[..., Any]) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def method(self: Any, *arguments: Any, **options: Any) -> Any:
            return function(original, self, *arguments, **options)

        setattr(owner, name, method)

    return replace


@_changed(Hydra, "get_mode")
def _run_mode(_: Callable[..., Any], self: Hydra, config_name: str, overrides: list[str], **options: Any) -> Any:
    """Mode of the app: a launcher or a search of bincounter's makes a multirun, since Hydra calls them only there."""
    composed.clear()
    sweeps = any(override.is_sweep_override() for override in parse_overrides(overrides))
    try:
        run_mode = RunMode.MULTIRUN if sweeps else RunMode.RUN
        cfg = self.compose_config(config_name, overrides, run_mode, validate_sweep_overrides=False)
    except (HydraException, OmegaConfBaseException):
        if sweeps:
            return None  # raised again when the app composes, unless values are listed without -m
        raise
    mode = cfg.hydra.mode
    if mode is None and any("bincounter" in cfg.hydra[plugin]._target_ for plugin in ("launcher", "sweeper")):
        # As Hydra does for -m. Hydra 1.4 needs the plug-ins in the configuration of each job, too.
        chosen = [f"{group}={cfg.hydra.runtime.choices[group]}" for group in ("hydra/launcher", "hydra/sweeper")]
        overrides += ["hydra.mode=MULTIRUN", *chosen]
        return RunMode.MULTIRUN
    if mode is None and not sweeps:
        composed[config_name, *overrides, "hydra.mode=RUN"] = cfg
    return mode


@_changed(ConfigLoaderImpl, "load_configuration")
def _load(
    original: Callable[..., DictConfig],
    self: Any,
    config_name: str,
    overrides: list[str],
    *further: Any,
    **options: Any,
) -> DictConfig:
    """Expand ``~`` in each configuration that is composed, for a sweep's jobs, too; compose none twice."""
    cfg = composed.pop((config_name, *overrides), None)
    if cfg is not None:
        cfg.hydra.mode = RunMode.RUN
        cfg.hydra.overrides.hydra.append("hydra.mode=RUN")
        return cfg
    # A sweep composes each job to check it, again to run it, and again for the request to SageMaker.
    before = self.__dict__.setdefault("before", {})
    key = (config_name, tuple(overrides), further, tuple(sorted(options.items())), Path.cwd())
    if key not in before:
        cfg = original(self, config_name, overrides, *further, **options)
        if OmegaConf.get_type(cfg) in ROOTS.values():
            with flag_override(cfg, "readonly", False):
                expand_home(cfg)
                for folder in ("run", "sweep"):
                    expand_home(cfg.hydra[folder], all_paths=True)
        before[key] = cfg
    return copy.deepcopy(before[key])


@_changed(ConfigLoaderImpl, "_apply_overrides_to_config")
def _keep_settings(original: Callable[..., None], overrides: list[Override], cfg: DictConfig) -> None:
    """Keep what was composed with an error, for a message that names the nearest setting."""
    try:
        original(overrides, cfg)
    except HydraException as error:
        with open_dict(cfg):
            cfg.pop("hydra")
        error.composed = cfg  # type: ignore[attr-defined]
        raise


@_changed(ConfigLoaderImpl, "get_group_options")
def _offer_options(
    original: Callable[..., list[str]],
    self: Any,
    group_name: str,
    results_filter: Any = ObjectType.CONFIG,
    **options: Any,
) -> list[str]:
    """Offer what a user can choose in ``--help``, completion and ``glob(...)``."""
    if not offered:  # another Hydra app
        return original(self, group_name, results_filter, **options)
    if group_name.partition("/")[0] == "hydra":  # Hydra's own groups
        return self.repository.get_group_options(group_name, results_filter)
    if results_filter == ObjectType.CONFIG:
        return list(offered.get(group_name, ()))
    inside = f"{group_name}/" if group_name else ""
    return sorted({each.removeprefix(inside).partition("/")[0] for each in offered if each.startswith(inside)})


@functools.cache
def _change_hydra() -> None:
    register()
    deploy_schema.register()
    Plugins.instance()  # it executes the modules of plug-ins again
    # Hydra copies it with each source, once per group; what is loaded from it is copied anyway.
    ConfigStore.__deepcopy__ = lambda self, _: self  # type: ignore[attr-defined]
    _mask_output()
    _changed(basic_sweeper.BasicSweeper, "sweep")(_sweep)
    _changed(SourcesRegistry.instance().resolve("file"), "load_config")(_keep_yaml_text)


def _sweep(original: Callable[..., Any], self: BasicSweeper, arguments: list[str]) -> Any:
    """Sweep over listed values, and print a table of the jobs at the end, even if some of them failed.

    With ``dry_run``, Hydra's folder of the sweep, with multirun.yaml, is a temporary one.
    """
    assert self.config is not None
    if not OmegaConf.select(self.config, "dry_run", default=False):
        return _summarised(original, self, arguments)
    with tempfile.TemporaryDirectory() as folder, read_write(self.config.hydra), open_dict(self.config.hydra):
        self.config.hydra.sweep.dir = folder
        return original(self, arguments)


def _summarised(original: Callable[..., Any], self: BasicSweeper, arguments: list[str]) -> Any:
    from bincounter.sweep.search_results import print_jobs  # imports numpy

    jobs: list[JobReturn] = []
    launcher = self.launcher
    assert launcher is not None
    launch = launcher.launch

    def recorded(*given: Any, **options: Any) -> Sequence[JobReturn]:
        returned = launch(*given, **options)
        jobs.extend(returned)
        return returned

    launcher.launch = recorded  # type: ignore[method-assign]
    try:
        return original(self, arguments)  # raises the first failure
    finally:
        print_jobs(jobs)


def _mask_output() -> None:
    """Mask secrets in the output of Hydra itself for a sweep: jobs, failed jobs, multirun.yaml."""
    original = hydra_utils.run_job

    def shown(overrides: Sequence[str]) -> list[str]:
        return [mask_argument(each) for each in overrides if not each.startswith("hydra.")]

    def run_job(*arguments: Any, **options: Any) -> Any:
        folder = Path(str(OmegaConf.select(options["config"], options["job_dir_key"]))).absolute()
        made_folders[:] = [each for each in (folder, *folder.parents) if not each.exists()]
        returned = original(*arguments, **options)
        returned.overrides = [mask_argument(each) for each in returned.overrides or ()]
        return returned

    hydra_utils.filter_overrides = basic_launcher.filter_overrides = shown
    hydra_utils.run_job = basic_launcher.run_job = hydra_internal.run_job = run_job
    basic_sweeper.OmegaConf = _MaskedOmegaConf  # type: ignore[misc]


class _MaskedOmegaConf(OmegaConf):
    @staticmethod
    def save(config: Any, f: Any, resolve: bool = False) -> None:
        """Save a configuration with its secrets masked."""
        OmegaConf.save(OmegaConf.create(mask_secrets(OmegaConf.to_container(config, resolve=resolve))), f)


_loaded: dict[tuple[str, str, str, int, int], ConfigResult] = {}
"""Files of settings as they were read, by source, name, time and size: a sweep composes them again and again."""


def _keep_yaml_text(original: Callable[..., ConfigResult], self: ConfigSource, config_path: str) -> ConfigResult:
    """Restore the values of a file's text settings as they were typed."""
    path = Path(self.path, f"{config_path.removesuffix('.yaml')}.yaml")
    try:
        status = path.stat()
    except OSError:
        return original(self, config_path)  # raises
    key = (self.provider, self.path, config_path, status.st_mtime_ns, status.st_size)
    if key not in _loaded:
        result = original(self, config_path)
        package = result.header["package"]
        group = config_path.rpartition("/")[0].replace("/", ".")
        prefix = group if package is None else package.replace("_global_", "").replace("_group_", group)
        written = yaml.compose(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        keep_yaml_text(result.config, written, _hint, prefix)
        _loaded[key] = result
    return copy.deepcopy(_loaded[key])


def _hint(key: str) -> Any:
    return next((found for root in ROOTS.values() if (found := schema_hint(key, root)) is not None), None)
