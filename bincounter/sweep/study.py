"""The Optuna study of a search: where it is stored, and that it is the same search that goes on."""

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bincounter.errors import BinCounterError, ConfigError, ResourceError
from bincounter.training.secrets import masked

if TYPE_CHECKING:
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.storages import BaseStorage

    from bincounter.sweep.plan import Plan

log = logging.getLogger(__name__)

OWNER = "owner"  # attributes of trials
WARM_START = "warm_start"
_SEARCH = "search"  # attributes of studies
_OBJECTIVES = "objectives"
_STORAGE = "BINCOUNTER_STUDY"
"""The storage's URL, for the jobs of a search: it may hold a password, and overrides are written down."""


def storage_url(url: str | None, folder: Path) -> str:
    """The URL that was given, or that of a file in the sweep's folder."""
    return url or f"sqlite:///{(folder / 'study.db').resolve()}"


def hand_to_jobs(url: str) -> None:
    """Let jobs that are started from here find the storage."""
    os.environ[_STORAGE] = url


def storage_of_job() -> str | None:
    """The URL that the sweeper handed to this job, if one did."""
    return os.environ.get(_STORAGE)


def open_storage(url: str) -> "BaseStorage":
    """Open a storage; its tables are made when they are missing.

    Raises:
        BinCounterError: the URL, its driver or the database behind it is missing.
    """
    import optuna
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    quiet()
    shown = masked(url)
    # Processes that share a file wait for each other.
    options: dict[str, Any] = {"connect_args": {"timeout": 120}} if url.startswith("sqlite") else {}
    try:
        return optuna.storages.get_storage(optuna.storages.RDBStorage(url, engine_kwargs=options))
    except ImportError as error:
        raise ConfigError(
            f"hparams_search.storage={shown} needs a driver ({error.__cause__ or error}): install it"
        ) from None
    except (ArgumentError, ValueError):
        raise ConfigError(
            f"hparams_search.storage={shown} is no database URL: write sqlite:///FILE, postgresql://... or mysql://..."
        ) from None
    except RuntimeError as error:
        raise ConfigError(
            f"hparams_search.storage={shown} is of another version of Optuna ({str(error).splitlines()[0]}): "
            "name another database"
        ) from None
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise _unreachable(shown, error) from None


def _unreachable(shown: str, error: BaseException) -> BinCounterError:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    reason = masked(str(getattr(cause, "orig", cause)).splitlines()[0])
    return ResourceError(f"the study at {shown} cannot be opened ({reason}): see that it is there and can be written")


def quiet() -> None:
    """Optuna's own news and its warnings of young features are not for whoever searches."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def open_study(plan: "Plan", storage: "BaseStorage", pruner: "BasePruner") -> "Study":
    """Open or begin the study of a search; to be called by one process at a time.

    Raises:
        ConfigError: another search is under that name.
    """
    import optuna

    names = optuna.get_all_study_names(storage)
    if names and plan.name not in names and plan.settings["storage"] is None:
        before = optuna.load_study(study_name=names[0], storage=storage).user_attrs.get(_SEARCH, plan.identity)
        raise ConfigError(
            f"{plan.folder} holds the search {names[0]}, which has another {_changed(before, plan.identity)}: leave "
            "its command as it was, or name another paths.output_dir"
        )
    study = optuna.create_study(
        storage=storage, study_name=plan.name, directions=plan.directions, pruner=pruner, load_if_exists=True
    )
    before = study.user_attrs.get(_SEARCH)
    if before is None:
        study.set_user_attr(_OBJECTIVES, plan.metrics)
        study.set_user_attr(_SEARCH, dict(plan.identity))
    elif before != dict(plan.identity):
        raise ConfigError(
            f"the search {plan.name} has another {_changed(before, plan.identity)}: leave its command as it was, or "
            "give this one a hparams_search.study_name and a folder of its own"
        )
    return study


def begin_study(plan: "Plan", url: str) -> "Study":
    """Begin the study of a search anew, whatever there was under its name."""
    import optuna

    storage = open_storage(url)
    if plan.name in optuna.get_all_study_names(storage):
        optuna.delete_study(study_name=plan.name, storage=storage)
    return open_study(plan, storage, optuna.pruners.NopPruner())


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    return " and ".join(name for name in now if before.get(name) != now[name]) or "name"


def objectives(study: "Study") -> Sequence[str]:
    """Names of the metrics a study is about."""
    return study.user_attrs.get(_OBJECTIVES, [])
