"""Plan of a search: its space, objectives, name, folder and identity; check of batch sizes."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from bincounter.cloud.sagemaker_launcher import is_rehearsal
from bincounter.config.checks import metric_mode, plain_of
from bincounter.config.launcher_schema import runs_locally
from bincounter.config.overrides import drop_overrides, setting_hints, without_recipe, wrong_value
from bincounter.config.quoting import keep_text, override_of, search_path, shell_command
from bincounter.config.train_schema import ProgressiveConfig, TrainConfig
from bincounter.config.validate import validate
from bincounter.data.s3.address import is_remote
from bincounter.errors import ConfigError, ResourceError, UserError
from bincounter.redaction import mask_argument
from bincounter.sweep.search_space import Interval, Parameter, check_space, read_space
from bincounter.training.resume import FREE

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader

DATA_SET = "data set"
"""Part of a signature: the digest of the photos and labels read on this machine, and their address in a bucket."""
_CHOOSE_PHOTOS = ("data", "experiment", "data.source", "data.layout", "data.layout.ids", "data.corrections")
EPOCHS = "trainer.max_epochs"
_YOUNGER: dict[str, Any] = {
    "data.progressive": asdict(ProgressiveConfig()),
    "data.corrections": None,
    "data.learn_above": 0,
    "data.split.fold": None,
    "model.average_flips": False,
    "model.answer": "mode",
    "objective.squared_error": 0.0,
}
"""Settings that studies of earlier versions lacked, and their defaults."""

Direction = Literal["minimize", "maximize"]
_DIRECTIONS: dict[str, Direction] = {"min": "minimize", "max": "maximize"}


@dataclass(frozen=True)
class Plan:
    """A search.

    Attributes:
        local: its trials run on this machine.
        cfg: configuration shared by the trials, without Hydra's part.
        settings: ``hparams_search``, resolved.
        parameters: the space.
        others: overrides shared by the trials.
        name: name of the study.
        folder: folder of the sweep.
        metrics: names of the objectives.
        directions: ``minimize`` or ``maximize``, one per objective.
        compose: composes the configuration of a trial from the overrides of its values.
        search_path: options of the command line that name folders of configuration files.
        identity: digests by name, which name the study; a search with other ones is not resumed.
    """

    local: bool
    cfg: DictConfig
    settings: Mapping[str, Any]
    parameters: list[Parameter]
    others: list[str]
    name: str
    folder: Path
    metrics: list[str]
    directions: list[Direction]
    identity: Mapping[str, str]
    compose: Callable[[list[str]], DictConfig]
    search_path: Sequence[str] = ()

    @cached_property
    def signature(self) -> Mapping[str, Any]:
        """The identity, and what a resumed search must have in common without being named by it.

        Photos that cannot be read any more do not keep a search that has ended from saying its result again.
        """
        digest = None
        if self.reads_photos:
            with suppress(UserError, ResourceError):
                digest = self.photos[1]
        source = self.cfg.data.source
        address = None if self.chooses_photos or source is None or not is_remote(source) else source.rstrip("/")
        return {
            **self.identity,
            DATA_SET: [digest, address],
            "trainer.max_time": self.cfg.trainer.get("max_time"),
        }

    @property
    def chooses_photos(self) -> bool:
        """Return True if trials differ in their photos, which the space names."""
        return any(parameter.key.lstrip("+") in _CHOOSE_PHOTOS for parameter in self.parameters)

    @property
    def reads_photos(self) -> bool:
        """Return True if the photos of all trials are read on this machine."""
        source = self.cfg.data.source
        return not self.chooses_photos and (self.local or (source is not None and not is_remote(source)))

    @cached_property
    def photos(self) -> tuple[int, str]:
        """Number of training photos and digest of the data set, wherever it is; reads the photos on this machine."""
        from bincounter.training.run import data_module

        data = data_module(self.cfg)
        if self.local:
            data.prepare()  # the trials reuse the result
            return len(data.training), data.manifest.digest
        number = round(len(data.find()) * self.cfg.data.split.fractions[0])
        return number, data.manifest.digest

    @property
    def scored_in_folder(self) -> bool:
        """Return True if objectives are in ``metrics.json``: a job returns only its ``optimized_metric``."""
        return self.metrics != [self.cfg.optimized_metric]

    def check_values(self, values: Mapping[str, Any]) -> None:
        """Check that a run accepts the values of a trial together; each alone was checked with the space.

        Raises:
            ConfigError: it does not.
        """
        try:
            validate(self.compose([override_of(key, value) for key, value in values.items()]))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(wrong_value(error)) from None

    def command(self, values: Mapping[str, Any]) -> str:
        """Return the shell command of a single run with a trial's values."""
        overrides = [*self.others, *(override_of(key, value) for key, value in values.items())]
        overrides = without_recipe(drop_overrides(overrides, "hparams_search", "paths.output_dir", "dry_run"))
        return shell_command("bincounter", "train", *self.search_path, *map(mask_argument, overrides))


