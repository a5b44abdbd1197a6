"""The Hydra launcher; starts a rehearsal when asked.

Hydra imports this module at the start of every app of the environment, so that everything heavy is imported on use.
"""

import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from bincounter.config.launcher_schema import RehearsalConfig
from bincounter.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from bincounter.cloud.account import Account
    from bincounter.cloud.job_plan import Planned
    from bincounter.cloud.job_runner import Crew, Judge, Task
    from bincounter.cloud.submission import Submission

log = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parents[2]
"""The checkout that jobs are shipped from."""

_AGAIN = "Interrupted: the same command goes on with the search"


@dataclass
class BinCounterPlugin:
    """What conf/launcher chooses: settings are those of the ``launcher`` group."""

    _target_: str = "hydra_plugins.bincounter.SageMakerLauncher"
    settings: Any = "${launcher}"


class SageMakerLauncher(Launcher):
    """Carries a batch of jobs out as training jobs and returns what they came to.

    Args:
        settings: see :class:`bincounter.config.launcher_schema.SageMakerConfig`.
    """

    def __init__(self, settings: DictConfig) -> None:
        self._settings: dict[str, Any] = OmegaConf.to_container(settings, resolve=True)  # type: ignore[assignment]
        self._rehearsed = is_rehearsal(settings)
        self._jobs_before = 0  # of earlier batches of the same sweep
        self._searches = False  # for a sweeper that has prepared it
        self._judge: Judge | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take over what Hydra hands every launcher."""
        self._context, self._config = hydra_context, config  # the container has a task function of its own

    def prepare_sweep(self, trials: int, judge: "Judge | None") -> None:
        """What a sweeper tells that chooses trial by trial, before it chooses the first.

        Args:
            trials: that it will launch at most; the ceiling of all of them is shown, once.
            judge: asked as each epoch's scores come in, from the threads that follow the jobs.

        Raises:
            ConfigError: no trial could be launched.
        """
        from bincounter.cloud.submission import show_cost

        self._searches, self._judge = True, judge
        self._refuse_what_no_job_can_do()
        show_cost(self._settings, trials)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Carry the jobs out: all are composed and validated before the first is submitted.

        Raises:
            BinCounterError: nothing could be submitted, or Ctrl-C left the jobs to themselves.
        """
        if not logging.getLogger().hasHandlers():  # Hydra sets logging up for each job, not for the launch
            logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        from bincounter.cloud import job_plan

        loader = self._context.config_loader
        planned = [
            job_plan.compose(loader, self._config, overrides, initial_job_idx + number)
            for number, overrides in enumerate(job_overrides)
        ]
        for one in planned:
            one.of_search = self._searches
        self._refuse_what_no_job_can_do()
        job_plan.check_together(planned, self._settings)
        for one in planned:
            with _named(one, alone=len(planned) == 1):
                job_plan.plan_run(one, loader, self._config)
        with place(rehearsed=self._rehearsed):
            return self._launch(planned)

    def _refuse_what_no_job_can_do(self) -> None:
        from bincounter.cloud.job_plan import refuse_what_is_not_shipped

        if not self._settings["wait"] and not self._listed:
            raise ConfigError("launcher.wait=false leaves a sweeper without the results it chooses by: drop it")
        refuse_what_is_not_shipped(self._config)

    @property
    def _listed(self) -> bool:
        """Whether jobs are those of the command line, not chosen by what others came to."""
        return str(self._config.hydra.sweeper._target_).endswith(".BasicSweeper")

    def _launch(self, planned: "Sequence[Planned]") -> list[JobReturn]:
        from bincounter.cloud.account import Account
        from bincounter.cloud.job_runner import Crew, attach_command
        from bincounter.cloud.submission import Submission, show_cost

        account = Account(self._settings["region"])
        submission = Submission(account, self._settings, REPOSITORY, rehearsed=self._rehearsed)
        if not self._searches:
            show_cost(self._settings, len(planned), before=self._jobs_before)
        dry = bool(OmegaConf.select(self._config, "dry_run", default=False))
        tasks = self._tasks(planned, account, submission, dry=dry)
        self._jobs_before += len(planned)
        if dry:
            for task in tasks:
                print(json.dumps(task.request, indent=2, ensure_ascii=False))
            return [_returned(one, JobStatus.COMPLETED, None) for one in planned]
        crew = Crew(
            account,
            tasks,
            at_once=self._settings["max_parallel_jobs"],
            rehearsed=self._rehearsed,
            judge=self._judge,
        )
        if self._searches:
            self._carry_out_trials(crew, tasks)
        elif self._settings["wait"]:
            crew.carry_out()
        if self._settings["wait"]:
            self._alone = self._listed and len(planned) == 1
            return [self._result(one, task) for one, task in zip(planned, tasks, strict=True)]
        crew.submit_all()
        folder = planned[0].folder if len(planned) == 1 else planned[0].folder.parent
        log.info("Follow them and fetch what they have with: %s", attach_command(folder))
        return [self._told(one, None) for one in planned]

    def _carry_out_trials(self, crew: "Crew", tasks: "Sequence[Task]") -> None:
        """Carry trials out; what leaves one without an outcome ends the search, which goes on with it when it is back.

        Raises:
            BinCounterError: a job could not be submitted, followed or fetched, or Ctrl-C.
        """
        try:
            crew.carry_out()
        except Interrupted as error:
            log.warning("%s", error)
            raise Interrupted(_AGAIN) from None
        if crew.interrupted:
            raise Interrupted(_AGAIN)
        for task in tasks:
            if task.error is not None and task.job.description.get("TrainingJobStatus") not in ("Failed", "Stopped"):
                raise task.error

    def _tasks(
        self, planned: "Sequence[Planned]", account: "Account", submission: "Submission", *, dry: bool
    ) -> "list[Task]":
        """Requests to submit; a trial whose job an earlier command has submitted is followed again instead."""
        from bincounter.cloud.job_runner import Task
        from bincounter.cloud.jobs import Job, under_way

        known: dict[int, Job] = {}
        for one in planned:
            job = under_way(account, one.folder) if one.of_search and not dry else None
            if job is not None and job.stopped_by_hand:  # by Ctrl-C
                one.checkpoint_uri = job.checkpoint_uri
            elif job is not None:
                known[one.number] = job
        new = iter(submission.tasks([one for one in planned if one.number not in known], dry=dry))
        return [Task(known[one.number], None) if one.number in known else next(new) for one in planned]

    def _result(self, planned: "Planned", task: "Task") -> JobReturn:
        from bincounter.cloud.jobs import best_value
        from bincounter.config.checks import mode_of

        if task.error is not None:
            if self._alone:  # Hydra would add a line of its own to ours
                raise task.error
            return _returned(planned, JobStatus.FAILED, task.error)
        metric = planned.config.optimized_metric
        return self._told(planned, best_value(planned.folder, metric, mode_of(metric)))

    def _told(self, planned: "Planned", value: float | None) -> JobReturn:
        print(planned.folder, flush=True)
        return _returned(planned, JobStatus.COMPLETED, value)


