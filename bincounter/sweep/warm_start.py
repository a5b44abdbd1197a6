"""Warm start: trials of earlier searches, copied into a study for its sampler."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from bincounter.errors import ConfigError
from bincounter.redaction import mask_secrets
from bincounter.sweep.distributions import to_optuna
from bincounter.sweep.study import WARM_START, objectives, open_storage

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from bincounter.sweep.search_plan import Plan

log = logging.getLogger(__name__)

_ADDED = "warm_start"  # attribute of the study: sources already added


def check_earlier_searches(plan: "Plan") -> None:
    """Check that the earlier searches exist whose folders are given.

    Raises:
        ConfigError: a folder holds no study.
    """
    for source in plan.settings["warm_start"]:
        _database_url(source.partition("#")[0], mask_secrets(source))


def add_earlier_trials(study: "Study", plan: "Plan") -> None:
    """Add the trials of earlier searches to a study, once; call it from one process at a time.

    Raises:
        ConfigError: an earlier search is missing, or has other metrics.
    """
    sources: list[str] = study.user_attrs.get(_ADDED, [])
    for source in plan.settings["warm_start"]:
        shown = mask_secrets(source)
        if shown in sources:
            continue
        before = _open(source, shown)
        if list(objectives(before)) != plan.metrics or before.directions != study.directions:
            raise ConfigError(
                f"hparams_search.warm_start={shown} searched {', '.join(objectives(before)) or 'something else'}, and "
                f"this search {', '.join(plan.metrics)}: remove it"
            )
        added = _add(study, before, shown, to_optuna(plan.parameters))
        sources = [*sources, shown]
        study.set_user_attr(_ADDED, sources)
        log.info("The search starts with %d trials of %s.", added, shown)


def _database_url(place: str, shown: str) -> str:
    """Database URL of an earlier search, given by its folder or its URL."""
    if "://" in place:
        return place
    database = Path(place) / "study.db"
    if not database.is_file():
        raise ConfigError(
            f"hparams_search.warm_start={shown} holds no study.db: name a sweep's folder, or DATABASE_URL#STUDY"
        )
    return f"sqlite:///{database.resolve()}"


def _open(source: str, shown: str) -> "Study":
    import optuna

    place, _, name = source.partition("#")
    storage = open_storage(_database_url(place, shown))
    names = optuna.get_all_study_names(storage)
    if name not in names and (name or len(names) != 1):
        raise ConfigError(
            f"hparams_search.warm_start={shown} names none of the studies in it ({', '.join(names) or 'none'}): write "
            "DATABASE_URL#STUDY"
        )
    return optuna.load_study(study_name=name or names[0], storage=storage)


def _add(study: "Study", before: "Study", shown: str, space: "dict[str, BaseDistribution]") -> int:
    """Add the completed trials that fit the space, unless the study has them; return the number of those that fit."""
    from optuna.trial import TrialState

    known = {trial.user_attrs.get(WARM_START) for trial in study.get_trials(deepcopy=False)}
    fitting = 0
    for trial in before.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        copy = None if WARM_START in trial.user_attrs else _copy(trial, space, f"{shown} trial {trial.number}")
        if copy is not None:
            fitting += 1
            if copy.user_attrs[WARM_START] not in known:  # else added by an earlier, killed start
                study.add_trial(copy)
    return fitting


def _copy(trial: "FrozenTrial", space: "dict[str, BaseDistribution]", mark: str) -> "FrozenTrial | None":
    """Copy a trial into this space; return ``None`` if it has other parameters, or values outside."""
    from optuna.trial import create_trial

    if trial.params.keys() != space.keys():
        return None
    try:
        return create_trial(
            values=trial.values,
            params={name: trial.params[name] for name in space},
            distributions=space,
            user_attrs={WARM_START: mark},
        )
    except (TypeError, ValueError):  # create_trial checks every value
        return None
