"""Put a checkpoint behind an endpoint: ``bincounter deploy ckpt_path=RUN/checkpoints/best.ckpt [KEY=VALUE] ...``.

The checkpoint becomes an archive, its answers are compared with those of training, and it is served: on this machine
(``target=local``) or by SageMaker (``target=realtime|serverless|async``). ``action=`` says what else can be done;
docs/deploy.md explains it all, ``--cfg job`` prints the configuration that a command line composes.
"""

import importlib.util
import logging
import os
import signal
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from bincounter.cli import hydra_app
from bincounter.cloud.endpoints import endpoint_record
from bincounter.cloud.endpoints.api_objects import check_names
from bincounter.cloud.endpoints.endpoint_requests import Wanted
from bincounter.config.deploy_schema import SERVES, check_deploy, target_of
from bincounter.errors import ConfigError, Stopped, UserError
from bincounter.serving.application.answers import Limits
from bincounter.serving.local.running_servers import Server, announced, end, own_place, running
from bincounter.training.results import Origin, origin_of
from bincounter.training.run_folder import newest_checkpoint

if TYPE_CHECKING:
    from bincounter.serving.packing.archive import Package

log = logging.getLogger(__name__)


def main() -> int:
    """Run the command line in ``sys.argv``; returns the exit code."""
    return hydra_app.main_once(action, config_name="deploy")


def action(cfg: DictConfig) -> int:
    """Carry out what one composed configuration asks for; returns the exit code."""
    check_deploy(cfg)
    signal.signal(signal.SIGTERM, _stop)
    if cfg.action == "package":
        print(checked_package(cfg).path)
        return 0
    if target_of(cfg) == "local":
        return carry_out_here(cfg)
    if cfg.action not in SERVES:
        return carry_out_at_sagemaker(cfg, None)
    check_sagemaker(cfg)  # what SageMaker would not take, or costs too much, is told before a checkpoint is packed
    return carry_out_at_sagemaker(cfg, checked_package(cfg))


def _stop(number: int, frame: FrameType | None) -> None:
    print("Error: Stopped by SIGTERM.", file=sys.stderr)
    raise SystemExit(Stopped.exit_code)  # no Stopped: whatever OmegaConf was at, it would add its own words to it


def checked_package(cfg: DictConfig) -> "Package":
    """The archive a configuration asks for: made of its checkpoint and compared with it, or one that is there.

    An archive takes its place only once it has passed.

    Raises:
        UserError: the checkpoint or the archive cannot be used, or their answers differ.
        ResourceError: memory, disk or time gave out.
    """
    # Here as below, what imports torch is imported on use, so that --help and refusals are quick.
    from bincounter.serving.packing.archive import Settings, opened, package
    from bincounter.serving.packing.parity import check_parity, parity_photos

    if cfg.ckpt_path is None:
        log.warning("The answers of %s are not compared with training.", cfg.archive)
        return opened(Path(cfg.archive))
    origin = _origin(cfg)
    path = _place(cfg, origin)
    # Beside its place, so that it is renamed and not written again.
    aside = path.with_name(f".{path.name}.{os.getpid()}.unchecked")
    try:
        packed = package(origin.checkpoint, Settings(aside, cfg.precision, _limits(cfg)), trusted=cfg.trust)
        if cfg.parity.photos:
            photos = parity_photos(
                origin, cfg.parity.photos, source=cfg.parity.source, data_dir=Path(cfg.paths.data_dir)
            )
            log.info("%s", check_parity(origin.checkpoint, aside, photos, trusted=cfg.trust))
        else:
            log.warning("parity.photos=0: the archive's answers are not compared with training.")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    log.info("%s: model %s, %.1f MB", path, packed.model, path.stat().st_size / 1e6)
    return replace(packed, path=path)


def carry_out_here(cfg: DictConfig) -> int:
    """Carry out an action of ``target=local``; returns the exit code."""
    return {"deploy": _deploy, "invoke": _invoke, "status": _status, "list": _list, "delete": _delete}[cfg.action](cfg)


def _origin(cfg: DictConfig) -> Origin:
    if cfg.ckpt_path == "latest":
        return origin_of(newest_checkpoint(Path(cfg.paths.log_dir), named_by="ckpt_path"))
    return origin_of(Path(cfg.ckpt_path))


def _place(cfg: DictConfig, origin: Origin) -> Path:
    return Path(cfg.archive) if cfg.archive else origin.folder / "endpoint" / "model.tar.gz"


def _limits(cfg: DictConfig) -> Limits:
    limits = cfg.limits
    return Limits(
        max_body_bytes=int(limits.max_body_mb * 1e6),
        max_instances=limits.max_instances,
        max_batch=limits.max_batch,
        max_queue=limits.max_queue,
        timeout_s=limits.timeout_s,
        url_hosts=tuple(limits.url_hosts),
    )


def _state(cfg: DictConfig) -> Path:
    return Path(cfg.paths.cache_dir) / "serving"


def _named(cfg: DictConfig) -> list[Server]:
    return [server for server in running(_state(cfg)) if server.name == cfg.name]


def _deploy(cfg: DictConfig) -> int:
    if cfg.dry_run:
        checked = f"compare {cfg.parity.photos} photos" if cfg.ckpt_path and cfg.parity.photos else "compare nothing"
        origin = _origin(cfg) if cfg.ckpt_path else None
        made = f"pack {origin.checkpoint} into {_place(cfg, origin)}" if origin else f"take {cfg.archive}"
        print(f"Would {made}, {checked}, and serve it on 127.0.0.1, port {cfg.target.port}.")
        return 0
    _require_server()
    from bincounter.serving.local.server import check_port, serve
    from bincounter.serving.packing.tarball import unpack

    check_port(cfg.target.port)  # packing and comparing take their time
    packed = checked_package(cfg)
    state = _state(cfg)
    with own_place(state) as folder, ExitStack() as stack:

        def started(port: int) -> None:
            server = Server(cfg.name, port, os.getpid(), packed.model, str(packed.path.resolve()))
            stack.enter_context(announced(server, state))

        return serve(unpack(packed.path, folder), port=cfg.target.port, started=started)


