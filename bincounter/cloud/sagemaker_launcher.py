"""Hydra launcher that runs jobs as training jobs on SageMaker, or in a rehearsal of it.

Hydra imports this module at the start of every app of the environment, so that everything heavy is imported on use.
"""

import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from bincounter.config.checks import metric_mode, plain_of
from bincounter.config.launcher_schema import RehearsalConfig
from bincounter.errors import ConfigError, Interrupted, ResourceError
from bincounter.redaction import mask_argument

if TYPE_CHECKING:
    from bincounter.cloud.account import Account
    from bincounter.cloud.job_plan import PlannedJob
    from bincounter.cloud.job_runner import JobRunner, PruningPolicy, RunningJob
    from bincounter.cloud.submission import Submission

log = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parents[2]
"""Checkout that jobs are shipped from."""

_RESUME = "Interrupted: run the same command again to resume the search"


@dataclass
class LauncherPlugin:
    """Node ``hydra/launcher=bincounter``, which conf/launcher selects; its settings are the ``launcher`` group."""

    _target_: str = "hydra_plugins.bincounter.SageMakerLauncher"
    settings: Any = "${launcher}"


class SageMakerLauncher(Launcher):
    """Run a batch of jobs as training jobs and return their results.

    Args:
        settings: see :class:`bincounter.config.launcher_schema.SageMakerConfig`.
    """

    def __init__(self, settings: DictConfig) -> None:
        self._settings = plain_of(settings)
        self._rehearsed = is_rehearsal(settings)
        self._jobs_before = 0  # in earlier batches of the same sweep
        self._priced = False  # by a sweeper that calls prepare_sweep
        self._judge: PruningPolicy | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the context and the configuration that Hydra gives every launcher."""
        self._context, self._config = hydra_context, config  # the container has its own task function

    def prepare_sweep(self, trials: int, judge: "PruningPolicy | None", shared: Sequence[str]) -> None:
        """Announce a search that chooses trial by trial, before it chooses the first.

        Args:
            trials: number of trials at most; the price ceiling of all of them is logged, once.
            judge: called with each epoch's scores, from the threads that follow the jobs.
            shared: overrides of every trial.

        Raises:
            ConfigError: no trial could be launched.
        """
        from bincounter.cloud import job_plan
        from bincounter.cloud.submission import show_cost

        self._priced, self._judge = True, judge
        self._check_launchable()
        loader = self._context.config_loader
        job_plan.plan_run(job_plan.compose_job(loader, self._config, shared, 0), loader, self._config)
        show_cost(self._settings, trials)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; all are composed and validated before the first is submitted.

        Raises:
            BinCounterError: nothing could be submitted, or Ctrl-C left the jobs running.
        """
        if not logging.getLogger().hasHandlers():  # Hydra sets logging up for each job, not for the launch
            logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        from bincounter.cloud import job_plan

        loader = self._context.config_loader
        planned = [
            job_plan.compose_job(loader, self._config, overrides, initial_job_idx + number)
            for number, overrides in enumerate(job_overrides)
        ]
        for one in planned:
            one.of_search = self._searches
        self._check_launchable()
        job_plan.check_together(planned, self._settings, before=self._jobs_before)
        refused: dict[int, ConfigError] = {}
        for one in planned:
            try:
                with _named(one, alone=len(planned) == 1 or self._searches):
                    job_plan.plan_run(one, loader, self._config)
            except ConfigError as error:
                if not self._searches or self._dry:
                    raise
                refused[one.number] = error  # a failed trial: others have other values
        accepted = [one for one in planned if one.number not in refused]
        launched: Iterator[JobReturn] = iter(())
        if accepted:
            with rehearsal_environment(rehearsed=self._rehearsed):
                launched = iter(self._launch(accepted))
        return [
            _returned(one, JobStatus.FAILED, refused[one.number]) if one.number in refused else next(launched)
            for one in planned
        ]

    def _check_launchable(self) -> None:
        from bincounter.cloud.job_plan import check_config_is_tracked

        if not self._settings["wait"] and not self._listed:
            raise ConfigError("launcher.wait=false gives a sweeper no results to choose by: remove it")
        check_config_is_tracked(self._config)

    @property
    def _dry(self) -> bool:
        return bool(OmegaConf.select(self._config, "dry_run", default=False))

    @property
    def _searches(self) -> bool:
        return OmegaConf.select(self._config, "hparams_search", default=None) is not None

    @property
    def _listed(self) -> bool:
        """Return True if the command line lists the jobs, instead of a search that chooses them."""
        return str(self._config.hydra.sweeper._target_).endswith(".BasicSweeper")

    def _launch(self, planned: "Sequence[PlannedJob]") -> list[JobReturn]:
        from bincounter.cloud.account import Account
        from bincounter.cloud.job_runner import JobRunner, attach_command
        from bincounter.cloud.submission import Submission, show_cost

        dry = self._dry
        account = Account(self._settings["region"], dry=dry)
        submission = Submission(account, self._settings, REPOSITORY, rehearsed=self._rehearsed)
        if not self._priced:
            show_cost(self._settings, len(planned), before=self._jobs_before)
        tasks = self._tasks(planned, account, submission, dry=dry)
        self._jobs_before += len(planned)
        if dry:
            for task in tasks:
                print(account.shown(task.request))
            account.log_placeholders()
            return [_returned(one, JobStatus.COMPLETED, None) for one in planned]
        runner = JobRunner(
            account,
            tasks,
            at_once=self._settings["max_parallel_jobs"],
            rehearsed=self._rehearsed,
            repeats=self._searches,
            judge=self._judge if all(one.of_trial for one in planned) else None,
        )
        if self._searches:
            self._run_trials(runner, tasks)
        elif self._settings["wait"]:
            runner.run_all()
        if self._settings["wait"]:
            self._alone = self._listed and len(planned) == 1
            return [self._result(one, task) for one, task in zip(planned, tasks, strict=True)]
        runner.submit_all()
        folder = planned[0].folder if len(planned) == 1 else planned[0].folder.parent
        log.info("Follow the jobs and fetch their results with: %s", attach_command(folder))
        return [self._completed(one, None) for one in planned]

    def _run_trials(self, runner: "JobRunner", tasks: "Sequence[RunningJob]") -> None:
        """Run trials; a trial without an outcome ends the search, which resumes with that trial.

        Raises:
            BinCounterError: a job could not be submitted, followed or fetched, or Ctrl-C.
        """
        try:
            runner.run_all()
        except Interrupted as error:
            log.warning("%s", error)
            raise Interrupted(_RESUME) from None
        if runner.interrupted:
            raise Interrupted(_RESUME)
        for task in tasks:
            if task.error is not None and task.job.description.get("TrainingJobStatus") not in ("Failed", "Stopped"):
                raise task.error

    def _tasks(
        self, planned: "Sequence[PlannedJob]", account: "Account", submission: "Submission", *, dry: bool
    ) -> "list[RunningJob]":
        """Return tasks to run; a trial whose job an earlier command has submitted is followed instead."""
        from bincounter.cloud.job_runner import RunningJob
        from bincounter.cloud.jobs import Job, find_submitted

        known: dict[int, Job] = {}
        for one in planned:
            job = find_submitted(account, one.folder) if one.of_search and not dry else None
            if job is not None and job.stopped_by_hand:  # by Ctrl-C
                one.checkpoint_uri = job.checkpoint_uri
            elif job is not None:
                known[one.number] = job
        new = iter(submission.tasks([one for one in planned if one.number not in known], dry=dry))
        return [RunningJob(known[one.number], None) if one.number in known else next(new) for one in planned]

    def _result(self, planned: "PlannedJob", task: "RunningJob") -> JobReturn:
        from bincounter.training.results import best_value

        if task.error is not None:
            if self._alone:  # Hydra would add a line to our message
                raise task.error
            return _returned(planned, JobStatus.FAILED, task.error)
        metric = planned.config.optimized_metric
        return self._completed(planned, best_value(planned.folder, metric, metric_mode(metric)))

    def _completed(self, planned: "PlannedJob", value: float | None) -> JobReturn:
        print(planned.folder, flush=True)
        return _returned(planned, JobStatus.COMPLETED, value)


