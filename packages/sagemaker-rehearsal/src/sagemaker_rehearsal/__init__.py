"""SageMaker on this machine: its API on 127.0.0.1, with training jobs, tuning jobs and endpoints that really run.

A control plane (``python -m sagemaker_rehearsal``) serves any boto3 client. moto serves S3, CloudWatch Logs, STS, IAM
and all other services. A training job runs through the ``train`` command of the real ``sagemaker-training`` toolkit, in
a folder laid out like ``/opt/ml``, with spot interruptions on request. A tuning job runs its training jobs.

An endpoint and a transform job serve the archive from S3: it is unpacked, pip has to find its requirements, ``serve
run`` of Ray Serve starts, and only a container that passes the health check is in service. During an update the old
container serves until the new one is healthy; a failed update keeps the old one. Logs, data captures, asynchronous
responses and failures are written to AWS's places. A transform job continues after a bad object and fails at its end.
Bodies and response times have AWS's limits.

Differences to AWS: images are not pulled (jobs run in this Python environment), instance types are names only,
``/opt/ml`` is ``$SAGEMAKER_BASE_DIR``, hosts are called 127.0.0.1, 127.0.0.2, ... instead of algo-1, algo-2, ..., no
permission is checked, pip has no index, the spot discount is invented, and a Bayesian search draws at random. An
endpoint has one variant and one container for any number of instances; serverless and idle endpoints stay started;
nothing scales, traffic moves all at once, alarms are ignored, and a container has 3 minutes to become healthy, not 10.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ACCOUNT = "123456789012"
REGION = "us-east-1"
BUCKET = f"sagemaker-{REGION}-{ACCOUNT}"
ROLE = "rehearsal"
INTERRUPTIONS = "REHEARSAL_INTERRUPTIONS"
"""Variable in the ``Environment`` of a managed spot job: seconds before each interruption, such as ``"5,0"``.

Attempt k is interrupted the k-th number of seconds after its first upload of a checkpoint, so that every attempt makes
progress. ``"5,0"`` interrupts twice, the second time at once.
"""
INTERRUPT_AFTER = "REHEARSAL_INTERRUPT_AFTER"
"""Variable beside :data:`INTERRUPTIONS`: name of a checkpoint file, such as ``"last.ckpt"``.

By default every file in the checkpoint folder is one.
"""


class StartError(Exception):
    """The control plane did not start; its log has the reason."""


def client_environment(endpoint: str) -> dict[str, str]:
    """Return the variables that point AWS clients to the plane at ``endpoint``, and away from the user's own account.

    Add them to an environment of :func:`without_aws`: ``AWS_SESSION_TOKEN`` or ``AWS_PROFILE`` would override them,
    even with an empty value.
    """
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "rehearsal",
        "AWS_SECRET_ACCESS_KEY": "rehearsal",
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def without_aws(environment: Mapping[str, str]) -> dict[str, str]:
    """Return ``environment`` without the variables of AWS clients: profiles, tokens, endpoints of single services."""
    return {name: value for name, value in environment.items() if not name.startswith("AWS_")}


@contextmanager
def rehearsed(folder: Path, grace: float = 2.0) -> Iterator[dict[str, str]]:
    """Run a control plane in a process of its own, which ends with the block or with this process.

    It starts with the bucket ``sagemaker-us-east-1-123456789012`` and the role ``rehearsal``; its state is lost at its
    end.

    Args:
        folder: folder for running jobs and for the plane's log (``plane.log``).
        grace: seconds between SIGTERM and SIGKILL for a stopped or interrupted job; 120 on AWS.

    Yields:
        Variables that point AWS clients to the plane: ``{**without_aws(os.environ), **variables}``.

    Raises:
        StartError: the plane did not start.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "plane.log"
    command = [sys.executable, "-m", __name__, "--folder", str(folder), "--grace", str(grace), "--with-parent"]
    with log.open("wb") as log_file:
        process = subprocess.Popen(
            command,
            cwd=Path(__file__).parents[1],  # to import this package, in any folder of the caller
            env=without_aws(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            text=True,
            start_new_session=True,  # Ctrl-C in a terminal ends only the caller
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        endpoint = process.stdout.readline().strip()
        if not endpoint:
            last = log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
            raise StartError(f"the rehearsal's control plane did not start: {last or 'it printed nothing'}")
        yield client_environment(endpoint)
    finally:
        process.terminate()
        process.wait()
        process.stdin.close()
        process.stdout.close()
