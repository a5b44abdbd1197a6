"""Parallel jobs: submit, follow, fetch, and stop on Ctrl-C."""

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bincounter.cloud.aws_errors import NotAnswered, describe_failure
from bincounter.cloud.job_log import epoch_scores, follow_job
from bincounter.cloud.jobs import (
    Job,
    fetch_inspection,
    fetch_run,
    find_records,
    format_cost,
    in_region,
    is_recorded,
    read_job,
    stop,
    submit,
)
from bincounter.config.overrides import drop_overrides, without_recipe
from bincounter.config.quoting import shell_command
from bincounter.errors import BinCounterError, Interrupted, Pruned, ResourceError, UserError
from bincounter.redaction import mask_text

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

log = logging.getLogger(__name__)

PruningPolicy = Callable[[int, int, Mapping[str, float], float], bool]
"""Pruning policy: (job number, epoch from 1, its scores, seconds of the run until then) -> stop the job?"""


@dataclass
class RunningJob:
    """Job to run.

    Attributes:
        job: its record.
        request: to submit first, or ``None`` where the job runs already.
        error: error of a job that did not complete or was pruned.
        ended: whether it has ended.
    """

    job: Job
    request: dict[str, Any] | None
    error: BinCounterError | None = None
    ended: bool = False


class JobRunner:
    """Run jobs in parallel.

    Args:
        account: to run them in, each in its own region.
        tasks: the jobs.
        at_once: jobs at a time.
        rehearsed: whether they end with this command.
        repeats: whether the same command submits what is missing.
        judge: pruning policy, where they are trials of a search that prunes.
    """

    def __init__(
        self,
        account: "Account",
        tasks: Sequence[RunningJob],
        *,
        at_once: int,
        rehearsed: bool = False,
        repeats: bool = False,
        judge: PruningPolicy | None = None,
    ) -> None:
        self._tasks, self._at_once, self._rehearsed = tasks, at_once, rehearsed
        self._accounts = {region: in_region(account, region) for region in {task.job.region for task in tasks}}
        self._repeats, self._judge = repeats, judge
        self._leave = threading.Event()  # followers return, jobs still run
        self._stopping = threading.Event()  # running jobs are stopped, others are not submitted
        self._running: dict[str, RunningJob] = {}

    @property
    def interrupted(self) -> bool:
        """Return True if Ctrl-C has stopped the running jobs."""
        return self._stopping.is_set()

    def submit_all(self) -> None:
        """Submit all jobs and return.

        Raises:
            BinCounterError: one could not be submitted; the others have been.
        """
        with self._naming_submitted(), ThreadPoolExecutor(self._at_once) as pool:
            list(pool.map(self._submit, self._tasks))

    def run_all(self) -> None:
        """Submit, follow and fetch all jobs; errors are left in the tasks.

        Raises:
            BinCounterError: not even the first job could be submitted.
            Interrupted: by Ctrl-C; the jobs still run.
        """
        with self._naming_submitted():
            if self._tasks[0].request is not None:  # an error of the account affects every job: raise it once
                self._submit(self._tasks[0])
        pool = ThreadPoolExecutor(self._at_once)
        try:
            futures = [pool.submit(self._run, task) for task in self._tasks]
            stopping = False
            while not self._all_done(futures, stopping=stopping):
                stopping = True
        finally:
            pool.shutdown(wait=False)  # what Ctrl-C leaves behind is reported at once

    @contextmanager
    def _naming_submitted(self) -> Iterator[None]:
        """Add the running jobs to the message of an error, or of Ctrl-C, while jobs are submitted."""
        try:
            yield
        except (BinCounterError, KeyboardInterrupt) as error:
            if isinstance(error, KeyboardInterrupt):
                raise self._interrupted() from None
            submitted = self._submitted()
            raise _and(error, self._left_behind(submitted)) if submitted else error from None

    def _submitted(self) -> list[Job]:
        return [task.job for task in self._tasks if is_recorded(task.job)]

    def _interrupted(self) -> Interrupted:
        """Return the error that says what Ctrl-C has left running, and what it has kept from starting."""
        submitted = self._submitted()
        sentence = self._left_behind(submitted)
        missing = [str(task.job.number) for task in self._tasks if task.job not in submitted]
        if submitted and missing and not (self._rehearsed or self._repeats):
            left_out = f"{len(missing)} of {len(self._tasks)} jobs were not submitted"
            sentence += f". {left_out}: launch the values of job {', '.join(missing)} again"
        return Interrupted(sentence)

    def _all_done(self, futures: Sequence["Future[None]"], *, stopping: bool) -> bool:
        """Wait for all jobs, after stopping those that run; return False if Ctrl-C asks to stop them."""
        try:
            if stopping:
                self._stop_running()
            wait(futures)
        except KeyboardInterrupt:
            if not self._rehearsed and not (self._running and ask_to_stop(len(self._running))):
                self._leave.set()
                self._stopping.set()
                with suppress(KeyboardInterrupt):
                    wait(futures)
                raise self._interrupted() from None
            return False
        for future in futures:
            future.result()
        return True

    def _stop_running(self) -> None:
        self._stopping.set()
        log.info("Stopping; results are fetched as the jobs end.")
        for task in list(self._running.values()):
            self._stop(task.job)

    def _stop(self, job: Job) -> None:
        """Stop a job; one that cannot be stopped is still followed, and its results are fetched."""
        try:
            stop(self._accounts[job.region], job.name)
        except BinCounterError as error:
            log.warning("%s. %s still runs, and is billed: press Ctrl-C to try again.", error, job.name)

    def _submit(self, task: RunningJob) -> None:
        assert task.request is not None
        account = self._accounts[task.job.region]
        submit(account, task.job, task.request)
        task.request = None
        log.info("job %d: %s\n  %s", task.job.number, task.job.name, account.console_link(task.job.name))

    def _run(self, task: RunningJob) -> None:
        try:
            if task.request is not None:
                if self._stopping.is_set():
                    raise ResourceError(f"job {task.job.number} was not submitted, since the launch was interrupted")
                try:
                    self._submit(task)
                except NotAnswered as error:
                    raise _and(error, self._left_behind([task.job])) from None
            self._follow(task)
        except BinCounterError as error:
            task.error = error
        ended = sum(one.ended for one in self._tasks)
        if len(self._tasks) > 1 and not self._leave.is_set():
            if isinstance(task.error, Pruned):
                log.info("%s", task.error)
            elif task.error is not None:
                print(f"Error in job {task.job.number}: {task.error}", file=sys.stderr)
            log.info("%d of %d jobs have ended", ended, len(self._tasks))

    def _follow(self, task: RunningJob) -> None:
        job = task.job
        self._running[job.name] = task
        if self._stopping.is_set() and not self._leave.is_set():  # Ctrl-C came while it was submitted
            self._stop(job)
        try:
            task.ended = follow_job(
                self._accounts[job.region],
                job,
                self._leave,
                several=len(self._tasks) > 1,
                on_line=None if self._judge is None else partial(self._check_epoch, job, self._judge),
            )
        except BinCounterError as error:  # Ctrl-C still stops it
            raise _and(error, self._left_behind([job])) from None
        self._running.pop(job.name, None)  # a copy of the run's folder names the same job
        job.save()
        if task.ended:
            task.error = self._fetched(job)
            if job.pruned and job.description["TrainingJobStatus"] == "Stopped":
                task.error = Pruned(f"{job.name} was pruned: {format_cost(job)}")

    def _check_epoch(self, job: Job, judge: PruningPolicy, line: str, seconds: float) -> None:
        """Stop a job by a log line that ends an epoch, if the policy prunes it; a resumed job logs an epoch twice."""
        scores = epoch_scores(line)
        if scores is None:
            return
        try:
            stopped = judge(job.number, *scores, seconds)  # of a pruned job, too: its later epochs count as run
        except Exception as error:  # such as a study whose database is locked; the job is followed all the same
            log.warning("%s could not be pruned (%s): it runs on.", job.name, mask_text(repr(error)))
            return
        if not stopped or job.pruned:
            return
        job.pruned = True
        job.save()  # keeps the reason of the stop for later commands
        try:
            stop(self._accounts[job.region], job.name)
        except BinCounterError as error:
            log.warning("%s. The job runs until its next epoch.", error)
            job.pruned = False

    def _fetched(self, job: Job) -> BinCounterError | None:
        """Fetch the results of a job; return the error if it did not complete or cannot be fetched."""
        log.info("%s: %s", job.name, format_cost(job))
        try:
            fetch_run(self._accounts[job.region], job)
        except (BinCounterError, OSError) as error:
            reason = str(error) if isinstance(error, BinCounterError) else f"{error.filename}: {error.strerror}"
            ended = _ending(job, rehearsed=self._rehearsed)
            failed = f"{ended}; its results could not be fetched" if ended else f"{job.name} could not be fetched"
            return ResourceError(f"{failed} ({reason}): repeat it with {attach_command(job.folder)}")
        try:
            fetch_inspection(self._accounts[job.region], job)
        except (BinCounterError, OSError) as error:  # the run itself is here
            log.warning(
                "%s. What AWS's Debugger and Profiler saved is missing: repeat it with %s",
                error,
                attach_command(job.folder),
            )
        if (job.folder / "report.html").exists():
            log.info("Report: %s", job.folder / "report.html")
        return _ending(job, rehearsed=self._rehearsed)

    def _left_behind(self, jobs: Sequence[Job]) -> str:
        if self._rehearsed:
            return "Interrupted: the rehearsal has ended, and its jobs with it"
        if not jobs:
            return "Interrupted before any job was submitted"
        folder = jobs[0].folder if len(self._tasks) == 1 else jobs[0].folder.parent
        names = ", ".join(job.name for job in jobs) if len(jobs) < 3 else f"{len(jobs)} jobs"
        return f"{names} may still run, and be billed: follow with {attach_command(folder)}"


