"""Buckets that tests send to, and folders that they send."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from s3_server import S3Server, serve


@contextmanager
def writable_server(root: Path) -> Iterator[S3Server]:
    """A server to send to.

    It looks at its folders again at once: of a folder that two requests make at the same time, rclone remembers what
    only one of them put there.
    """
    with serve(root, "--dir-cache-time", "1ms") as server:
        yield server


@contextmanager
def empty_buckets(server: S3Server, monkeypatch: pytest.MonkeyPatch, *names: str) -> Iterator[None]:
    """Buckets that vanish with all they hold; the environment leads to the server meanwhile."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    client = _client(server.endpoint)
    for name in names:
        client.create_bucket(Bucket=name)
    try:
        yield
    finally:
        for name in names:
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
                for item in page.get("Contents", ()):
                    client.delete_object(Bucket=name, Key=item["Key"])
            client.delete_bucket(Bucket=name)


def made(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files, by their names below a folder."""
    for name, body in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)
    return folder


def stored(server: S3Server) -> dict[str, bytes]:
    """Objects below ``s3://shop/data``, by the rest of their keys."""
    root = server.root / "shop/data"
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def delete(bucket: str, key: str) -> None:
    """Delete an object by way of the server that the environment leads to, so that it knows."""
    _client(None).delete_object(Bucket=bucket, Key=key)


def _client(endpoint: str | None) -> Any:
    return boto3.client("s3", endpoint_url=endpoint, config=Config(s3={"addressing_style": "path"}))
