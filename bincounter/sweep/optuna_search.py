"""The course of a search by Optuna: trials are claimed, launched and told, until there are enough; then its result."""

import logging
import sys
from collections.abc import Sequence
from typing import Any

from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from optuna import Study, create_study, get_all_study_names
from optuna.trial import FrozenTrial, TrialState

from bincounter.errors import BinCounterError, Interrupted, ResourceError, Stopped
from bincounter.sweep import trials
from bincounter.sweep.distributions import to_optuna, values_of
from bincounter.sweep.retraining import conclude, refuse_several, retrain_best
from bincounter.sweep.search_plan import Plan, refuse_too_large
from bincounter.sweep.search_results import own_trials
from bincounter.sweep.search_space import tell
from bincounter.sweep.study import Sampling, hand_to_jobs, make_pruner, open_storage, open_study, quiet, storage_url
from bincounter.sweep.trial_queue import Claimed, Claims, Ownership
from bincounter.sweep.trials import Outcome, attributes, job_overrides, scored
from bincounter.sweep.warm_start import learn_from_earlier

log = logging.getLogger(__name__)

_LEAST = 3  # trials before a rate of failures means something


def search(plan: Plan, launcher: Launcher) -> None:
    """Carry a search out, or on, and show its result.

    Args:
        plan: what is searched.
        launcher: carries the trials out.

    Raises:
        BinCounterError: the study cannot be opened or is another search's, trials fail, or Ctrl-C.
    """
    quiet()
    refuse_several(plan)
    sampling = Sampling(plan.settings["sampler"], plan.parameters, len(plan.directions))
    if plan.own and plan.cfg.dry_run:
        _show_requests(plan, sampling, launcher)
        return
    url = storage_url(plan.settings["storage"], plan.folder)
    new = plan.settings["storage"] is None and not (plan.folder / "study.db").exists()
    if new:
        _check(plan, sampling, launcher, url)  # what is refused leaves nothing
    with Ownership(plan.folder) as ownership:
        with ownership.alone():
            storage = open_storage(url)
            begun = plan.name in get_all_study_names(storage)
            if not (begun or new):
                _check(plan, sampling, launcher, url)
            study = open_study(plan, storage, make_pruner(plan.settings["pruner"]))
            learn_from_earlier(study, plan)
        tell(plan.parameters)
        claims = Claims(plan, sampling, study, ownership)
        hand_to_jobs(url)
        if begun and not new:
            _prepare(launcher, plan, max(claims.total - claims.finished, 0), url)
        try:
            _Course(plan, launcher, study, claims).run()
        except (KeyboardInterrupt, Interrupted):
            raise Interrupted(_to_go_on("Interrupted", claims)) from None
        except (SystemExit, Stopped):
            print(_to_go_on("Stopped", claims), file=sys.stderr)
            raise
        except ResourceError:
            conclude(plan, study)
            raise
        conclude(plan, study)
        _refuse_all_failed(study)
        others = claims.running()
        if others:
            log.info(
                "%d trials still run in other processes: the search is complete when they have ended.", len(others)
            )
        elif plan.settings["retrain_best"]:
            retrain_best(plan, study, launcher, ownership)
    print(plan.folder, flush=True)


def _check(plan: Plan, sampling: Sampling, launcher: Launcher, url: str) -> None:
    """Refuse a search that cannot be carried out."""
    if plan.own:
        refuse_too_large(plan.parameters, plan.cfg)
    _prepare(launcher, plan, sampling.total(plan.settings["n_trials"]), url)


def _show_requests(plan: Plan, sampling: Sampling, launcher: Launcher) -> None:
    """``dry_run=true``: what the first trial would be launched with; nothing is kept."""
    tell(plan.parameters)
    study = create_study(directions=plan.directions, sampler=sampling.of(0))
    values = values_of(study.ask(to_optuna(plan.parameters)).params, plan.parameters)
    _prepare(launcher, plan, sampling.total(plan.settings["n_trials"]), "")
    launcher.launch([job_overrides(plan, values, "0", goes_on=False, trial=0)], initial_job_idx=0)


