"""The packed checkpoint in a bucket, where its content names its place."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from bincounter.cloud.endpoints.errors import answered

if TYPE_CHECKING:
    from bincounter.cloud.account import Account

log = logging.getLogger(__name__)


def archive_uri(bucket_uri: str, digest: str) -> str:
    """Where an archive lies.

    Args:
        bucket_uri: ``s3://`` folder of all that is ours.
        digest: SHA-256 of the archive.
    """
    return f"{bucket_uri}/models/{digest[:16]}/model.tar.gz"


def upload_archive(account: "Account", path: Path, uri: str) -> None:
    """Upload an archive, unless it is there.

    Args:
        account: whose S3.
        path: of the archive.
        uri: see :func:`archive_uri`.

    Raises:
        BinCounterError: it cannot be uploaded.
    """
    from botocore.exceptions import ClientError

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    size = path.stat().st_size
    with answered(f"uploading the archive to {uri}"):
        try:
            # Objects appear whole or not at all, and this one's name is of its content.
            there = account.s3.head_object(Bucket=bucket, Key=key)["ContentLength"] == size
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("404", "NoSuchKey", "NotFound"):
                raise
            there = False
        if not there:
            log.info("Archive: %.1f MB to %s", size / 1e6, uri)
            account.s3.upload_file(str(path), bucket, key)
