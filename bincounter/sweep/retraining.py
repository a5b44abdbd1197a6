"""End of a search: summary, page, and retraining of the best trial."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.plugins.launcher import Launcher

from bincounter.cloud.jobs import JOB_RECORD, move_to_earlier, read_job
from bincounter.errors import ConfigError, ResourceError
from bincounter.files import write_json
from bincounter.sweep.distributions import values_of
from bincounter.sweep.search_plan import Plan
from bincounter.sweep.search_results import Search, best_trials, print_results
from bincounter.sweep.sweep_report import RETRAINED, RETRAINED_TRIAL, write_page
from bincounter.sweep.trial_queue import SweeperLock
from bincounter.sweep.trials import OUTCOME, job_overrides, outcome_of_return, read_outcome

if TYPE_CHECKING:
    from optuna import Study

log = logging.getLogger(__name__)

_PAGE = "sweep.html"


def check_single_objective(plan: Plan) -> None:
    """Check that ``retrain_best`` has a single objective.

    Raises:
        ConfigError: there are several.
    """
    if plan.settings["retrain_best"] and len(plan.metrics) > 1:
        raise ConfigError(
            f"retrain_best=true takes one best trial, and {len(plan.metrics)} metrics have a Pareto front: remove it, "
            "and train the trial you choose by its command"
        )


def retrain_best(plan: Plan, study: "Study", launcher: Launcher, ownership: SweeperLock) -> None:
    """Retrain the best trial, once; a killed run is resumed.

    Raises:
        ResourceError: the run failed.
    """
    best = best_trials(study)
    if not best:
        return
    folder, record = plan.folder / RETRAINED, plan.folder / RETRAINED_TRIAL
    with ownership.exclusive():  # other processes of the search wait, then find the outcome
        repeated = json.loads(record.read_text(encoding="utf-8"))["trial"] if record.exists() else None
        if repeated not in (None, best[0].number):
            log.warning(
                "%s repeats trial %d, and the best is now trial %d: remove it and %s to retrain that one.",
                folder,
                repeated,
                best[0].number,
                record.name,
            )
            return
        earlier = read_outcome(folder)
        if (earlier is not None and earlier.error is None) or (folder / "metrics.json").exists():
            return
        _remove_failure(folder)
        write_json(record, {"trial": best[0].number}, indent=None)
        overrides = job_overrides(
            plan, values_of(best[0].params, plan.parameters), RETRAINED, resuming=repeated is not None
        )
        returned = launcher.launch([overrides], initial_job_idx=plan.settings["n_trials"])[0]
    outcome = read_outcome(folder) or outcome_of_return(returned)
    if outcome.error is not None:
        raise ResourceError(f"the best trial's values could not be retrained: {outcome.error}")
    write_page(plan.folder / _PAGE, study, _facts(plan))  # again, with a link to this run


def _remove_failure(folder: Path) -> None:
    """Remove the record of a failed run, but not of a running or completed job."""
    (folder / OUTCOME).unlink(missing_ok=True)
    if (folder / JOB_RECORD).exists() and read_job(folder / JOB_RECORD).description.get(
        "TrainingJobStatus"
    ) == "Failed":
        move_to_earlier(folder)


def report_results(plan: Plan, study: "Study") -> None:
    """Print the best trial and its command, and write ``sweep.html``."""
    facts = _facts(plan)
    print_results(study, facts)
    page = plan.folder / _PAGE
    write_page(page, study, facts)
    print(f"More in {page}")


def _facts(plan: Plan) -> Search:
    def command(params: Mapping[str, Any]) -> str:
        return plan.command(values_of(params, plan.parameters))

    return Search(metrics=plan.metrics, command=command, title=plan.name, folder=plan.folder)
