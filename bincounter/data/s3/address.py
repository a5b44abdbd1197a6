"""Parser of ``s3://`` addresses, and the rules for keys that can be local files."""

import re

from bincounter.errors import DataError

_LONGEST_NAME = 255  # bytes, on every common file system


def is_remote(source: str) -> bool:
    """Return True if ``source`` is meant as an S3 address, correct or not (``s3:/bucket``, ``S3://``, ``s3a://``)."""
    return re.match(r"s3[an]?:", source, re.IGNORECASE) is not None


def parse_address(source: str) -> tuple[str, str]:
    """Split ``s3://bucket/folder`` into the bucket and the folder, the latter without slashes at its end.

    Raises:
        DataError: it is not such an address, or its folder cannot be a local one.
    """
    authority = source.partition(":")[2].lstrip("/").partition("/")[0]
    if "@" in authority or ":" in authority:  # may be a secret: not repeated
        raise DataError(
            "an s3:// address holds no credentials, port or ARN: write s3://bucket/folder, and set AWS_PROFILE or "
            "AWS_ENDPOINT_URL for the rest"
        )
    match = re.fullmatch(r"s3://([^/]*)/?(.*)", source, re.DOTALL)
    if match is None:
        raise DataError(f"{source!r} is not an S3 address: write it as s3://bucket/folder")
    bucket, prefix = match[1], match[2].rstrip("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}", bucket):
        raise DataError(f"{source!r} has no valid bucket name ({bucket!r}): write it as s3://bucket/folder")
    reason = unusable_reason(prefix) if prefix else None
    if reason:
        raise DataError(f"{source!r} {reason}: write it as s3://bucket/folder")
    return bucket, prefix


def unusable_reason(key: str) -> str | None:
    """Reason why ``key`` cannot be the path of a local file, or ``None`` if it can.

    Keys that pass name different files below the mirror's folder, and nothing outside it.
    """
    parts = key.split("/")
    if "" in parts:
        return "has an empty folder or file name"
    if "." in parts or ".." in parts:
        return "has . or .. as a folder or file name"
    if "\0" in key:
        return "holds a zero byte"
    if any("\ud800" <= letter <= "\udfff" for letter in key):  # surrogates, by which Python represents other bytes
        return "is not UTF-8"
    if any(len(part.encode()) > _LONGEST_NAME for part in parts):
        return f"has a name of more than {_LONGEST_NAME} bytes"
    return None