def _require_server() -> None:
    for module in ("h11", "prometheus_client", "starlette", "uvicorn"):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"target=local needs {module}: pip install 'bincounter[serving]'")


def _invoke(cfg: DictConfig) -> int:
    from bincounter.serving.local import client
    from bincounter.training.predictor import photos_of, show_answers

    port = cfg.target.port or _only_port(cfg)
    photos = photos_of(cfg.input, Path(cfg.paths.data_dir))
    if cfg.dry_run:
        print(f"Would post {len(photos)} photos to http://127.0.0.1:{port}/invocations.")
        return 0
    return 0 if show_answers(client.ask(port, photos)) else 2


def _only_port(cfg: DictConfig) -> int:
    """target.port=0 stands for whichever port the endpoint of this name has."""
    servers = _named(cfg)
    if len(servers) != 1:
        raise UserError(
            f"{len(servers) or 'no'} servers named {cfg.name} run on this machine, and target.port=0 asks the only "
            "one: name its port, python deploy.py action=list shows what runs"
        )
    return servers[0].port


def _status(cfg: DictConfig) -> int:
    _show(_named(cfg), f"No server named {cfg.name} runs on this machine.")
    return 0


def _list(cfg: DictConfig) -> int:
    _show(running(_state(cfg)), "No server runs on this machine.")
    return 0


def _show(servers: list[Server], none: str) -> None:
    for server in servers:
        print(f"{server.name}\t{server.url}\tmodel {server.model}\tprocess {server.pid}\t{server.archive}")
    if not servers:
        print(none)


def _delete(cfg: DictConfig) -> int:
    servers = _named(cfg)
    for server in servers:
        if cfg.dry_run:
            print(f"Would end {server.url}, process {server.pid}.")
            continue
        end(server, _state(cfg))
        print(f"Ended {server.url}; {server.archive} stays.")
    if not servers:
        print(f"No server named {cfg.name} runs on this machine: nothing to end.")
    return 0


def check_sagemaker(cfg: DictConfig) -> None:
    """Show the price, and refuse what SageMaker would not take, before a checkpoint is packed for it.

    Args:
        cfg: a whole configuration whose ``action`` serves a checkpoint, as deploy.py composes and checks it.

    Raises:
        BinCounterError: there are no credentials or no role, a request is wrong, or the price is above the ceiling.
    """
    from bincounter.cloud.account import Account
    from bincounter.cloud.endpoints import batch_transform, deployment_plan
    from bincounter.serving.packing.archive import Package

    wanted = _wanted(cfg)
    account, unpacked = Account(wanted.target["region"], "target"), Package(Path(), "", "0" * 64)
    if cfg.action == "transform":
        cost = batch_transform.planned(account, wanted, unpacked, source=cfg.input, output=cfg.output).cost
        log.info("Transform job: %s", cost.words)
        return
    cost = deployment_plan.plan(account, wanted, unpacked, update=cfg.action == "update").cost
    log.info("Endpoint %s: %s", wanted.name, cost.words)
    if cfg.action == "update":
        log.info("During the update the old and the new instances both run, and both are billed.")


def carry_out_at_sagemaker(cfg: DictConfig, package: "Package | None") -> int:
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
    from bincounter.cloud.account import Account

    wanted = _wanted(cfg)
    account = Account(wanted.target["region"], "target")
    if cfg.action == "invoke":
        from bincounter.cloud.endpoints.invoke import invoke
        from bincounter.training.predictor import photos_of

        return invoke(account, wanted, photos_of(cfg.input, Path(cfg.paths.data_dir)), dry=cfg.dry_run)
    if cfg.action == "status":
        from bincounter.cloud.endpoints.endpoint_status import status

        status(account, wanted)
    elif cfg.action == "list":
        from bincounter.cloud.endpoints.endpoint_status import show_all

        show_all(account)
    elif cfg.action == "delete":
        from bincounter.cloud.endpoints.cleanup import delete

        delete(account, wanted, dry=cfg.dry_run)
        if not cfg.dry_run:
            endpoint_record.end(account, wanted.name, endpoint_record.records_below(Path(cfg.paths.log_dir)), "deleted")
    elif cfg.action == "transform":
        from bincounter.cloud.endpoints.batch_transform import transform

        assert package is not None
        transform(account, wanted, package, source=cfg.input, output=cfg.output, dry=cfg.dry_run)
    else:
        from bincounter.cloud.endpoints.deployment import deploy

        assert package is not None
        update = cfg.action == "update"
        config = deploy(account, wanted, package, update=update, dry=cfg.dry_run)
        if update and not cfg.dry_run:  # what it served before may be of another run
            earlier = endpoint_record.records_below(Path(cfg.paths.log_dir))
            endpoint_record.end(account, wanted.name, earlier, "replaced", serves=config)
    return 0


def _wanted(cfg: DictConfig) -> Wanted:
    target: dict[str, Any] = OmegaConf.to_container(cfg.target, resolve=True)  # type: ignore[assignment]
    check_names(target["request"])
    return Wanted(cfg.name, target_of(cfg), target, cfg.limits.max_body_mb)
