"""Run of a training job: attempts, interruptions, stops and limits."""

import itertools
import shutil
import threading
import time
import traceback
from contextlib import suppress
from enum import Enum
from pathlib import Path

from botocore.exceptions import ClientError

from sagemaker_rehearsal import INTERRUPT_AFTER, INTERRUPTIONS
from sagemaker_rehearsal.container_logs import GROUP
from sagemaker_rehearsal.site import Site
from sagemaker_rehearsal.storage import join_uri, split_uri, upload_archive
from sagemaker_rehearsal.training_host import TENSORS_END, TENSORS_IN_S3, Host, MissingData
from sagemaker_rehearsal.training_record import JobRecord

_TICK = 0.3  # seconds between two uploads of a running job's log and checkpoints


class _End(Enum):
    """Reason for the end of an attempt; the value is the job's status message."""

    EXITED = "The container ended"
    NO_DATA = "Input data could not be downloaded"
    INTERRUPTED = "Spot capacity was taken back"
    STOPPED = "Training job stopped"
    MAX_RUNTIME = "Training job ran for MaxRuntimeInSeconds"
    MAX_WAIT = "Training job took MaxWaitTimeInSeconds"


_STOPS = {_End.STOPPED: "Stopped", _End.MAX_RUNTIME: "MaxRuntimeExceeded", _End.MAX_WAIT: "MaxWaitTimeExceeded"}


