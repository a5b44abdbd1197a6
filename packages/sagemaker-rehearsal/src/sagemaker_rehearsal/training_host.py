"""One instance of a training job: a folder like /opt/ml, and the toolkit's ``train`` in it."""

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
from sagemaker_rehearsal.storage import SyncedFolder, download, joined, list_objects
from sagemaker_rehearsal.training_record import JobRecord

# In a container the toolkit is process 1, which SIGTERM does not end, while its children have the default action. A
# handler that does nothing is the same: unlike an ignored signal it is not inherited.
_TRAIN = """
import signal
signal.signal(signal.SIGTERM, lambda *_: None)
from sagemaker_training.cli.train import main
main()
"""

_GROUP = "homogeneousCluster"
TENSORS = "output/tensors"
"""Below the base, where SageMaker Debugger's hook saves what goes to S3."""

TENSORS_IN_S3, TENSORS_END = "debug-output", "training_job_end.ts"
"""Below the job's folder; and the file among them that says that there will be no more."""


class MissingData(Exception):
    """Nothing is stored under a channel's prefix."""


class Host:
    """An instance.

    Args:
        site: where it stands.
        record: the job.
        number: the instance's, from 0.
        names: of all instances of the job, as they can be looked up.
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
            SyncedFolder(site.s3, joined(hook["S3OutputPath"], record.name, TENSORS_IN_S3), self.base / TENSORS)
            if hook
            else None
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._log: LogStream | None = None
        # Not below the base: the names of sockets in it may have no more than 107 characters.
        self._scratch = tempfile.TemporaryDirectory(prefix="rehearsal-", ignore_cleanup_errors=True)

    def prepare(self) -> None:
        """Make the folders, write the configuration, fetch channels and checkpoints.

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
        self._write("inputdataconfig.json", {channel["ChannelName"]: _described(channel, mode) for channel in channels})
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
            epoch: the number in the log stream's name.
        """
        self._process = self._site.groups.start([sys.executable, "-P", "-c", _TRAIN], self.base, self._environment())
        assert self._process.stdout is not None
        stream = f"{self._record.name}/algo-{self._number + 1}-{epoch}"
        self._log = LogStream(self._site.logs, stream, self._process.stdout, self._record.metrics)

    def _environment(self) -> dict[str, str]:
        """What the container's processes see: the request's variables and the plane's, little of this machine's."""
        kept = ("HOME", "OMP_NUM_THREADS")
        asked = self._record.request.get("Environment", {})
        return {
            **{name: os.environ[name] for name in kept if name in os.environ},
            **{name: value for name, value in asked.items() if not name.startswith("REHEARSAL_")},
            **client_environment(self._site.endpoint),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.defpath]),
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",  # as in AWS's images
            "PIP_NO_INDEX": "1",
            "PIP_NO_DEPS": "1",  # all is listed: what each needs in turn would be compared for seconds
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "SAGEMAKER_BASE_DIR": str(self.base),
            "TMPDIR": self._scratch.name,
            "TRAINING_JOB_NAME": self._record.name,
            "TRAINING_JOB_ARN": self._record.arn,
        }

    def exit_code(self) -> int | None:
        """The container's exit code as a shell counts it, None while it runs."""
        assert self._process is not None
        code = self._process.poll()
        return code if code is None or code >= 0 else 128 - code

    def sync(self) -> list[str]:
        """Send what the container printed, its changed checkpoints and its changed tensors.

        Returns:
            The names of the uploaded checkpoints.
        """
        if self._log:
            self._log.send()
        uploaded = self._checkpoints.upload_changes() if self._checkpoints else []
        if self._tensors:  # after the checkpoints: nothing is missing of what came before one
            self._tensors.upload_changes()
        return uploaded

    def ask_to_stop(self) -> None:
        """SIGTERM, to the toolkit alone."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """End what is left of the container, and send the rest of its log."""
        if self._process and self._log:
            self._site.groups.end(self._process)
            self._log.close()
        self._scratch.cleanup()

    def failure(self) -> str:
        """The sentence that the container left for people, the first 1024 characters of it."""
        path = self.base / "output/failure"
        return path.read_text(encoding="utf-8", errors="replace")[:1024] if path.is_file() else ""


def _described(channel: dict[str, Any], mode: str) -> dict[str, str]:
    """A channel's entry in inputdataconfig.json."""
    source = channel["DataSource"]["S3DataSource"]
    described = {
        "TrainingInputMode": channel.get("InputMode", mode),
        "S3DistributionType": source.get("S3DataDistributionType", "FullyReplicated"),
        "RecordWrapperType": channel.get("RecordWrapperType", "None"),
    }
    if "ContentType" in channel:
        described["ContentType"] = channel["ContentType"]
    return described
