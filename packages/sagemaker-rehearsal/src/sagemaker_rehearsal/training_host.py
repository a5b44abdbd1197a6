"""Instance of a training job: a folder laid out like /opt/ml, and the toolkit's ``train`` in it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sagemaker_rehearsal import client_environment
from sagemaker_rehearsal.container_logs import LogStream
from sagemaker_rehearsal.site import Site
from sagemaker_rehearsal.storage import SyncedFolder, download, join_uri, list_objects
from sagemaker_rehearsal.training_record import JobRecord

# In a container the toolkit is process 1, which SIGTERM does not end, while its children have the default action. So
# does an empty handler, which children do not inherit, unlike an ignored signal.
_TRAIN = """
import signal
signal.signal(signal.SIGTERM, lambda *_: None)
from sagemaker_training.cli.train import main
main()
"""

_GROUP = "homogeneousCluster"
TENSORS = "output/tensors"
"""Folder, below the base, of tensors saved by SageMaker Debugger's hook."""

TENSORS_IN_S3, TENSORS_END = "debug-output", "training_job_end.ts"
"""Folder of tensors below the job's, and the file in it that marks them as complete."""


class MissingData(Exception):
    """A channel's prefix holds no object."""


class Host:
    """One instance of a training job.

    Args:
        site: state shared by all jobs.
        record: the job's record.
        number: index of the instance, from 0.
        names: host names of all instances of the job.
    """

    def __init__(self, site: Site, record: JobRecord, number: int, names: list[str]) -> None:
        self._site = site
        self._record = record
        self._number = number
        self._names = names
        self.base = site.folder / "jobs" / record.name / f"algo-{number + 1}"
        checkpoints = record.request.get("CheckpointConfig")
        self._checkpoints = (
            SyncedFolder(site.s3, checkpoints["S3Uri"], self.base / "checkpoints") if checkpoints else None
        )
        hook = record.request.get("DebugHookConfig")
        self._tensors = (
            SyncedFolder(site.s3, join_uri(hook["S3OutputPath"], record.name, TENSORS_IN_S3), self.base / TENSORS)
            if hook
            else None
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._log: LogStream | None = None
        # Not below the base: paths of sockets in it may have at most 107 characters.
        self._scratch = tempfile.TemporaryDirectory(prefix="rehearsal-", ignore_cleanup_errors=True)

    def prepare(self) -> None:
        """Create the folders, write the configuration, download channels and checkpoints.

        Raises:
            MissingData: a channel is empty.
            botocore.exceptions.ClientError: S3 refuses a request.
        """
        for name in ("input/config", "input/data", "model", "output/data", "checkpoints", "code"):
            (self.base / name).mkdir(parents=True)
        request = self._record.request
        self._write("hyperparameters.json", request.get("HyperParameters", {}))
        self._write("resourceconfig.json", self._resources(request["ResourceConfig"]["InstanceType"]))
        channels = request.get("InputDataConfig", [])
        mode = request["AlgorithmSpecification"]["TrainingInputMode"]
        self._write(
            "inputdataconfig.json", {channel["ChannelName"]: _channel_config(channel, mode) for channel in channels}
        )
        if hook := request.get("DebugHookConfig"):
            self._write("debughookconfig.json", {**hook, "LocalPath": str(self.base / TENSORS)})
        for channel in channels:
            self._fetch(channel)
        if self._checkpoints:
            self._checkpoints.restore()

    def _write(self, name: str, content: dict[str, Any]) -> None:
        (self.base / "input/config" / name).write_text(json.dumps(content), encoding="utf-8")

    def _resources(self, instance_type: str) -> dict[str, Any]:
        group = {"instance_group_name": _GROUP, "instance_type": instance_type, "hosts": self._names}
        return {
            "current_host": self._names[self._number],
            "current_instance_type": instance_type,
            "current_group_name": _GROUP,
            "hosts": self._names,
            "instance_groups": [group],
            "network_interface_name": "lo",
        }

    def _fetch(self, channel: dict[str, Any]) -> None:
        source = channel["DataSource"]["S3DataSource"]
        keys = list_objects(self._site.s3, source["S3Uri"])
        if not keys:
            raise MissingData(f'No S3 objects found under S3 URL "{source["S3Uri"]}" given in input data source.')
        if source.get("S3DataDistributionType") == "ShardedByS3Key":
            keys = keys[self._number :: len(self._names)]
        download(self._site.s3, source["S3Uri"], keys, self.base / "input/data" / channel["ChannelName"])

    def start(self, epoch: int) -> None:
        """Start the toolkit.

        Args:
            epoch: number in the log stream's name.
        """
        self._process = self._site.groups.start([sys.executable, "-P", "-c", _TRAIN], self.base, self._environment())
        assert self._process.stdout is not None
        stream = f"{self._record.name}/algo-{self._number + 1}-{epoch}"
        self._log = LogStream(self._site.logs, stream, self._process.stdout, self._record.metrics)

    def _environment(self) -> dict[str, str]:
        """Return the container's variables: the request's, the plane's, and a few of this machine's."""
        kept = ("HOME", "OMP_NUM_THREADS")
        requested = self._record.request.get("Environment", {})
        return {
            **{name: os.environ[name] for name in kept if name in os.environ},
            **{name: value for name, value in requested.items() if not name.startswith("REHEARSAL_")},
            **client_environment(self._site.endpoint),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.defpath]),
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",  # as in AWS's images
            "PIP_NO_INDEX": "1",
            "PIP_NO_DEPS": "1",  # jobs list all their requirements, and resolving them takes seconds
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "SAGEMAKER_BASE_DIR": str(self.base),
            "TMPDIR": self._scratch.name,
            "TRAINING_JOB_NAME": self._record.name,
            "TRAINING_JOB_ARN": self._record.arn,
        }

    def exit_code(self) -> int | None:
        """Return the container's exit code (128 + signal, as in shells), ``None`` while it runs."""
        assert self._process is not None
        code = self._process.poll()
        return code if code is None or code >= 0 else 128 - code

    def sync(self) -> list[str]:
        """Upload the container's new output, its changed checkpoints and its changed tensors.

        Returns:
            Names of the uploaded checkpoints.
        """
        if self._log:
            self._log.send()
        uploaded = self._checkpoints.upload_changes() if self._checkpoints else []
        if self._tensors:  # after the checkpoints, whose earlier tensors must not be missing
            self._tensors.upload_changes()
        return uploaded

    def terminate(self) -> None:
        """Send SIGTERM, only to the toolkit."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """End the container's processes, and send the rest of its log."""
        if self._process and self._log:
            self._site.groups.end(self._process)
            self._log.close()
        self._scratch.cleanup()

    def failure(self) -> str:
        """Return the first 1024 characters of the container's failure file."""
        path = self.base / "output/failure"
        return path.read_text(encoding="utf-8", errors="replace")[:1024] if path.is_file() else ""


def _channel_config(channel: dict[str, Any], mode: str) -> dict[str, str]:
    """Return a channel's entry in inputdataconfig.json."""
    source = channel["DataSource"]["S3DataSource"]
    config = {
        "TrainingInputMode": channel.get("InputMode", mode),
        "S3DistributionType": source.get("S3DataDistributionType", "FullyReplicated"),
        "RecordWrapperType": channel.get("RecordWrapperType", "None"),
    }
    if "ContentType" in channel:
        config["ContentType"] = channel["ContentType"]
    return config
