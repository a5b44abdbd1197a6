"""Storage, study, sampler and pruner of a search.

The sampler of each trial is seeded from (seed, trial number): a resumed search proposes the values of an uninterrupted
one, and processes that share a study propose different values. Optuna's samplers keep their state in the study. Grid
and QMC samplers share one sequence between all trials, and one seed.
"""

import inspect
import itertools
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bincounter.config.checks import import_target
from bincounter.errors import ConfigError, ResourceError, first_line
from bincounter.redaction import mask_secrets
from bincounter.sweep.distributions import to_optuna
from bincounter.sweep.search_plan import DATA_SET
from bincounter.sweep.search_space import Choice, Interval, Space

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

    from bincounter.sweep.search_plan import Plan

log = logging.getLogger(__name__)

OWNER = "owner"  # attributes of trials
WARM_START = "warm_start"
_SEARCH = "search"  # attributes of studies
_OBJECTIVES = "objectives"
_EXHAUSTED = "exhausted"
_STORAGE = "BINCOUNTER_STUDY"
"""Environment variable with the storage's URL for jobs: it may hold a password, and overrides are logged."""


def storage_url(url: str | None, folder: Path) -> str:
    """Return ``url``, or by default that of ``study.db`` in the sweep's folder."""
    return url or f"sqlite:///{(folder / 'study.db').resolve()}"


def export_storage_url(url: str) -> None:
    """Export the storage's URL to jobs started by this process."""
    os.environ[_STORAGE] = url


def exported_storage_url() -> str | None:
    """Return the storage's URL exported by the sweeper, or ``None``."""
    return os.environ.get(_STORAGE)


def open_storage(url: str) -> "BaseStorage":
    """Open a storage and create its tables if they are missing.

    Raises:
        ConfigError: the URL is wrong, its driver is missing, or its tables are of another version of Optuna.
        ResourceError: the database cannot be reached.
    """
    import optuna
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    silence_optuna()
    shown = mask_secrets(url)
    # Seconds to wait for another process that writes to the same file.
    options: dict[str, Any] = {"connect_args": {"timeout": 120}} if url.startswith("sqlite") else {}
    try:
        return optuna.storages.get_storage(optuna.storages.RDBStorage(url, engine_kwargs=options))
    except ImportError as error:
        raise ConfigError(
            f"hparams_search.storage={shown} needs a driver ({error.__cause__ or error}): install it"
        ) from None
    except (ArgumentError, ValueError):
        raise ConfigError(
            f"hparams_search.storage={shown} is not a database URL: write sqlite:///FILE, postgresql://... or mysql://..."
        ) from None
    except RuntimeError as error:
        raise ConfigError(
            f"hparams_search.storage={shown} was written by another version of Optuna ({first_line(error)}): "
            "name another database"
        ) from None
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise ResourceError(
            f"the study at {shown} cannot be opened ({_cause(error)}): check that it exists and is writable"
        ) from None


@contextmanager
def translate_storage_errors(url: str) -> Iterator[None]:
    """Translate the errors of an open storage, such as a full disk or a lost connection.

    Raises:
        ResourceError: the study cannot be read or written.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise ResourceError(
            f"the study at {mask_secrets(url)} cannot be read or written ({_cause(error)}): free some space, or bring "
            "its database back, then repeat the command to resume the search"
        ) from None


def _cause(error: BaseException) -> str:
    """Return the database's own message, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return mask_secrets(first_line(getattr(error, "orig", error)))