@contextmanager
def _named(planned: "PlannedJob", *, alone: bool) -> Iterator[None]:
    """Name the job in the message of a ConfigError, where there are several."""
    try:
        yield
    except ConfigError as error:
        if alone:
            raise
        raise ConfigError(
            f"job {planned.number} ({' '.join(map(mask_argument, planned.overrides))}): {error}"
        ) from None


def _returned(planned: "PlannedJob", status: JobStatus, value: Any) -> JobReturn:
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
    """Return True if a composed ``launcher`` is a rehearsal."""
    kind = OmegaConf.get_type(settings)
    return isinstance(kind, type) and issubclass(kind, RehearsalConfig)


def hold_rehearsal() -> None:
    """Start a rehearsal for other terminals, print the variables that point them to it, and wait for Ctrl-C."""
    with rehearsal_environment(rehearsed=True):
        # A leftover profile or token would select another account.
        print("unset $(env | grep -o '^AWS_[A-Z0-9_]*')")
        for name, value in os.environ.items():
            if name.startswith("AWS_"):
                print(f"export {name}={value}")
        print("Paste these into another terminal; Ctrl-C ends it all.", file=sys.stderr, flush=True)
        sys.stdout.flush()
        threading.Event().wait()


@contextmanager
def rehearsal_environment(*, rehearsed: bool) -> Iterator[None]:
    """Point AWS's clients to a rehearsal, or leave them alone.

    Args:
        rehearsed: start a rehearsal, which ends with this context.

    Raises:
        ConfigError: the rehearsal is not installed.
        ResourceError: it did not start.
    """
    if not rehearsed:
        yield
        return
    try:
        import sagemaker_rehearsal
    except ModuleNotFoundError:
        raise ConfigError(
            "The rehearsal needs the package sagemaker-rehearsal: pip install 'bincounter[rehearsal]'"
        ) from None
    before = dict(os.environ)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bincounter-rehearsal-"))
        try:
            variables = stack.enter_context(sagemaker_rehearsal.rehearsed(Path(folder)))
        except sagemaker_rehearsal.StartError as error:
            raise ResourceError(str(error)) from None
        log.info("Rehearsing on this machine: nothing is billed, and the spot saving shown is invented.")
        _replace_environment({**sagemaker_rehearsal.without_aws(before), **variables})
        try:
            yield
        finally:
            _replace_environment(before)


def _replace_environment(variables: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)