class TrainingJob:
    """One training job, run by a thread of its own.

    Args:
        site: state shared by all jobs.
        record: record with the request, for the job's state.
    """

    def __init__(self, site: Site, record: JobRecord) -> None:
        self._site = site
        self._record = record
        request = record.request
        environment = request.get("Environment", {})
        pauses = environment.get(INTERRUPTIONS)
        self._pauses = [float(pause) for pause in pauses.split(",")] if pauses else []
        self._checkpoint: str | None = environment.get(INTERRUPT_AFTER)
        limits = request["StoppingCondition"]
        self._max_runtime: float = limits.get("MaxRuntimeInSeconds", float("inf"))
        self._max_wait: float = limits.get("MaxWaitTimeInSeconds", float("inf"))
        self._names = sorted(f"127.0.0.{number + 1}" for number in range(request["ResourceConfig"]["InstanceCount"]))
        self._hosts: list[Host] = []
        self._failure = ""
        self._epoch = 0

    def start(self) -> None:
        """Start the job's thread."""
        threading.Thread(target=self._run, name=self._record.name, daemon=True).start()

    def _run(self) -> None:
        _wipe(self._folder)  # of a killed plane
        try:
            self._finish(self._run_attempts())
        except Exception as error:  # any: clients wait for the end of the job
            traceback.print_exc()
            message = f"InternalServerError: the rehearsal itself failed: {error!r}"
            self._record.finish("Failed", "Failed", "Training job failed", failure=message)
        _wipe(self._folder)

    @property
    def _folder(self) -> Path:
        return self._site.folder / "jobs" / self._record.name

    def _run_attempts(self) -> _End:
        for pause in itertools.chain(self._pauses, itertools.repeat(None)):
            self._hosts = [Host(self._site, self._record, number, self._names) for number in range(len(self._names))]
            try:
                end = self._attempt(pause)
            finally:
                for host in self._hosts:
                    host.end()
            if end is not _End.INTERRUPTED:
                return end
            self._record.enter("Interrupted", end.value)
            _wipe(self._folder)
        raise AssertionError("unreachable: the last attempt is never interrupted")

    def _attempt(self, pause: float | None) -> _End:
        self._record.enter("Starting", "Starting the training job")
        self._record.enter("Downloading", "Downloading input data")
        try:
            for host in self._hosts:
                host.prepare()
        except (MissingData, ClientError) as error:
            self._failure = _download_failure(error)
            return _End.NO_DATA
        if self._record.stop_requested.is_set():
            return _End.STOPPED
        self._record.enter("Training", "Training is in progress")
        with suppress(self._site.logs.exceptions.ResourceAlreadyExistsException):
            self._site.logs.create_log_group(logGroupName=GROUP)
        self._epoch = max(int(time.time()), self._epoch + 1)
        for host in self._hosts:
            host.start(self._epoch)
        return self._watch(pause)

    def _watch(self, pause: float | None) -> _End:
        """Upload logs and checkpoints until the attempt ends, or has to be stopped."""
        interruption = float("inf")
        while True:
            self._wait()
            uploaded = self._sync()
            has_checkpoint = bool(uploaded) if self._checkpoint is None else self._checkpoint in uploaded
            if pause is not None and has_checkpoint:
                interruption, pause = time.monotonic() + pause, None
            codes = [host.exit_code() for host in self._hosts]
            if any(codes) or None not in codes:
                self._failure = self._exit_failure()
                return _End.EXITED
            if end := self._due_end(interruption):
                self._stop_hosts()
                return end

    def _due_end(self, interruption: float) -> _End | None:
        if self._record.stop_requested.is_set():
            return _End.STOPPED
        if time.time() - self._record.created > self._max_wait:
            return _End.MAX_WAIT
        if self._record.training_seconds() > self._max_runtime:
            return _End.MAX_RUNTIME
        return _End.INTERRUPTED if time.monotonic() >= interruption else None

    def _wait(self) -> None:
        """Wait for the next upload, or until a container ends."""
        running = self._running()
        until = time.monotonic() + _TICK
        while time.monotonic() < until and self._running() == running:
            time.sleep(0.05)

    def _running(self) -> int:
        return sum(host.exit_code() is None for host in self._hosts)

    def _sync(self) -> list[str]:
        return [name for host in self._hosts for name in host.sync()]

    def _stop_hosts(self) -> None:
        """Send SIGTERM, and upload checkpoints until the containers end or the grace is over."""
        for host in self._hosts:
            host.terminate()
        until = time.monotonic() + self._site.grace
        while time.monotonic() < until and self._running():
            self._wait()
            self._sync()

    def _exit_failure(self) -> str:
        """Return the FailureReason of the first failed host, whose failure ends the job."""
        for host in self._hosts:
            if code := host.exit_code():
                return f"AlgorithmError: {host.failure()}, exit code: {code}"
        return ""

    def _finish(self, end: _End) -> None:
        """Upload the results, as AWS does, and end the job."""
        if end is _End.NO_DATA:
            self._record.finish("Failed", "Failed", end.value, failure=self._failure)
            return
        self._record.enter("Uploading", "Uploading generated training model")
        self._sync()
        if hook := self._record.request.get(
            "DebugHookConfig"
        ):  # mark tensors as complete, as smdebug does not in a job
            bucket, key = split_uri(join_uri(hook["S3OutputPath"], self._record.name, TENSORS_IN_S3, TENSORS_END))
            self._site.s3.put_object(Bucket=bucket, Key=key, Body=b"")
        outputs = [host.base / "output/data" for host in self._hosts]
        if _any_files(outputs):
            upload_archive(self._site.s3, outputs, self._record.output_uri("output.tar.gz"))
        if self._failure:
            self._record.finish("Failed", "Failed", "Training job failed", failure=self._failure)
            return
        if end is _End.EXITED and self._record.stop_requested.is_set():
            end = _End.STOPPED
        models = [host.base / "model" for host in self._hosts]
        model = end is _End.EXITED or _any_files(models)
        if model:
            upload_archive(self._site.s3, models, self._record.output_uri("model.tar.gz"))
        if end is _End.EXITED:
            self._record.finish("Completed", "Completed", "Training job completed", model=model)
        else:
            self._record.finish("Stopped", _STOPS[end], end.value, model=model)


def _any_files(folders: list[Path]) -> bool:
    return any(any(folder.iterdir()) for folder in folders if folder.is_dir())


def _download_failure(error: MissingData | ClientError) -> str:
    code = error.response["Error"]["Code"] if isinstance(error, ClientError) else "NoSuchKey"
    return f"ClientError: Data download failed:{code}: {error}"


def _wipe(folder: Path) -> None:
    """Delete a folder; it is renamed first, since a dying process may still write into it."""
    renamed = folder.with_name(f".{folder.name}.{time.time_ns()}")
    with suppress(FileNotFoundError):
        folder.rename(renamed)
        shutil.rmtree(renamed, ignore_errors=True)