def read_plan(config: DictConfig, arguments: list[str], loader: "ConfigLoader") -> Plan:
    """Read and check a search.

    Args:
        config: the composed configuration, Hydra's part included.
        arguments: overrides of the command line, without Hydra's.
        loader: composes configurations.

    Raises:
        ConfigError: a wrong setting, space or objective.
    """
    cfg = _without_hydra(config)
    validate(cfg)
    plain = plain_of(cfg.hparams_search)
    if config.hydra.runtime.choices.get("hydra/launcher") == "basic" and "n_jobs" in plain:
        plain["n_jobs"] = 1  # jobs run one by one: each trial is chosen with all earlier results
    arguments = _with_launcher(config, arguments)
    texts = [f"{key}={text}" for key, text in plain["space"].items()]
    kept = keep_text(texts, setting_hints(TrainConfig, lambda: cfg), sweep=True)
    plain["space"] = {key: text for key, _, text in (each.partition("=") for each in kept)}
    parameters, others = read_space(plain["space"], arguments, cfg)

    def compose(overrides: list[str]) -> DictConfig:
        return _without_hydra(loader.load_sweep_config(config, [*others, *overrides]))

    check_space(parameters, compose)
    _check_search_file(others, cfg, config, loader)
    if "pruner" in plain:
        plain["pruner"] = _with_epochs(plain["pruner"], parameters, cfg)
    metrics: list[str] = plain.get("metrics") or [cfg.optimized_metric]
    directions = [_DIRECTIONS[metric_mode(metric)] for metric in metrics]
    identity = {
        **_identity(cfg, parameters, list(zip(metrics, directions, strict=True))),
        "chooser": _chooser(plain, cfg),
    }
    task = re.sub(r"[^A-Za-z0-9._-]+", "-", config.hydra.job.name).strip("-.") or "search"  # also names a folder
    name = plain["study_name"] or f"{task}-{_digest(identity)}"
    return Plan(
        local=runs_locally(cfg.launcher),
        cfg=cfg,
        settings=plain,
        parameters=parameters,
        others=others,
        name=name,
        folder=_folder(config, name),
        metrics=metrics,
        directions=directions,
        identity=identity,
        compose=compose,
        search_path=search_path(config.hydra),
    )


def _with_launcher(config: DictConfig, arguments: list[str]) -> list[str]:
    """Add the launcher to the overrides: a file of hparams_search may have chosen it."""
    chosen = config.hydra.runtime.choices.launcher
    given = any(each.partition("=")[0] == "launcher" for each in arguments)
    return arguments if given or chosen == "local" else [*arguments, f"launcher={chosen}"]


def _without_hydra(config: DictConfig) -> DictConfig:
    cfg = config.copy()
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def _check_search_file(others: list[str], cfg: DictConfig, config: DictConfig, loader: "ConfigLoader") -> None:
    """Check that a file of hparams_search sets nothing else: the printed command would not repeat the trial."""
    # Unresolved: the default output folder depends on the time.
    full, bare = (
        OmegaConf.to_container(each, resolve=False)
        for each in (cfg, _without_hydra(loader.load_sweep_config(config, drop_overrides(others, "hparams_search"))))
    )
    assert isinstance(full, dict)
    assert isinstance(bare, dict)
    for key in full:
        if key != "hparams_search" and full[key] != bare[key]:
            raise ConfigError(
                f"hparams_search sets {key!s} too, which the command of the best trial would lack: move it to a file "
                "under conf/experiment"
            )