def silence_optuna() -> None:
    """Silence Optuna's log and its warnings of experimental features."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def open_study(plan: "Plan", storage: "BaseStorage", pruner: "BasePruner") -> "Study":
    """Open or create the study of a search; call it from one process at a time.

    Raises:
        ConfigError: the storage holds another search, under this name or in this folder.
    """
    import optuna

    names = optuna.get_all_study_names(storage)
    if names and plan.name not in names and plan.settings["storage"] is None:
        before = optuna.load_study(study_name=names[0], storage=storage).user_attrs.get(_SEARCH, plan.identity)
        raise ConfigError(
            f"{plan.folder} holds the search {names[0]}, which has another {_changed(before, plan.identity)}: "
            "repeat its command unchanged, or set another paths.output_dir"
        )
    study = optuna.create_study(
        storage=storage, study_name=plan.name, directions=plan.directions, pruner=pruner, load_if_exists=True
    )
    before = study.user_attrs.get(_SEARCH)
    if before is None:
        study.set_user_attr(_OBJECTIVES, plan.metrics)
    elif changed_parts(before, plan.signature):
        raise ConfigError(
            f"the search {plan.name} has another {_changed(before, plan.signature)}: repeat its command unchanged, or "
            "set another hparams_search.study_name and paths.output_dir"
        )
    if before is None or not plan.signature.keys() <= before.keys():  # an earlier version stored fewer
        study.set_user_attr(_SEARCH, {**plan.signature, **(before or {})})
    return study


def recreate_study(plan: "Plan", url: str) -> "Study":
    """Create the study of a search in place of an older one of the same name."""
    import optuna

    storage = open_storage(url)
    if plan.name in optuna.get_all_study_names(storage):
        optuna.delete_study(study_name=plan.name, storage=storage)
    return open_study(plan, storage, optuna.pruners.NopPruner())


def changed_parts(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the names of what differs between two signatures, but for what an earlier version did not store."""
    return [name for name in now if name in before and not _agree(name, before[name], now[name])]


def _agree(name: str, before: Any, now: Any) -> bool:
    if name == DATA_SET:  # compared by its digest if both have one, else by its address
        (digest, address), (digest_now, address_now) = before, now
        return digest == digest_now if digest and digest_now else address == address_now
    return before == now


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return " and ".join(changed_parts(before, now)) or "name"


def objectives(study: "Study") -> Sequence[str]:
    """Return the names of a study's objectives."""
    return study.user_attrs.get(_OBJECTIVES, [])


def reopen_trial(study: "Study", running: "FrozenTrial") -> "Trial":
    """Return a running trial of another process, to report values and to finish it."""
    import optuna

    return optuna.Trial(study, running._trial_id)  # there is no public method


