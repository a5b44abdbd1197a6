"""A control plane that all tests of a session share."""

from collections.abc import Iterator

import boto3
import pytest

pytest_plugins = ["rehearsed"]


@pytest.fixture(autouse=True)
def _own_session() -> Iterator[None]:
    """boto3 keeps the credentials it found first in a session that all of a process share."""
    yield
    boto3.DEFAULT_SESSION = None
