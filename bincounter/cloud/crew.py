"""Jobs carried out side by side: submitted, followed, fetched, and told of; Ctrl-C asks what becomes of them."""

import logging
import shlex
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bincounter.cloud.aws_errors import explain_failure
from bincounter.cloud.fetch import cost, fetch
from bincounter.cloud.jobs import Job, load, stop, submit
from bincounter.cloud.watch import follow
from bincounter.errors import BinCounterError, Interrupted, ResourceError

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

log = logging.getLogger(__name__)


@dataclass
class Task:
    """A job to carry out.

    Attributes:
        job: with its folder.
        request: to submit first, or ``None`` where the job is under way already.
        error: what became of it, if it did not complete.
    """

    job: Job
    request: dict[str, Any] | None
    error: BinCounterError | None = None


class Crew:
    """Carries jobs out.

    Args:
        account: they run in.
        tasks: the jobs.
        at_once: how many of them run at a time.
    """

    def __init__(self, account: "Account", tasks: Sequence[Task], *, at_once: int) -> None:
        self._account, self._tasks, self._at_once = account, tasks, at_once
        self._leave = threading.Event()  # followers return, jobs go on
        self._no_more = threading.Event()  # what is not submitted yet stays so
        self._running: dict[str, Task] = {}

    def submit_all(self) -> None:
        """Submit and return."""
        self._submit(self._tasks[0])
        with ThreadPoolExecutor(self._at_once) as pool:
            for _ in pool.map(self._submit, self._tasks[1:]):
                pass

    def carry_out(self) -> None:
        """Submit, follow and fetch all; errors are left in the tasks.

        Raises:
            BinCounterError: not even the first job could be submitted.
            Interrupted: by Ctrl-C; the jobs go on.
        """
        if self._tasks[0].request is not None:  # what is wrong with the account is wrong for every job: told once
            self._submit(self._tasks[0])
        with ThreadPoolExecutor(self._at_once) as pool:
            futures = [pool.submit(self._carry_out, task) for task in self._tasks]
            while not self._all_done(futures):
                pass

    def _all_done(self, futures: Sequence["Future[None]"]) -> bool:
        try:
            wait(futures)
        except KeyboardInterrupt:
            self._no_more.set()
            if _wants_to_stop(len(self._running)):
                for name in list(self._running):
                    stop(self._account, name)
                log.info("Stopping; what the jobs have is fetched as they end.")
                return False
            self._leave.set()
            wait(futures)
            raise Interrupted(_how_to_attach([task.job for task in self._tasks])) from None
        for future in futures:
            future.result()
        return True

    def _submit(self, task: Task) -> None:
        assert task.request is not None
        submit(self._account, task.request)
        task.request = None
        task.job.save()
        log.info("job %d: %s\n  %s", task.job.number, task.job.name, self._account.console_link(task.job.name))

    def _carry_out(self, task: Task) -> None:
        try:
            if task.request is not None:
                if self._no_more.is_set():
                    raise ResourceError(f"job {task.job.number} was not submitted, since the launch was interrupted")
                self._submit(task)
            self._follow(task)
        except BinCounterError as error:
            task.error = error
        if task.error is not None and len(self._tasks) > 1:
            print(f"Error in job {task.job.number}: {task.error}", file=sys.stderr)

    def _follow(self, task: Task) -> None:
        job = task.job
        self._running[job.name] = task
        ended = follow(self._account, job, self._leave, several=len(self._tasks) > 1)
        del self._running[job.name]
        if not ended:
            return
        fetch(self._account, job)
        log.info("%s: %s", job.name, cost(job))
        if (job.folder / "report.html").exists():
            log.info("Report: %s", job.folder / "report.html")
        task.error = _ending(job)


def _ending(job: Job) -> BinCounterError | None:
    """What to tell of a job that did not complete."""
    status = job.description["TrainingJobStatus"]
    if status == "Completed":
        return None
    if status == "Failed":
        return ResourceError(explain_failure(job.description.get("FailureReason", "")))
    given = [override for override in job.overrides if not override.startswith("paths.output_dir=")]
    go_on = shlex.join(["python", "train.py", *given, f"launcher.checkpoint_uri={job.checkpoint_uri}"])
    return ResourceError(
        f"{job.name} was stopped ({job.description.get('SecondaryStatus')}) and is incomplete: what it has is in "
        f"{job.folder}; go on there with: {go_on}, or here with: "
        f"{shlex.join(['python', 'train.py', 'ckpt_path=last', f'paths.output_dir={job.folder}'])}"
    )


def _wants_to_stop(running: int) -> bool:
    if not sys.stdin.isatty():
        return False
    print(f"\nStop the {running} running job{'s' if running != 1 else ''}? [y/N] ", end="", file=sys.stderr, flush=True)
    try:
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        return False


def _how_to_attach(jobs: Sequence[Job]) -> str:
    folder = jobs[0].folder if len(jobs) == 1 else jobs[0].folder.parent
    return f"Interrupted; submitted jobs go on and are paid for. Follow them again with: {attach_command(folder)}"


def attach(folder: Path) -> list[Path]:
    """Follow submitted jobs again and fetch what they have.

    Args:
        folder: of a run or of a multirun.

    Returns:
        the folders of the runs.

    Raises:
        BinCounterError: a job did not complete.
    """
    from bincounter.cloud.account import Account

    tasks = [Task(job, None) for job in load(folder)]
    Crew(Account(tasks[0].job.region), tasks, at_once=len(tasks)).carry_out()
    for task in tasks:
        if task.error is not None:
            raise task.error
    return [task.job.folder for task in tasks]


def attach_command(folder: Path) -> str:
    """What to type to follow the jobs of a folder again."""
    return f"python -m bincounter attach {folder}"