def suggest(trial: "Trial", space: "Mapping[str, BaseDistribution]") -> None:
    """Choose the missing values of a trial; present ones stay."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    for name, each in space.items():
        if isinstance(each, CategoricalDistribution):
            trial.suggest_categorical(name, each.choices)
        elif isinstance(each, IntDistribution):
            trial.suggest_int(name, each.low, each.high, step=each.step, log=each.log)
        else:
            assert isinstance(each, FloatDistribution)
            trial.suggest_float(name, each.low, each.high, step=each.step, log=each.log)


def note_exhaustion(study: "Study") -> None:
    """Record in the study when its sampler has proposed every value.

    Samplers of a finite list then call ``study.stop()``, which outside of ``study.optimize`` raises an error.
    """
    study.stop = lambda: study.set_user_attr(_EXHAUSTED, True)  # type: ignore[method-assign]


def is_exhausted(study: "Study") -> bool:
    """Return True if the sampler has proposed every value."""
    return bool(study.user_attrs.get(_EXHAUSTED))


_SAMPLER, _PRUNER = "hparams_search.sampler", "hparams_search.pruner"


class SamplerFactory:
    """Factory of the sampler of each trial.

    Args:
        node: ``_target_`` of an Optuna sampler, with its arguments.
        parameters: the space.
        objectives: number of objectives.

    Attributes:
        most: number of values of a grid, else ``None``.

    Raises:
        ConfigError: the sampler is unknown, or cannot search this space.
    """

    def __init__(self, node: Mapping[str, Any], parameters: Space, objectives: int) -> None:
        from optuna.samplers import BaseSampler, CmaEsSampler, GridSampler, QMCSampler

        self._type = import_target(_SAMPLER, node["_target_"])
        if not (inspect.isclass(self._type) and issubclass(self._type, BaseSampler)):
            raise ConfigError(f"{_SAMPLER}._target_={node['_target_']} is not a sampler of Optuna: see optuna.samplers")
        self._node = dict(node)
        self._one_sequence = issubclass(self._type, (GridSampler, QMCSampler))
        self._draws_until_one_completes = issubclass(self._type, QMCSampler)
        self.most: int | None = None
        if issubclass(self._type, GridSampler):
            grid = {each.key: _grid_values(each, to_optuna([each])[each.key]) for each in parameters}
            self._node["search_space"] = grid
            self.most = math.prod(map(len, grid.values()))
        if issubclass(self._type, CmaEsSampler):
            self._configure_cmaes(parameters, objectives)
        if "seed" in inspect.signature(self._type).parameters:
            self._node.setdefault("seed", 0)
        self.sampler_for(0)  # check the arguments

    def total(self, asked: int) -> int:
        """Return the number of trials: ``asked``, or the size of a smaller grid."""
        return asked if self.most is None else min(asked, self.most)

    def _configure_cmaes(self, parameters: Space, objectives: int) -> None:
        if objectives > 1:
            raise ConfigError(f"{_SAMPLER}=cmaes searches one metric: use nsgaii or tpe for several")
        drawn = [parameter.key for parameter in parameters if isinstance(parameter, Choice)]
        self._node.setdefault("warn_independent_sampling", False)  # instead of the warning below, once per trial
        if drawn:
            log.warning("CMA-ES searches numbers: %s are drawn at random.", ", ".join(drawn))

    def sampler_for(self, number: int) -> "BaseSampler":
        """Return the sampler of trial ``number``."""
        node = self._node
        if node.get("seed") is None:
            return _instantiate(_SAMPLER, node)
        import numpy as np
        from optuna.samplers import RandomSampler

        seed = int(np.random.SeedSequence([int(node["seed"]), number]).generate_state(1)[0])
        if self._draws_until_one_completes:
            node = {"independent_sampler": RandomSampler(seed), **node}
        elif not self._one_sequence:
            node = {**node, "seed": seed}
        return _instantiate(_SAMPLER, node)


def _grid_values(parameter: Interval | Choice, distribution: "BaseDistribution") -> list[Any]:
    """Return every value of a parameter, as stored in the study."""
    if isinstance(parameter, Choice):
        return list(distribution.choices)  # type: ignore[attr-defined]
    values = parameter.values()
    if values is None:
        raise ConfigError(
            f"{_SAMPLER}=grid tries every value, and {parameter.key} is a continuous interval: list values, as in "
            f"{parameter.key}=choice({parameter.low:g},{parameter.high:g})"
        )
    return list(itertools.islice(values, 100_000))


def make_pruner(node: Mapping[str, Any] | None) -> "BasePruner":
    """Return the pruner of a study; by default one that never prunes.

    Raises:
        ConfigError: the pruner is unknown.
    """
    from optuna.pruners import BasePruner, NopPruner

    if not node:
        return NopPruner()
    kind = import_target(_PRUNER, node["_target_"])
    if not (inspect.isclass(kind) and issubclass(kind, BasePruner)):
        raise ConfigError(f"{_PRUNER}._target_={node['_target_']} is not a pruner of Optuna: see optuna.pruners")
    return _instantiate(_PRUNER, node)


def _instantiate(key: str, node: Mapping[str, Any]) -> Any:
    from hydra.errors import HydraException
    from hydra.utils import instantiate

    try:
        return instantiate(dict(node), _convert_="all")
    except HydraException as error:
        reason = first_line(error.__cause__ or error)
        target = node["_target_"]
        raise ConfigError(f"{key} cannot be created ({reason}): correct its arguments, see {target}") from None