def _and(error: BinCounterError, sentence: str) -> BinCounterError:
    """Append a sentence to the message of an error."""
    return type(error)(f"{error}. {sentence}")


def _ending(job: Job, *, rehearsed: bool) -> BinCounterError | None:
    """Return the error of a job that did not complete."""
    status = job.description["TrainingJobStatus"]
    if status == "Completed":
        return None
    if status == "Failed":
        return ResourceError(describe_failure(job.description.get("FailureReason", "")))
    ways = []
    if not rehearsed:
        given = drop_overrides(job.overrides, "paths.output_dir", "launcher.checkpoint_uri", "hparams_search", "hydra")
        ways.append(
            shell_command(
                "bincounter", "train", *without_recipe(given), settings={"launcher.checkpoint_uri": job.checkpoint_uri}
            )
        )
    resume = shell_command("bincounter", "train", "ckpt_path=last", settings={"paths.output_dir": job.folder})
    if (job.folder / "checkpoints" / "last.ckpt").exists():
        ways.append(f"{resume} (here)")
    return ResourceError(
        f"{job.name} was stopped ({job.description.get('SecondaryStatus')}) and is incomplete: its files are in "
        f"{job.folder}; resume with: {', or '.join(ways) or 'the same command'}"
    )


def ask_to_stop(running: int) -> bool:
    """Ask at a terminal whether to stop the running jobs; without one they are not stopped."""
    if not sys.stdin.isatty():
        return False
    print(f"\nStop the {running} running job{'s' if running != 1 else ''}? [y/N] ", end="", file=sys.stderr, flush=True)
    try:
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        return False


def attach(folder: Path) -> tuple[list[Path], list[BinCounterError]]:
    """Follow submitted jobs again and fetch their results; a job whose record is damaged is left out.

    Args:
        folder: of a run or of a multirun.

    Returns:
        folders of the jobs that completed, and the errors of the others.

    Raises:
        UserError: there is no record that can be read.
    """
    from bincounter.cloud.account import Account

    tasks, damaged = [], []
    for record in find_records(folder):
        try:
            tasks.append(RunningJob(read_job(record), None))
        except UserError as error:
            damaged.append(error)
    if not tasks:
        raise damaged[0]
    for unread in damaged:
        log.warning("%s. Its job is not followed.", unread)
    JobRunner(Account(tasks[0].job.region), tasks, at_once=len(tasks)).run_all()
    errors = [task.error for task in tasks if task.error is not None]
    if damaged:
        errors.append(ResourceError(f"{len(damaged)} of the jobs of {folder} were not followed: {damaged[0]}"))
    return [task.job.folder for task in tasks if task.error is None], errors


def attach_command(folder: Path) -> str:
    """Return the command that follows the jobs of a folder again."""
    return shell_command("bincounter", "attach", folder)
