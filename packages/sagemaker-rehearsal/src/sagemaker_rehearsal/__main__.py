"""Command ``python -m sagemaker_rehearsal [--port N] [--folder DIR] [--grace SECONDS]``: run a control plane.

It prints its address on one line and serves until SIGTERM or Ctrl-C. Point AWS clients to it by::

    export AWS_ENDPOINT_URL=http://127.0.0.1:PORT AWS_REGION=us-east-1
    export AWS_ACCESS_KEY_ID=rehearsal AWS_SECRET_ACCESS_KEY=rehearsal
"""

import argparse
import atexit
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

from sagemaker_rehearsal.control_plane import ControlPlane


def main() -> int:
    """Serve until a signal arrives.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m sagemaker_rehearsal", description="SageMaker on 127.0.0.1, with jobs that really run."
    )
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument("--folder", type=Path, help="folder for running jobs (default: a temporary one)")
    parser.add_argument(
        "--grace", type=float, default=2.0, help="seconds from SIGTERM to SIGKILL (default: 2; AWS: 120)"
    )
    parser.add_argument("--with-parent", action="store_true", help="end when stdin closes, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rehearsal-", ignore_cleanup_errors=True) as temporary:
        _serve(options.folder or Path(temporary), options.port, options.grace, options.with_parent)
    return 0


def _serve(folder: Path, port: int, grace: float, with_parent: bool) -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    plane = ControlPlane(folder.resolve(), port, grace)
    atexit.register(plane.close)
    print(plane.endpoint, flush=True)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # moto prints to stdout, of which the caller reads one line
    if with_parent:
        threading.Thread(target=_wait_for_end_of_stdin, args=[stop], daemon=True).start()
    stop.wait()
    plane.close()
    atexit.unregister(plane.close)


def _wait_for_end_of_stdin(stop: threading.Event) -> None:
    os.read(0, 1)  # nothing is written to it: returns when the other end closes
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
