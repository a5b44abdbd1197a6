"""From planned jobs to requests: what they cost, what is uploaded for them, and what is sent."""

import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bincounter.cloud.aws_errors import answered_by_aws
from bincounter.cloud.crew import Task
from bincounter.cloud.hyperparameters import encode
from bincounter.cloud.images import training_image
from bincounter.cloud.inspection import inspection_request
from bincounter.cloud.jobs import Job, job_name
from bincounter.cloud.prices import ceiling, usd_per_hour
from bincounter.cloud.request import training_request
from bincounter.cloud.source import Source, pack
from bincounter.cloud.upload import destination, upload
from bincounter.config.launcher import keep_alive
from bincounter.errors import ConfigError

if TYPE_CHECKING:
    from bincounter.cloud.account import Account
    from bincounter.cloud.plan import Planned

log = logging.getLogger(__name__)

Needs = tuple[tuple[tuple[str, bytes], ...], tuple[str, ...], bool]
"""Files and packages that a job needs beside what git tracks, and whether smdebug's are left to its image."""


class Submission:
    """What the jobs of one launch share.

    Args:
        account: they run in.
        settings: ``launcher`` as plain containers.
        repository: the checkout that is shipped.
        rehearsed: whether it all happens on this machine.
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
        planned: "Sequence[Planned]",
        *,
        dry: bool,
        checked: Callable[[Sequence[Task]], None] = lambda _: None,
    ) -> list[Task]:
        """Write the requests, check them, and only then upload what the jobs need.

        Args:
            planned: the jobs.
            dry: change nothing at AWS.
            checked: a further check of what was written.
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
                    name=job_name(_task_name(one), one.number),
                    hyperparameters=encode(one.shipped),
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
                tasks.append(Task(self._job(one, request), request))
            checked(tasks)
            if not dry:
                account.bucket(settings["bucket"])
                for source in {one.source for one in planned if one.channel and one.source} - set(photos.values()):
                    account.check_source(source)
                self._upload(photos, archives.values(), bucket_uri)
        return tasks

    def _job(self, planned: "Planned", request: Mapping[str, Any]) -> Job:
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

    def _pack(self, planned: "Sequence[Planned]", folder: Path) -> dict[Needs, Source]:
        """An archive for each set of files and packages that jobs need."""
        archives: dict[Needs, Source] = {}
        for one in planned:
            if _needs(one) not in archives:
                path = folder / f"{len(archives)}.tar.gz"
                source = pack(
                    self._repository,
                    path,
                    extra=one.extra,
                    loggers=one.loggers,
                    smdebug=one.debugger.get("kind") == "smdebug",
                )
                archives[_needs(one)] = source
                log.info("Code: %d files that git tracks, %.1f MB packed", source.files, source.size / 1e6)
        return archives

    def _upload(self, photos: Mapping[Path, str], archives: Iterable[Source], bucket_uri: str) -> None:
        for folder, uri in photos.items():
            upload(folder, uri, region=self._account.region)
        for source in archives:
            uri = _source_uri(bucket_uri, source)
            bucket, _, key = uri.removeprefix("s3://").partition("/")
            with answered_by_aws(f"uploading the code to {uri}"):
                self._account.s3.upload_file(str(source.path), bucket, key)


def show_cost(settings: Mapping[str, Any], jobs: int, *, before: int = 0) -> None:
    """Print the price and the ceiling.

    Args:
        settings: ``launcher`` as plain containers.
        jobs: of this launch.
        before: jobs of the same sweep that were launched already.

    Raises:
        ConfigError: the ceiling is above ``launcher.max_cost_usd``.
    """
    price = usd_per_hour(settings["instance_type"], settings["usd_per_hour"])
    instances, kept = settings["instance_count"], keep_alive(settings)
    total = jobs + before
    seconds = settings["max_run"] + kept
    most = ceiling(price, max_run=seconds, instances=instances, jobs=total)
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
            f"launcher.max_run={settings['max_run']} (seconds), or raise it"
        )


def _needs(planned: "Planned") -> Needs:
    return tuple(sorted(planned.extra.items())), tuple(planned.loggers), planned.debugger.get("kind") == "smdebug"


def _source_uri(bucket_uri: str, source: Source) -> str:
    """Where an archive goes, which its content decides."""
    return f"{bucket_uri}/source/{source.sha256}.tar.gz"


def _places(planned: "Sequence[Planned]", below: str) -> dict[Path, str]:
    """Where local folders of photos go, told to the jobs that read them; their content decides."""
    places: dict[Path, str] = {}
    for one in planned:
        folder = one.local_source
        if folder is not None:
            if folder not in places:
                places[folder] = destination(folder, below)
                log.info("%s goes to %s", folder, places[folder])
            one.ship_source(places[folder])
    return places


def _task_name(planned: "Planned") -> str:
    return str(planned.config.get("task_name", planned.config.hydra.job.name))