def _with_epochs(
    pruner: Mapping[str, Any] | None, parameters: list[Parameter], cfg: DictConfig
) -> Mapping[str, Any] | None:
    """Return the pruner's settings, with the longest trial's epochs for a ``max_resource`` in epochs."""
    if not pruner:
        return None
    raw: Mapping[str, Any] = OmegaConf.to_container(cfg.hparams_search.pruner, resolve=False)  # type: ignore[assignment]
    if raw.get("max_resource") != f"${{{EPOCHS}}}":
        return pruner
    return {**pruner, "max_resource": most_epochs(parameters, cfg)}


def most_epochs(parameters: list[Parameter], cfg: DictConfig) -> int:
    """Return the number of epochs of the longest trial."""
    for parameter in parameters:
        if parameter.key == EPOCHS:
            return int(parameter.high if isinstance(parameter, Interval) else max(parameter.values))
    return int(cfg.trainer.max_epochs)


def _chooser(settings: Mapping[str, Any], cfg: DictConfig) -> str:
    """Name of the optimiser; a rehearsal's tuner is not SageMaker's."""
    if "strategy" not in settings:
        return "optuna"
    return f"{settings['strategy']} of {'a rehearsal' if is_rehearsal(cfg.launcher) else 'SageMaker'}"


def _identity(cfg: DictConfig, parameters: list[Parameter], objectives: list[tuple[str, str]]) -> dict[str, str]:
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=False)  # type: ignore[assignment]
    searched = {parameter.key.lstrip("+") for parameter in parameters}
    # Studies of versions that lacked some settings are resumed.
    younger = [key for key, default in _YOUNGER.items() if OmegaConf.select(cfg, key) == default]
    for key in (*FREE, *searched, *younger):
        _drop(plain, key.replace("/", "."))
    return {
        "configuration": _digest(plain),
        "space": _digest(sorted(repr(parameter) for parameter in parameters)),
        "metrics": _digest(objectives),
    }


def _drop(node: Any, key: str) -> None:
    name, _, rest = key.partition(".")
    if isinstance(node, dict) and name in node:
        if rest:
            _drop(node[name], rest)
        else:
            del node[name]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _folder(config: DictConfig, name: str) -> Path:
    """Return the configured folder, or one named after the study if the configured one contains the time."""
    written = str(OmegaConf.to_container(config.hydra.sweep, resolve=False)["dir"])  # type: ignore[index,call-overload]
    if written == "${paths.output_dir}":
        written = str(OmegaConf.to_container(config.paths, resolve=False)["output_dir"])  # type: ignore[index,call-overload]
    if "${now:" not in written:
        return Path(config.hydra.sweep.dir)
    return Path(config.paths.log_dir, "sweeps", name)


def check_batch_sizes(plan: Plan) -> None:
    """Check that batch sizes do not exceed the number of training photos: such trials would all be equal.

    Raises:
        ConfigError: the largest batch size exceeds the number of photos.
        DataError: the photos cannot be read.
    """
    parameter = next((parameter for parameter in plan.parameters if parameter.key == "data.batch_size"), None)
    source = plan.cfg.data.source
    if parameter is None or not (plan.local or source is None or not is_remote(source)):  # only a job reads them
        return
    largest = parameter.high if isinstance(parameter, Interval) else max(parameter.values)
    photos, _ = plan.photos
    if largest > photos:
        fitting = [str(2**power) for power in range(10) if 2**power <= max(photos // 2, 1)][-3:]
        raise ConfigError(
            f"data.batch_size={largest:g} is larger than the {photos} training photos: search smaller ones, as in "
            f"data.batch_size={','.join(fitting)}"
        )
