"""What deploy.py does with SageMaker: ``target=realtime``, ``serverless`` and ``async``."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from bincounter.cloud.endpoints import record
from bincounter.cloud.endpoints.errors import in_words_of_target
from bincounter.cloud.endpoints.objects import check_names
from bincounter.cloud.endpoints.requests import Wanted
from bincounter.config.deploy import target_of

if TYPE_CHECKING:
    from bincounter.serving.packing.archive import Package

log = logging.getLogger(__name__)


def check(cfg: DictConfig) -> None:
    """Show the price, and refuse what SageMaker would not take, before a checkpoint is packed for it.

    Args:
        cfg: a whole configuration whose ``action`` serves a checkpoint, as deploy.py composes and checks it.

    Raises:
        BinCounterError: there are no credentials or no role, a request is wrong, or the price is above the ceiling.
    """
    from bincounter.cloud.account import Account
    from bincounter.cloud.endpoints import deployment, transforming, updating
    from bincounter.serving.packing.archive import Package

    with in_words_of_target():
        wanted = _wanted(cfg)
        account, unpacked = Account(wanted.target["region"]), Package(Path(), "", "0" * 64)
        if cfg.action == "transform":
            cost = transforming.planned(account, wanted, unpacked, source=cfg.input, output=cfg.output).cost
            log.info("Transform job: %s", cost.words)
            return
        written = updating.planned if cfg.action == "update" else deployment.planned
        log.info("Endpoint %s: %s", wanted.name, written(account, wanted, unpacked)[0].cost.words)
        if cfg.action == "update":
            log.info("During the update the old and the new instances both run, and both are billed.")


def carry_out(cfg: DictConfig, package: "Package | None") -> int:
    """Carry out ``action`` where ``target`` is SageMaker's.

    Args:
        cfg: a whole configuration, as deploy.py composes and checks it.
        package: the packed checkpoint; ``None`` for actions that serve nothing new.

    Returns:
        the exit code.

    Raises:
        BinCounterError: it could not be carried out.
        Interrupted: by Ctrl-C; AWS goes on with what it was asked for.
    """
    with in_words_of_target():
        return _carry_out(cfg, package, _wanted(cfg))


def _wanted(cfg: DictConfig) -> Wanted:
    target: dict[str, Any] = OmegaConf.to_container(cfg.target, resolve=True)  # type: ignore[assignment]
    check_names(target["request"])
    return Wanted(cfg.name, target_of(cfg), target, cfg.limits.max_body_mb)


def _carry_out(cfg: DictConfig, package: "Package | None", wanted: Wanted) -> int:
    from bincounter.cloud.account import Account

    account = Account(wanted.target["region"])
    if cfg.action == "invoke":
        from bincounter.cloud.endpoints.invoking import invoke
        from bincounter.training.predicting import photos_of

        return invoke(account, wanted, photos_of(cfg.input, Path(cfg.paths.data_dir)), dry=cfg.dry_run)
    if cfg.action == "status":
        from bincounter.cloud.endpoints.reporting import status

        status(account, wanted)
    elif cfg.action == "list":
        from bincounter.cloud.endpoints.reporting import show_all

        show_all(account)
    elif cfg.action == "delete":
        from bincounter.cloud.endpoints.removal import delete

        delete(account, wanted, dry=cfg.dry_run)
        if not cfg.dry_run:
            record.end(account, wanted.name, record.records_below(Path(cfg.paths.log_dir)), "deleted")
    else:
        assert package is not None
        _serve(cfg, package, wanted, account)
    return 0


def _serve(cfg: DictConfig, package: "Package", wanted: Wanted, account: Any) -> None:
    if cfg.action == "transform":
        from bincounter.cloud.endpoints.transforming import transform

        transform(account, wanted, package, source=cfg.input, output=cfg.output, dry=cfg.dry_run)
    elif cfg.action == "update":
        from bincounter.cloud.endpoints.updating import update

        config = update(account, wanted, package, dry=cfg.dry_run)
        if not cfg.dry_run:  # what it served before may be of another run
            earlier = record.records_below(Path(cfg.paths.log_dir))
            record.end(account, wanted.name, earlier, "replaced", serves=config)
    else:
        from bincounter.cloud.endpoints.deployment import deploy

        deploy(account, wanted, package, dry=cfg.dry_run)
