"""SageMaker on this machine: AWS's API on 127.0.0.1, with training jobs that really run.

A control plane (``python -m sagemaker_rehearsal``) answers the real boto3 client. S3, CloudWatch Logs, STS, IAM
and the rest are moto's; training jobs are ours: each one runs through the ``train`` command of the real
``sagemaker-training`` toolkit, in a folder that looks like ``/opt/ml``, with spot interruptions on request. Tuning jobs
really run their training jobs, too.

Endpoints and transform jobs really serve, too: the archive comes from S3 and is unpacked, pip has to find its
requirements, ``serve run`` starts, and only what passes the health check is in service. An update lets the old
container answer until the new one can; one that fails leaves the old one. Containers' logs, data captures, asynchronous
answers and failures are written where AWS writes them, and a transform job goes on after a bad object, to fail at its
end. The sizes of bodies and the times of answers are bounded as AWS's are.

Where it cannot be true to AWS: the image is not pulled (the job runs in this Python environment), instance types are
names only, ``/opt/ml`` is ``$SAGEMAKER_BASE_DIR``, hosts are called 127.0.0.1, 127.0.0.2, ... instead of algo-1,
algo-2, ..., nobody checks permissions, pip finds no index, and the spot discount is invented. So is what a tuning job
tries next, and when its Hyperband stops a training job (tuning_search.py, tuning_stops.py). An endpoint has one variant
and one container, whatever its number of instances; serverless and idle ones stay started; nothing scales, traffic
moves all at once, alarms are not looked at, and a container has 3 minutes to become healthy, not 10.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bincounter.errors import ConfigError, ResourceError

ACCOUNT = "123456789012"
REGION = "us-east-1"
BUCKET = f"sagemaker-{REGION}-{ACCOUNT}"
ROLE = "rehearsal"
INTERRUPTIONS = "REHEARSAL_INTERRUPTIONS"
"""Key in a request's ``Environment``: attempt k of a managed spot job is interrupted the k-th number of seconds after
its first upload of a ``last.ckpt``, so that every attempt gets on; ``"5,0"`` interrupts twice, the second time at once.
"""


def client_environment(endpoint: str) -> dict[str, str]:
    """The variables that lead every AWS client to the plane at ``endpoint``, and away from the user's own account.

    They have to replace all AWS variables there are, so add them to :func:`without_aws`: a left-over
    ``AWS_SESSION_TOKEN`` or ``AWS_PROFILE`` would spoil them, and an empty value does not count as unset.
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
    """``environment`` less everything AWS clients read: profiles, tokens, endpoints of single services."""
    return {name: value for name, value in environment.items() if not name.startswith("AWS_")}


def require_rehearsal() -> None:
    """Check that what the plane is made of is installed.

    Raises:
        ConfigError: moto's server or the training toolkit is missing.
    """
    # flask_cors comes with moto[server] only, so it tells that from a bare moto.
    for module in ("moto", "flask_cors", "sagemaker_training"):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"the rehearsal needs {module}: pip install 'bincounter[rehearsal]'")


@contextmanager
def rehearsed(folder: Path, grace: float = 2.0) -> Iterator[dict[str, str]]:
    """Run a control plane in a process of its own, which ends with the block or with this process.

    It starts with the bucket ``sagemaker-us-east-1-123456789012`` and the role ``rehearsal``, and forgets everything
    when it ends.

    Args:
        folder: where jobs run, and where the plane's own log goes (``plane.log``).
        grace: seconds between SIGTERM and SIGKILL for a job that is stopped or interrupted; 120 on AWS.

    Yields:
        The variables that lead AWS clients to it: ``{**without_aws(os.environ), **variables}``.

    Raises:
        ConfigError: the extra ``rehearsal`` is not installed.
        ResourceError: the plane did not start.
    """
    require_rehearsal()
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "plane.log"
    command = [sys.executable, "-m", __name__, "--folder", str(folder), "--grace", str(grace), "--with-parent"]
    with log.open("wb") as log_file:
        process = subprocess.Popen(
            command,
            cwd=Path(__file__).parents[1],  # wherever the caller is, this package is the one that runs
            env=without_aws(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            text=True,
            start_new_session=True,  # Ctrl-C in a terminal is the launcher's to answer
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        endpoint = process.stdout.readline().strip()
        if not endpoint:
            raise ResourceError(f"the rehearsal's control plane did not start: read {log}")
        yield client_environment(endpoint)
    finally:
        process.terminate()
        process.wait()
        process.stdin.close()
        process.stdout.close()
