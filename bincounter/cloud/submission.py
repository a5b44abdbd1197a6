"""From planned jobs to requests: what they cost, what is uploaded for them, and what is sent."""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bincounter.cloud.aws_errors import answered_by_aws
from bincounter.cloud.crew import Task
from bincounter.cloud.hyperparameters import encode
from bincounter.cloud.images import training_image
from bincounter.cloud.jobs import Job, job_name
from bincounter.cloud.prices import ceiling, usd_per_hour
from bincounter.cloud.request import training_request
from bincounter.cloud.source import pack
from bincounter.errors import ConfigError

if TYPE_CHECKING:
    from bincounter.cloud.account import Account
    from bincounter.cloud.plan import Planned

log = logging.getLogger(__name__)


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
                "environment": {**settings["environment"], "REHEARSAL_INTERRUPTIONS": asked},
            }
        self._price = usd_per_hour(settings["instance_type"], settings["usd_per_hour"])

    def show_cost(self, jobs: int, *, before: int) -> None:
        """Print the price and the ceiling.

        Args:
            jobs: of this launch.
            before: jobs of the same sweep that were launched already.

        Raises:
            ConfigError: the ceiling is above ``launcher.max_cost_usd``.
        """
        settings = self._settings
        instances, hours = settings["instance_count"], settings["max_run"] / 3600
        total = jobs + before
        most = ceiling(self._price, max_run=settings["max_run"], instances=instances, jobs=total)
        log.info(
            "%d job%s on %d x %s at %.4g USD/h on demand (%s): at most %.2f USD for at most %.4g h each%s",
            total,
            "s" if total != 1 else "",
            instances,
            settings["instance_type"],
            self._price.usd,
            self._price.origin,
            most,
            hours,
            ", less on spot" if settings["spot"] else "",
        )
        if most > settings["max_cost_usd"]:
            raise ConfigError(
                f"at most {most:.2f} USD is above launcher.max_cost_usd={settings['max_cost_usd']:g}: lower "
                f"launcher.max_run={settings['max_run']} (seconds), or raise it"
            )

    def tasks(self, planned: "Sequence[Planned]", *, dry: bool) -> list[Task]:
        """Upload what the jobs need and write their requests.

        Args:
            planned: the jobs.
            dry: upload nothing.
        """
        settings, account = self._settings, self._account
        # A dry run with everything named asks AWS nothing.
        bucket = settings["bucket"] if dry and settings["bucket"] else account.bucket(settings["bucket"])
        bucket_uri = f"s3://{bucket}/{settings['prefix']}".rstrip("/")
        role = account.role(settings["role"])
        image = settings["image"] or training_image(
            framework_version=settings["framework_version"],
            region=account.region,
            instance_type=settings["instance_type"],
        )
        self._bring_photos(planned, bucket_uri, dry=dry)
        archives: dict[tuple[Any, ...], str] = {}
        tasks = []
        for one in planned:
            needs = (tuple(sorted(one.extra.items())), tuple(one.loggers))
            if needs not in archives:
                archives[needs] = self._ship(one, bucket_uri, dry=dry)
            name = job_name(_task_name(one), one.number)
            request = training_request(
                settings,
                name=name,
                hyperparameters=encode(one.shipped),
                source_uri=archives[needs],
                region=account.region,
                image=image,
                role=role,
                folder_uri=f"{bucket_uri}/jobs",
                channel_uri=one.source if one.channel else None,
            )
            tasks.append(Task(self._job(one, request), request))
        return tasks

    def _job(self, planned: "Planned", request: Mapping[str, Any]) -> Job:
        return Job(
            name=request["TrainingJobName"],
            number=planned.number,
            folder=planned.folder,
            region=self._account.region,
            checkpoint_uri=request["CheckpointConfig"]["S3Uri"].rstrip("/"),
            overrides=planned.overrides,
            usd_per_hour=self._price.usd * request["ResourceConfig"].get("InstanceCount", 1),
        )

    def _bring_photos(self, planned: "Sequence[Planned]", bucket_uri: str, *, dry: bool) -> None:
        """Upload local folders, each once; check the buckets of the others."""
        from bincounter.cloud.upload import destination, upload

        places: dict[str, str] = {}
        for one in planned:
            folder = one.local_source
            if folder is not None:
                if str(folder) not in places:
                    places[str(folder)] = destination(folder, f"{bucket_uri}/data")
                    if dry:
                        log.info("%s would be uploaded to %s", folder, places[str(folder)])
                    else:
                        upload(folder, places[str(folder)], client=self._account.s3)
                one.ship_source(places[str(folder)])
            elif one.channel and one.source is not None and one.source not in places:
                places[one.source] = one.source
                if not dry:
                    self._account.check_source(one.source)

    def _ship(self, planned: "Planned", bucket_uri: str, *, dry: bool) -> str:
        """Upload the archive; returns its address, which its content decides."""
        with tempfile.TemporaryDirectory() as folder:
            source = pack(
                self._repository, Path(folder) / "source.tar.gz", extra=planned.extra, loggers=planned.loggers
            )
            uri = f"{bucket_uri}/source/{source.sha256}.tar.gz"
            log.info("Code: %d files that git tracks, %.1f MB packed", source.files, source.size / 1e6)
            if not dry:
                bucket, _, key = uri.removeprefix("s3://").partition("/")
                with answered_by_aws(f"uploading the code to {uri}"):
                    self._account.s3.upload_file(str(source.path), bucket, key)
        return uri


def _task_name(planned: "Planned") -> str:
    return str(planned.config.get("task_name", planned.config.hydra.job.name))
