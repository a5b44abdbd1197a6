"""Queue of trials: new ones, and running ones of dead processes of the same search.

Every sweeper holds the lock of a file in the sweep's folder; the kernel releases it at any end of the process. Trials
are counted, created and adopted under one more lock, shared by all processes of a search.
"""

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

from bincounter.cloud.jobs import JOB_RECORD
from bincounter.errors import ConfigError, ResourceError
from bincounter.files import lock
from bincounter.sweep.distributions import to_optuna
from bincounter.sweep.search_plan import Plan
from bincounter.sweep.search_results import own_trials
from bincounter.sweep.study import OWNER, SamplerFactory, is_exhausted, note_exhaustion, reopen_trial, suggest
from bincounter.sweep.trials import OUTCOME, is_locked, is_running

log = logging.getLogger(__name__)


class SweeperLock:
    """Lock that marks this process as one of the sweepers of a folder.

    Args:
        folder: the sweep's folder; created if it is missing.

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
                f"{folder} cannot be written ({error.strerror}): set another folder for the search"
            ) from None
        lock(self._file, inherited=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._path(self._id).unlink(missing_ok=True)
        self._file.close()

    @property
    def mark(self) -> dict[str, str]:
        """Attribute ``owner`` of this process's trials."""
        return {"id": self._id, "host": socket.gethostname(), "folder": str(self._folder.resolve())}

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock out other processes of the search while this one counts, creates or adopts trials."""
        with (self._folder / "claim.lock").open("w") as file:
            lock(file, inherited=False)
            yield

    def is_alive(self, mark: Mapping[str, Any] | None) -> bool:
        """Return True if the owner of a trial is alive; processes of other machines are presumed to be.

        A trial without a mark has no living owner: marks are set under :meth:`exclusive`.
        """
        if mark is None:
            return False
        if mark["id"] == self._id or mark["host"] != socket.gethostname():
            return True
        return is_locked(Path(mark["folder"]) / f"{mark['id']}.lock")

    def _path(self, id_: str) -> Path:
        return self._folder / f"{id_}.lock"


@dataclass(frozen=True)
class QueuedTrial:
    """A trial for this process to run.

    Attributes:
        trial: running trial with all its values.
        folder: folder of its run.
        adopted: it was begun by a dead process.
    """

    trial: optuna.Trial
    folder: Path
    adopted: bool


class TrialQueue:
    """Queue of the trials of a search.

    Args:
        plan: the search.
        sampling: factory of the sampler of each trial.
        study: the search's study.
        ownership: this process's lock.
    """

    def __init__(self, plan: Plan, sampling: SamplerFactory, study: optuna.Study, ownership: SweeperLock) -> None:
        self._plan, self._sampling, self._study, self._ownership = plan, sampling, study, ownership
        self._space = to_optuna(plan.parameters)
        note_exhaustion(study)

    @property
    def total(self) -> int:
        """Number of trials of the whole search."""
        return self._sampling.total(self._plan.settings["n_trials"])

    @property
    def finished(self) -> int:
        """Number of ended trials."""
        return sum(trial.state.is_finished() for trial in own_trials(self._study))

    def running(self) -> list[FrozenTrial]:
        """Return the running trials of all processes."""
        return [trial for trial in own_trials(self._study) if trial.state == TrialState.RUNNING]

    def take(self, most: int) -> list[QueuedTrial]:
        """Return up to ``most`` trials to run together."""
        with self._ownership.exclusive():
            existing = own_trials(self._study)
            running = [trial for trial in existing if trial.state == TrialState.RUNNING]
            orphaned = [
                each for each in running if self._is_orphaned(each) and not is_running(self._folder(each.number))
            ]
            taken = [self._adopt(trial) for trial in orphaned[:most]]
            open_ = self.total - len(running) - sum(trial.state.is_finished() for trial in existing)
            if is_exhausted(self._study):
                open_ = 0
            return taken + [self._ask() for _ in range(min(most - len(taken), open_))]

    def wait(self, take: Callable[[], list[QueuedTrial]]) -> list[QueuedTrial]:
        """Wait for jobs that outlived their sweeper, then take their trials."""
        logged = False
        while any(self._is_orphaned(trial) for trial in self.running()):
            if taken := take():
                return taken
            if not logged:
                log.info("Waiting for running jobs of an earlier start of this search.")
                logged = True
            time.sleep(0.5)
        return []

    def _is_orphaned(self, trial: FrozenTrial) -> bool:
        return not self._ownership.is_alive(trial.user_attrs.get(OWNER))

    def _adopt(self, left: FrozenTrial) -> QueuedTrial:
        self._study.sampler = self._sampling.sampler_for(left.number)
        log.info("Resuming trial %d of an earlier start of this search.", left.number)
        trial = reopen_trial(self._study, left)
        suggest(trial, self._space)
        return self._claim(trial, adopted=True)

    def _ask(self) -> QueuedTrial:
        number = len(self._study.get_trials(deepcopy=False))
        # The outcome of another search would be taken for this trial's.
        if any((self._folder(number) / name).exists() for name in (OUTCOME, JOB_RECORD)):
            raise ConfigError(
                f"{self._folder(number)} holds the run of another search: remove it, or use another folder"
            )
        self._study.sampler = self._sampling.sampler_for(number)
        return self._claim(self._study.ask(fixed_distributions=self._space), adopted=False)

    def _claim(self, trial: optuna.Trial, *, adopted: bool) -> QueuedTrial:
        trial.set_user_attr(OWNER, self._ownership.mark)
        return QueuedTrial(trial, self._folder(trial.number), adopted)

    def _folder(self, number: int) -> Path:
        return self._plan.folder / str(number)
