"""Stand-alone script ``python -I keeper.py COMMAND...``: run a server and end all of its processes.

The server ends when stdin closes: the parent closed it, or was killed. Ray's processes begin sessions of their own and
outlive their parents; as their subreaper this process inherits all of them. Only Linux has subreapers: elsewhere Ray's
processes end by themselves, seconds later.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


def main(command: list[str]) -> int:
    """Run ``command`` until it ends or stdin closes, and kill all its descendants.

    Returns:
        The exit code of ``command``.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # ended by stdin only
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_kill_at_end_of_stdin, args=[process], daemon=True).start()
    code = process.wait()
    while children := _children():
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        for child in children:  # this process inherits their children
            with suppress(ChildProcessError):
                os.waitpid(child, 0)
    return code


def _kill_at_end_of_stdin(process: "subprocess.Popen[bytes]") -> None:
    os.read(0, 1)
    process.kill()


def _children() -> list[int]:
    return [int(child) for tasks in Path("/proc/self/task").glob("*/children") for child in tasks.read_text().split()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