@contextmanager
def _named(planned: "Planned", *, alone: bool) -> Iterator[None]:
    """Say which job of several is refused."""
    try:
        yield
    except ConfigError as error:
        if alone:
            raise
        raise ConfigError(f"job {planned.number} ({' '.join(planned.overrides)}): {error}") from None


def _returned(planned: "Planned", status: JobStatus, value: Any) -> JobReturn:
    from bincounter.cloud.job_plan import task_config

    hydra: Mapping[str, Any] = planned.config.hydra
    returned = JobReturn(
        overrides=planned.overrides,
        cfg=task_config(planned),
        hydra_cfg=OmegaConf.create({"hydra": hydra}),
        working_dir=str(planned.folder),
        task_name=planned.config.hydra.job.name,
        status=status,
    )
    returned.return_value = value
    return returned


def is_rehearsal(settings: Any) -> bool:
    """Whether a composed ``launcher`` asks for a control plane on this machine."""
    kind = OmegaConf.get_type(settings)
    return isinstance(kind, type) and issubclass(kind, RehearsalConfig)


@contextmanager
def place(*, rehearsed: bool) -> Iterator[None]:
    """Let AWS's clients find what they are to speak to.

    Args:
        rehearsed: start a control plane here, which ends with this context.
    """
    if not rehearsed:
        yield
        return
    from sagemaker_rehearsal import rehearsed as control_plane
    from sagemaker_rehearsal import without_aws

    before = dict(os.environ)
    with (
        tempfile.TemporaryDirectory(prefix="bincounter-rehearsal-") as folder,
        control_plane(Path(folder)) as variables,
    ):
        log.info("Rehearsing on this machine: nothing is billed, and the spot discount shown is invented.")
        _replace_environment({**without_aws(before), **variables})
        try:
            yield
        finally:
            _replace_environment(before)


def _replace_environment(variables: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)
