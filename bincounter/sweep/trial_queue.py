"""Which trial this process runs next; adopts those of dead processes.

Every sweeper holds the lock of a file in the sweep's folder for as long as it lives; the kernel gives it back however
the process ends. Trials are counted, asked for and taken over under one more lock, so that processes that share a
search agree on them.
"""

import fcntl
import logging
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import optuna
from optuna.trial import FrozenTrial, TrialState

from bincounter.cloud.jobs import RECORD
from bincounter.errors import ConfigError, ResourceError
from bincounter.sweep.distributions import to_optuna
from bincounter.sweep.search_plan import Plan
from bincounter.sweep.search_results import own_trials
from bincounter.sweep.study import OWNER, Sampling, is_exhausted, note_exhaustion, reopen_trial, suggest
from bincounter.sweep.trials import OUTCOME, at_work, locked

log = logging.getLogger(__name__)


class Ownership:
    """This process among those that search in a folder.

    Args:
        folder: of the sweep; made when it is missing.

    Raises:
        ResourceError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / ".sweepers"
        self._id = uuid.uuid4().hex[:12]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path(self._id).open("w")
        except OSError as error:
            raise ResourceError(
                f"{folder} cannot be written ({error.strerror}): name another folder for the search"
            ) from None
        fcntl.lockf(self._file, fcntl.LOCK_EX)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._path(self._id).unlink(missing_ok=True)
        self._file.close()

    @property
    def mark(self) -> dict[str, str]:
        """What a trial of this process carries."""
        return {"id": self._id, "host": socket.gethostname(), "folder": str(self._folder.resolve())}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While this lasts, no other process of the search counts, asks for or takes over trials."""
        with (self._folder / "claim.lock").open("w") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            yield

    def is_mine(self, mark: Mapping[str, Any] | None) -> bool:
        """Whether a mark is this process's."""
        return mark is not None and mark["id"] == self._id

    def elsewhere(self, mark: Mapping[str, Any] | None) -> bool:
        """Whether a mark is of another machine, whose processes cannot be looked at from here."""
        return mark is not None and mark["host"] != socket.gethostname()

    def lives(self, mark: Mapping[str, Any] | None) -> bool:
        """Whether the process of a mark is known or presumed to live; none is without one, when asked alone."""
        if mark is None:
            return False
        if self.is_mine(mark) or self.elsewhere(mark):
            return True
        return locked(Path(mark["folder"]) / f"{mark['id']}.lock")

    def _path(self, id_: str) -> Path:
        return self._folder / f"{id_}.lock"


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
        note_exhaustion(study)

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
            if is_exhausted(self._study):
                open_ = 0
            return taken + [self._ask() for _ in range(min(most - len(taken), open_))]

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
        trial = reopen_trial(self._study, left)
        suggest(trial, self._space)
        return self._claimed(trial, adopted=True)

    def _ask(self) -> Claimed:
        number = len(self._study.get_trials(deepcopy=False))
        if any((self._folder(number) / name).exists() for name in (OUTCOME, RECORD)):  # it would be taken for its own
            raise ConfigError(
                f"{self._folder(number)} holds the run of another search: remove it, or search in another folder"
            )
        self._study.sampler = self._sampling.of(number)
        return self._claimed(self._study.ask(fixed_distributions=self._space), adopted=False)

    def _claimed(self, trial: optuna.Trial, *, adopted: bool) -> Claimed:
        trial.set_user_attr(OWNER, self._ownership.mark)
        return Claimed(trial, self._folder(trial.number), adopted)

    def _folder(self, number: int) -> Path:
        return self._plan.folder / str(number)
