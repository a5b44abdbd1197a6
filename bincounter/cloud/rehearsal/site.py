"""What all jobs of a control plane share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bincounter.cloud.rehearsal.processes import ProcessGroups


@dataclass(frozen=True)
class Site:
    """The place where jobs run.

    Attributes:
        folder: each job has a folder in it.
        endpoint: the plane's own address, which jobs use as well.
        grace: seconds between SIGTERM and SIGKILL.
        s3: boto3 client of the plane's own S3, over HTTP like everybody's.
        logs: boto3 client of its CloudWatch Logs.
        groups: the processes of all jobs.
    """

    folder: Path
    endpoint: str
    grace: float
    s3: Any
    logs: Any
    groups: ProcessGroups
