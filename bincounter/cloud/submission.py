"""Submission of jobs: price ceiling, requests, upload of photos and code.

Uploads are named by a digest of their content. A changed folder goes to another place, and its earlier content is
neither deleted nor read; of an unchanged folder, missing files alone are sent.
"""

import hashlib
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bincounter.cloud.aws_errors import translate_errors
from bincounter.cloud.code_archive import CodeArchive, pack
from bincounter.cloud.debugger_rules import inspection_request
from bincounter.cloud.hyperparameters import encode_overrides
from bincounter.cloud.instances import cost_ceiling, training_image, usd_per_hour
from bincounter.cloud.job_request import training_request
from bincounter.cloud.job_runner import RunningJob
from bincounter.cloud.jobs import Job, job_name
from bincounter.config.launcher_schema import keep_alive
from bincounter.errors import ConfigError, DataError
from bincounter.names import escape_name, first_of

if TYPE_CHECKING:
    from bincounter.cloud.account import Account
    from bincounter.cloud.job_plan import PlannedJob
    from bincounter.data.layouts.base import InputFile
    from bincounter.data.s3.upload import Uploaded

log = logging.getLogger(__name__)

_READERS = 16  # files read at a time

Needs = tuple[tuple[tuple[str, bytes], ...], tuple[str, ...], bool]
"""Extra files, logger packages, and whether smdebug is needed: jobs with equal needs share a code archive."""


class Submission:
    """Settings, account and code that the jobs of one launch share.

    Args:
        account: to run the jobs in.
        settings: ``launcher`` as plain containers.
        repository: checkout to ship.
        rehearsed: whether the jobs run in a rehearsal.
    """

    def __init__(self, account: "Account", settings: Mapping[str, Any], repository: Path, *, rehearsed: bool) -> None:
        self._account, self._settings, self._repository = account, settings, repository
        if rehearsed and settings["interruptions"]:
            asked = ",".join(f"{seconds:g}" for seconds in settings["interruptions"])
            self._settings = {
                **settings,
                "environment": {
                    **settings["environment"],
                    "REHEARSAL_INTERRUPTIONS": asked,
                    "REHEARSAL_INTERRUPT_AFTER": "last.ckpt",
                },
            }
        self._price = usd_per_hour(settings["instance_type"], settings["usd_per_hour"])

    def tasks(
        self,
        planned: "Sequence[PlannedJob]",
        *,
        dry: bool,
        checked: Callable[[Sequence[RunningJob]], None] = lambda _: None,
    ) -> list[RunningJob]:
        """Make and check all requests, then upload photos and code.

        Args:
            planned: the jobs.
            dry: upload nothing.
            checked: called with the tasks before the upload, for further checks.
        """
        settings, account = self._settings, self._account
        bucket = settings["bucket"] or account.default_bucket
        bucket_uri = f"s3://{bucket}/{settings['prefix']}".rstrip("/")
        role = account.role(settings["role"])
        image = settings["image"] or training_image(
            framework_version=settings["framework_version"],
            region=account.region,
            instance_type=settings["instance_type"],
        )
        photos = _places(planned, f"{bucket_uri}/data")
        with tempfile.TemporaryDirectory() as folder:
            archives = self._pack(planned, Path(folder))
            tasks = []
            for one in planned:
                request = training_request(
                    {**settings, "checkpoint_uri": one.checkpoint_uri or settings["checkpoint_uri"]},
                    name=job_name(str(one.config.get("task_name", one.config.hydra.job.name)), one.number),
                    hyperparameters=encode_overrides(one.shipped),
                    source_uri=_source_uri(bucket_uri, archives[_needs(one)]),
                    region=account.region,
                    image=image,
                    role=role,
                    folder_uri=f"{bucket_uri}/jobs",
                    channel_uri=one.source if one.channel else None,
                    inspection=inspection_request(
                        one.debugger, one.profiler, folder_uri=f"{bucket_uri}/jobs", region=account.region
                    ),
                )
                tasks.append(RunningJob(self._job(one, request), request))
            checked(tasks)
            if not dry:
                account.bucket(settings["bucket"])
                for source in {one.source for one in planned if one.channel and one.source} - set(photos.values()):
                    account.check_source(source)
                self._upload(photos, archives.values(), bucket_uri)
        return tasks

    def _job(self, planned: "PlannedJob", request: Mapping[str, Any]) -> Job:
        return Job(
            name=request["TrainingJobName"],
            number=planned.number,
            folder=planned.folder,
            region=self._account.region,
            checkpoint_uri=request["CheckpointConfig"]["S3Uri"].rstrip("/"),
            overrides=planned.overrides,
            usd_per_hour=self._price.usd * self._settings["instance_count"],
            instance_type=self._settings["instance_type"],
            instance_count=self._settings["instance_count"],
            price_origin=self._price.origin,
        )

    def _pack(self, planned: "Sequence[PlannedJob]", folder: Path) -> dict[Needs, CodeArchive]:
        """Pack one archive for all jobs with equal needs."""
        archives: dict[Needs, CodeArchive] = {}
        for one in planned:
            if _needs(one) not in archives:
                path = folder / f"{len(archives)}.tar.gz"
                source = pack(
                    self._repository,
                    path,
                    extra=one.extra,
                    extras=one.extras,
                    smdebug=one.debugger.get("kind") == "smdebug",
                )
                archives[_needs(one)] = source
                log.info("Code: %d files, %.1f MB packed", source.files, source.size / 1e6)
        return archives

    def _upload(self, photos: Mapping[Path, str], archives: Iterable[CodeArchive], bucket_uri: str) -> None:
        for folder, uri in photos.items():
            upload(folder, uri, region=self._account.region)
        for source in archives:
            uri = _source_uri(bucket_uri, source)
            bucket, _, key = uri.removeprefix("s3://").partition("/")
            with translate_errors(f"uploading the code to {uri}"):
                self._account.s3.upload_file(str(source.path), bucket, key)


