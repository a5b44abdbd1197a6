"""Search by Optuna: the ask, launch and tell loop until there are ``n_trials``."""

import logging
import sys
from collections.abc import Sequence
from typing import Any

from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from optuna import Study, create_study, get_all_study_names
from optuna.trial import FrozenTrial, TrialState

from bincounter.errors import BinCounterError, ConfigError, Interrupted, ResourceError, Stopped
from bincounter.files import check_writable
from bincounter.number_format import format_score
from bincounter.sweep import trials
from bincounter.sweep.distributions import to_optuna, values_of
from bincounter.sweep.retraining import check_single_objective, report_results, retrain_best
from bincounter.sweep.search_plan import Plan, check_batch_sizes
from bincounter.sweep.search_results import own_trials
from bincounter.sweep.search_space import log_search_space
from bincounter.sweep.study import (
    SamplerFactory,
    export_storage_url,
    make_pruner,
    open_storage,
    open_study,
    silence_optuna,
    storage_url,
    translate_storage_errors,
)
from bincounter.sweep.trial_queue import QueuedTrial, SweeperLock, TrialQueue
from bincounter.sweep.trials import Outcome, common_overrides, job_overrides, trial_attributes, with_objectives
from bincounter.sweep.warm_start import add_earlier_trials, check_earlier_searches

log = logging.getLogger(__name__)

_FEWEST = 3  # finished trials before max_failure_rate applies


def search(plan: Plan, launcher: Launcher) -> None:
    """Run or resume a search and print its result.

    Args:
        plan: the search.
        launcher: runs the trials.

    Raises:
        ConfigError: the study is another search's, or the search cannot run.
        ResourceError: the study cannot be opened, or too many trials fail.
        Interrupted: Ctrl-C; the message says how to resume.
    """
    silence_optuna()
    check_single_objective(plan)
    sampling = SamplerFactory(plan.settings["sampler"], plan.parameters, len(plan.directions))
    if plan.cfg.dry_run:
        _show_requests(plan, sampling, launcher)
        return
    url = storage_url(plan.settings["storage"], plan.folder)
    new = plan.settings["storage"] is None and not (plan.folder / "study.db").exists()
    if new:
        _check(plan, sampling, launcher, url)  # before any file is written
    _ = plan.signature  # reads the photos, before other processes have to wait
    with SweeperLock(plan.folder) as ownership, translate_storage_errors(url):
        with ownership.exclusive():
            storage = open_storage(url)
            begun = plan.name in get_all_study_names(storage)
            if not (begun or new):
                _check(plan, sampling, launcher, url)
            study = open_study(plan, storage, make_pruner(plan.settings["pruner"]))
            add_earlier_trials(study, plan)
        log_search_space(plan.parameters)
        queue = TrialQueue(plan, sampling, study, ownership)
        export_storage_url(url)
        if begun and not new:
            _prepare(launcher, plan, max(queue.total - queue.finished, 0), url)
        try:
            _TrialLoop(plan, launcher, study, queue).run()
        except (KeyboardInterrupt, Interrupted):
            raise Interrupted(_resume_hint("Interrupted", queue)) from None
        except (SystemExit, Stopped):
            print(_resume_hint("Stopped", queue), file=sys.stderr)
            raise
        except ResourceError:
            report_results(plan, study)
            raise
        report_results(plan, study)
        finished = [trial for trial in own_trials(study) if trial.state.is_finished()]
        if finished and all(trial.state == TrialState.FAIL for trial in finished):
            raise ResourceError(f"all trials failed; the last one: {finished[-1].user_attrs.get('error')}")
        if others := queue.running():
            log.info("%d trials still run in other processes: the search is complete when they end.", len(others))
        elif plan.settings["retrain_best"]:
            retrain_best(plan, study, launcher, ownership)
    print(plan.folder, flush=True)


def _check(plan: Plan, sampling: SamplerFactory, launcher: Launcher, url: str) -> None:
    """Check that a search can run."""
    check_writable(plan.folder, folder=True)
    check_earlier_searches(plan)
    if plan.reads_photos:
        _ = plan.photos  # which may be missing
    check_batch_sizes(plan)
    _prepare(launcher, plan, sampling.total(plan.settings["n_trials"]), url)


def _show_requests(plan: Plan, sampling: SamplerFactory, launcher: Launcher) -> None:
    """Print the request of the first trial (``dry_run=true``), without a stored study."""
    log_search_space(plan.parameters)
    study = create_study(directions=plan.directions, sampler=sampling.sampler_for(0))
    values = values_of(study.ask(to_optuna(plan.parameters)).params, plan.parameters)
    _prepare(launcher, plan, sampling.total(plan.settings["n_trials"]), "")
    launcher.launch([job_overrides(plan, values, "0", resuming=False, trial=0)], initial_job_idx=0)


