"""What deploy.py does with SageMaker: ``target=realtime``, ``serverless`` and ``async``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from bincounter.cloud.endpoints.errors import in_words_of_target
from bincounter.cloud.endpoints.objects import check_names
from bincounter.cloud.endpoints.requests import Wanted
from bincounter.config.deploy import target_of

if TYPE_CHECKING:
    from bincounter.serving.packing.archive import Package


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
        target: dict[str, Any] = OmegaConf.to_container(cfg.target, resolve=True)  # type: ignore[assignment]
        check_names(target["request"])
        return _carry_out(cfg, package, Wanted(cfg.name, target_of(cfg), target, cfg.limits.max_body_mb))


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

        update(account, wanted, package, dry=cfg.dry_run)
    else:
        from bincounter.cloud.endpoints.deployment import deploy

        deploy(account, wanted, package, dry=cfg.dry_run)