def show_cost(settings: Mapping[str, Any], jobs: int, *, before: int = 0) -> None:
    """Log price and price ceiling.

    Args:
        settings: ``launcher`` as plain containers.
        jobs: number of jobs in this launch.
        before: number of jobs in earlier launches of the same sweep.

    Raises:
        ConfigError: the ceiling is above ``launcher.max_cost_usd``.
    """
    price = usd_per_hour(settings["instance_type"], settings["usd_per_hour"])
    instances, kept = settings["instance_count"], keep_alive(settings)
    total = jobs + before
    seconds = settings["max_run"] + kept
    most = cost_ceiling(price, max_run=seconds, instances=instances, jobs=total)
    log.info(
        "%d job%s on %d x %s at %.4g USD/h on demand (%s): at most %.2f USD for at most %.4g h each%s",
        total,
        "s" if total != 1 else "",
        instances,
        settings["instance_type"],
        price.usd,
        price.origin,
        most,
        seconds / 3600,
        ", less on spot" if settings["spot"] else "",
    )
    if most > settings["max_cost_usd"]:
        raise ConfigError(
            f"at most {most:.2f} USD is above launcher.max_cost_usd={settings['max_cost_usd']:g}: lower "
            f"launcher.max_run={settings['max_run']} (seconds), or raise launcher.max_cost_usd"
        )


def _needs(planned: "PlannedJob") -> Needs:
    return tuple(sorted(planned.extra.items())), tuple(planned.extras), planned.debugger.get("kind") == "smdebug"


def _source_uri(bucket_uri: str, source: CodeArchive) -> str:
    """Address of an archive, by its digest."""
    return f"{bucket_uri}/source/{source.sha256}.tar.gz"


def _places(planned: "Sequence[PlannedJob]", below: str) -> dict[Path, str]:
    """Set the address of each local folder of photos in its jobs; return folders and addresses."""
    places: dict[Path, str] = {}
    for one in planned:
        folder = one.local_source
        if folder is not None:
            if folder not in places:
                places[folder] = upload_address(folder, below)
                log.info("%s goes to %s", folder, places[folder])
            one.ship_source(places[folder])
    return places


def upload_address(folder: Path, base_uri: str) -> str:
    """Return the address of a folder's present content: ``base_uri/<name>-<digest>``.

    Reads every file. The digest is of names, sizes and MD5s, without hidden files and those that cannot be uploaded.

    Args:
        folder: of data, in any layout.
        base_uri: an ``s3://`` address.

    Raises:
        DataError: there is nothing to upload, or a file cannot be read.
    """
    from bincounter.parallel import map_ordered
    from bincounter.progress import track

    files = _files(folder)
    md5s = map_ordered(lambda found: _md5(folder / found.name), files, _READERS)
    digest = hashlib.sha256()
    for found, md5 in zip(files, track(md5s, f"Reading {folder}", len(files)), strict=True):
        digest.update(f"{found.name}\0{found.size}\0{md5.hex()}\n".encode())
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-.") or "data"
    return f"{base_uri.rstrip('/')}/{name}-{digest.hexdigest()[:12]}"


def upload(folder: Path, uri: str, *, region: str | None = None) -> "Uploaded":
    """Upload the files of a folder that are not in the bucket yet; links are followed, hidden files skipped.

    Args:
        folder: of data, in any layout.
        uri: ``s3://`` address of the folder in the bucket.
        region: of the bucket; ``None`` for that of the settings.

    Raises:
        DataError: there is nothing to upload, a file cannot be read, or address, bucket or credentials are wrong.
        ResourceError: the network or the server failed.
    """
    from bincounter.data.s3.upload import send

    files = ((folder / found.name, found.name) for found in _files(folder))
    return send(files, uri, description=f"Uploading to {uri}", region=region)


def _files(folder: Path) -> "list[InputFile]":
    """List the files to upload; the rest is logged."""
    from bincounter.data.layouts.base import walk

    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {what}: set data.source to a folder of photos, or to an s3:// address")
    files, skipped = [], []
    passed_over: Counter[str] = Counter()
    for found in walk(folder, passed_over=passed_over):
        if found.problem:
            skipped.append(f"{escape_name(found.name or folder)} ({found.problem})")
        else:
            files.append(found)
    if skipped:
        log.warning("%d skipped in the upload: %s", len(skipped), first_of(skipped))
    for reason, number in passed_over.items():
        log.info("%d %s skipped in the upload of %s", number, reason, escape_name(folder))
    if not files:
        raise DataError(f"{folder} holds no file to upload: set data.source to a folder of photos")
    return files


def _md5(path: Path) -> bytes:
    from bincounter.data.s3.upload import unreadable_file_error

    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).digest()
    except OSError as error:
        raise unreadable_file_error(path, error) from error