def _prepare(launcher: Launcher, plan: Plan, to_come: int, url: str) -> None:
    """Tell a launcher that asks for it how much is to come, and who tells which jobs to end early."""
    prepare = getattr(launcher, "prepare_sweep", None)
    if prepare is None:
        return
    judge = None
    if plan.settings["pruner"] and not plan.here:
        from bincounter.sweep.pruning import judge_of_jobs

        judge = judge_of_jobs(url, {**plan.settings, "study_name": plan.name}, plan.cfg)
    prepare(to_come + bool(plan.settings["retrain_best"]), judge)


def _to_go_on(event: str, claims: Claims) -> str:
    return f"{event} after {claims.finished} of {claims.total} trials: the same command goes on with the search"


class _Course:
    """The trials of one process."""

    def __init__(self, plan: Plan, launcher: Launcher, study: Study, claims: Claims) -> None:
        self._plan, self._launcher, self._study, self._claims = plan, launcher, study, claims
        self._told: list[FrozenTrial] = []

    def run(self) -> None:
        """Carry trials out until there are enough."""
        while batch := self._take() or self._claims.wait(self._take):
            self._carry_out(batch)
            self._refuse_failures()

    def _take(self) -> list[Claimed]:
        return self._claims.take(self._plan.settings["n_jobs"])

    def _carry_out(self, batch: Sequence[Claimed]) -> None:
        done = {each.folder: trials.recorded(each.folder) for each in batch}  # by a job that outlived its sweeper
        coming = [each for each in batch if done[each.folder] is None]
        if coming:
            done |= self._launch(coming)
        for each in batch:
            outcome = done[each.folder]
            assert outcome is not None
            self._tell(each, scored(self._plan, outcome, each.folder))

    def _launch(self, batch: Sequence[Claimed]) -> "dict[Any, Outcome | None]":
        """What jobs come to; what one has written down counts more than what the launcher brings back."""
        overrides = [
            job_overrides(
                self._plan,
                values_of(each.trial.params, self._plan.parameters),
                str(each.trial.number),
                goes_on=each.adopted,
                trial=each.trial.number,
            )
            for each in batch
        ]
        try:
            returned = self._launcher.launch(overrides, initial_job_idx=batch[0].trial.number)
        except (BinCounterError, HydraException):  # the next start adopts these trials
            raise
        except Exception as error:  # such as a worker process that was killed: it takes the others with it
            lost = trials.of_error(error)
            return {each.folder: trials.recorded(each.folder) or lost for each in batch}
        return {
            each.folder: trials.recorded(each.folder) or trials.of_return(back)
            for each, back in zip(batch, returned, strict=True)
        }

    def _tell(self, claimed: Claimed, outcome: Outcome) -> None:
        for name, value in attributes(outcome, claimed.folder).items():
            claimed.trial.set_user_attr(name, value)
        state = TrialState.FAIL if outcome.error else TrialState.PRUNED if outcome.pruned else TrialState.COMPLETE
        told = self._study.tell(claimed.trial, outcome.values, state)
        self._told.append(told)
        if state == TrialState.COMPLETE:
            pairs = zip(self._plan.metrics, told.values, strict=True)
            news = ", ".join(f"{metric} {value:.5g}" for metric, value in pairs)
        else:
            news = f"failed: {outcome.error}" if outcome.error else "pruned"
        log.info("Trial %d: %s (%d of %d)", told.number, news, self._claims.finished, self._claims.total)

    def _refuse_failures(self) -> None:
        """Only trials of this start count, so that one with the cause removed can go on."""
        failed = [trial for trial in self._told if trial.state == TrialState.FAIL]
        rate: float = self._plan.settings["max_failure_rate"]
        if len(self._told) >= _LEAST and len(failed) > rate * len(self._told):
            raise ResourceError(
                f"{len(failed)} of {len(self._told)} trials failed, which is more than max_failure_rate={rate:g}; the "
                f"last one: {failed[-1].user_attrs['error']}"
            )


def _refuse_all_failed(study: Study) -> None:
    finished = [trial for trial in own_trials(study) if trial.state.is_finished()]
    if finished and all(trial.state == TrialState.FAIL for trial in finished):
        raise ResourceError(f"all trials failed; the last one: {finished[-1].user_attrs.get('error')}")