def _prepare(launcher: Launcher, plan: Plan, to_come: int, url: str) -> None:
    """Pass the number of coming jobs and the pruning of remote ones to a launcher with ``prepare_sweep``."""
    prepare = getattr(launcher, "prepare_sweep", None)
    if prepare is None:
        return
    policy = None
    if plan.settings["pruner"] and not plan.local:
        from bincounter.sweep.pruning import remote_pruning_policy

        policy = remote_pruning_policy(url, {**plan.settings, "study_name": plan.name}, plan.cfg)
    prepare(to_come + bool(plan.settings["retrain_best"]), policy, common_overrides(plan))


def _resume_hint(event: str, queue: TrialQueue) -> str:
    return f"{event} after {queue.finished} of {queue.total} trials: repeat the command to resume the search"


class _TrialLoop:
    """Loop over the trials of one process."""

    def __init__(self, plan: Plan, launcher: Launcher, study: Study, queue: TrialQueue) -> None:
        self._plan, self._launcher, self._study, self._queue = plan, launcher, study, queue
        self._finished: list[FrozenTrial] = []

    def run(self) -> None:
        """Run trials until the search has enough."""
        while batch := self._take() or self._queue.wait(self._take):
            self._run_batch(batch)
            self._check_failure_rate()

    def _take(self) -> list[QueuedTrial]:
        return self._queue.take(self._plan.settings["n_jobs"])

    def _run_batch(self, batch: Sequence[QueuedTrial]) -> None:
        outcomes: dict[Any, Outcome | None]
        outcomes = {each.folder: trials.read_outcome(each.folder) for each in batch}  # of jobs that outlived a sweeper
        coming = [each for each in batch if outcomes[each.folder] is None]
        outcomes |= {each.folder: self._refusal(each) for each in coming}
        if coming := [each for each in coming if outcomes[each.folder] is None]:
            outcomes |= self._launch(coming)
        for each in batch:
            outcome = outcomes[each.folder]
            assert outcome is not None
            self._finish(each, with_objectives(self._plan, outcome, each.folder))

    def _refusal(self, queued: QueuedTrial) -> Outcome | None:
        """Return the outcome of a trial whose values exclude each other, which no later start could launch."""
        try:
            self._plan.check_values(values_of(queued.trial.params, self._plan.parameters))
        except ConfigError as error:
            return trials.outcome_of_error(error)
        return None

    def _launch(self, batch: Sequence[QueuedTrial]) -> "dict[Any, Outcome | None]":
        """Launch jobs and return their outcomes: from trial.json, or from the launcher's return value."""
        overrides = [
            job_overrides(
                self._plan,
                values_of(each.trial.params, self._plan.parameters),
                str(each.trial.number),
                resuming=each.adopted,
                trial=each.trial.number,
            )
            for each in batch
        ]
        try:
            returned = self._launcher.launch(overrides, initial_job_idx=batch[0].trial.number)
        except (BinCounterError, HydraException):  # the next start adopts these trials
            raise
        except Exception as error:  # such as a killed worker process, which ends the other jobs, too
            lost = trials.outcome_of_error(error)
            return {each.folder: trials.read_outcome(each.folder) or lost for each in batch}
        return {
            each.folder: trials.read_outcome(each.folder) or trials.outcome_of_return(back)
            for each, back in zip(batch, returned, strict=True)
        }

    def _finish(self, claimed: QueuedTrial, outcome: Outcome) -> None:
        for name, value in trial_attributes(outcome, claimed.folder).items():
            claimed.trial.set_user_attr(name, value)
        state = TrialState.FAIL if outcome.error else TrialState.PRUNED if outcome.pruned else TrialState.COMPLETE
        finished = self._study.tell(claimed.trial, outcome.values, state)
        self._finished.append(finished)
        if state == TrialState.COMPLETE:
            pairs = zip(self._plan.metrics, finished.values, strict=True)
            news = ", ".join(f"{metric} {format_score(metric, value, unit=True)}" for metric, value in pairs)
        else:
            news = f"failed: {outcome.error}" if outcome.error else "pruned"
        log.info("Trial %d: %s (%d of %d)", finished.number, news, self._queue.finished, self._queue.total)

    def _check_failure_rate(self) -> None:
        """Raise if too many trials of this start failed; earlier ones do not count, as their cause may be mended."""
        failed = [trial for trial in self._finished if trial.state == TrialState.FAIL]
        rate: float = self._plan.settings["max_failure_rate"]
        if len(self._finished) >= _FEWEST and len(failed) > rate * len(self._finished):
            raise ResourceError(
                f"{len(failed)} of {len(self._finished)} trials failed, which is more than max_failure_rate={rate:g}; "
                f"the last one: {failed[-1].user_attrs['error']}"
            )
