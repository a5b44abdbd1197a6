"""Which trials this process carries out next: those that a dead one has left, then new ones, never more than in all."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from bincounter.cloud.jobs import RECORD
from bincounter.errors import ConfigError
from bincounter.sweep.distributions import to_optuna
from bincounter.sweep.ownership import Ownership
from bincounter.sweep.plan import Plan
from bincounter.sweep.results import own_trials
from bincounter.sweep.sampling import Sampling
from bincounter.sweep.study import OWNER
from bincounter.sweep.trials import OUTCOME, at_work

log = logging.getLogger(__name__)

_EXHAUSTED = "exhausted"  # attribute of a study whose sampler has no more to propose


@dataclass(frozen=True)
class Claimed:
    """A trial that is this process's to carry out.

    Attributes:
        trial: running, with all its values.
        folder: of its run.
        adopted: whether a process that is no more has begun it.
    """

    trial: optuna.Trial
    folder: Path
    adopted: bool


class Claims:
    """Hands out trials.

    Args:
        plan: what is searched.
        sampling: makes the sampler of each trial.
        study: of the search.
        ownership: of this process.
    """

    def __init__(self, plan: Plan, sampling: Sampling, study: optuna.Study, ownership: Ownership) -> None:
        self._plan, self._sampling, self._study, self._ownership = plan, sampling, study, ownership
        self._space = to_optuna(plan.parameters)
        # Samplers that try everything say so by ending Optuna's own loop, which is not run here.
        study.stop = lambda: study.set_user_attr(_EXHAUSTED, True)  # type: ignore[method-assign]

    @property
    def total(self) -> int:
        """How many trials the search has in all."""
        return self._sampling.total(self._plan.settings["n_trials"])

    @property
    def finished(self) -> int:
        """How many of them have ended."""
        return sum(trial.state.is_finished() for trial in own_trials(self._study))

    def running(self) -> list[FrozenTrial]:
        """Those that have not, of whatever process."""
        return [trial for trial in own_trials(self._study) if trial.state == TrialState.RUNNING]

    def take(self, most: int) -> list[Claimed]:
        """Up to ``most`` trials to carry out together."""
        with self._ownership.alone():
            there = own_trials(self._study)
            running = [trial for trial in there if trial.state == TrialState.RUNNING]
            left = [each for each in running if self._is_left(each) and not at_work(self._folder(each.number))]
            taken = [self._adopt(trial) for trial in left[:most]]
            open_ = self.total - len(running) - sum(trial.state.is_finished() for trial in there)
            if self._study.user_attrs.get(_EXHAUSTED):
                open_ = 0
            return taken + [self._ask() for _ in range(min(most - len(taken), open_))]

    def give_back(self, claimed: Sequence[Claimed]) -> None:
        """Leave trials that the launcher refused before their jobs began to the next start, values and all."""
        for each in claimed:
            if not each.adopted and not (each.folder / RECORD).exists():
                self._study._storage.set_trial_state_values(each.trial._trial_id, TrialState.WAITING)

    def wait(self, take: Callable[[], list[Claimed]]) -> list[Claimed]:
        """Wait for jobs that outlived their process, which nobody else will tell the study of; then take them."""
        said = False
        while any(self._is_left(trial) for trial in self.running()):
            if taken := take():
                return taken
            if not said:
                log.info("Waiting for jobs that an earlier start of this search has left at work.")
                said = True
            time.sleep(0.5)
        return []

    def _is_left(self, trial: FrozenTrial) -> bool:
        return not self._ownership.lives(trial.user_attrs.get(OWNER))

    def _adopt(self, left: FrozenTrial) -> Claimed:
        self._study.sampler = self._sampling.of(left.number)
        log.info("Going on with trial %d, which an earlier start of this search has begun.", left.number)
        return self._claimed(optuna.Trial(self._study, left._trial_id), adopted=True)

    def _ask(self) -> Claimed:
        number = len(self._study.get_trials(deepcopy=False))
        if any((self._folder(number) / name).exists() for name in (OUTCOME, RECORD)):  # it would be taken for its own
            raise ConfigError(
                f"{self._folder(number)} holds the run of another search: remove it, or search in another folder"
            )
        self._study.sampler = self._sampling.of(number)
        return self._claimed(self._study.ask(), adopted=False)

    def _claimed(self, trial: optuna.Trial, *, adopted: bool) -> Claimed:
        trial.set_user_attr(OWNER, self._ownership.mark)
        for name, distribution in self._space.items():  # what an adopted one has already stays
            trial._suggest(name, distribution)
        return Claimed(trial, self._folder(trial.number), adopted)

    def _folder(self, number: int) -> Path:
        return self._plan.folder / str(number)
