"""Deploy a checkpoint to an endpoint: ``bincounter deploy ckpt_path=RUN/checkpoints/best.ckpt [KEY=VALUE] ...``.

The checkpoint is packed into an archive. Its answers are compared with those of training, and it is served on this
machine (``target=local``) or by SageMaker (``target=realtime|serverless|async``). ``action=`` selects other actions;
docs/deploy.md describes them, ``--cfg job`` prints the composed configuration.
"""

import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from bincounter.cli import hydra_app
from bincounter.cli.deploy_packing import origin_of, pack_and_check, place_of, state_of
from bincounter.config.checks import plain_of
from bincounter.config.deploy_schema import ARCHIVE_ACTIONS, check_deploy, target_name
from bincounter.errors import Stopped, check_extra
from bincounter.files import check_writable
from bincounter.serving.local.access import read_access
from bincounter.serving.local.running_servers import (
    DEFAULT_PORT,
    Server,
    claimed,
    find_server,
    running_servers,
    stop_server,
)

if TYPE_CHECKING:  # the others that need numpy, torch or boto3 are imported on use: --help and refusals are quick
    from bincounter.cloud.endpoints.endpoint_requests import EndpointSpec
    from bincounter.serving.packing.archive import Package

log = logging.getLogger(__name__)


def main() -> int:
    """Run the command line in ``sys.argv``; returns the exit code."""
    return hydra_app.main_once(run_action, config_name="deploy")


def run_action(cfg: DictConfig) -> int:
    """Run the action of one composed configuration; returns the exit code."""
    check_deploy(cfg)
    signal.signal(signal.SIGTERM, _stop)
    if cfg.action == "package" and cfg.dry_run:
        origin = origin_of(cfg)
        print(f"Would pack {origin.checkpoint} into {place_of(cfg, origin)}.")
        return 0
    if cfg.action == "package":
        print(pack_and_check(cfg).path)
        return 0
    if target_name(cfg) == "local":
        return run_local(cfg)
    if cfg.action not in ARCHIVE_ACTIONS:
        return run_on_sagemaker(cfg, None)
    check_sagemaker(cfg)  # refuse wrong requests and high prices before a checkpoint is packed
    return run_on_sagemaker(cfg, pack_and_check(cfg))


def _stop(number: int, frame: FrameType | None) -> None:
    print("Error: Stopped by SIGTERM.", file=sys.stderr)
    raise SystemExit(Stopped.exit_code)  # not Stopped: OmegaConf would extend its message


def run_local(cfg: DictConfig) -> int:
    """Run an action of ``target=local``; returns the exit code."""
    if cfg.action == "deploy":
        return _deploy(cfg)
    if cfg.action == "invoke":
        return _invoke(cfg)
    state = state_of(cfg)
    if cfg.action == "list":
        servers = running_servers(state)
        print("\n".join(map(_described, servers)) or "No server runs on this machine.")
        return 0
    server = find_server(cfg.name, state, cfg.target.port, cfg.target.host)
    if cfg.action == "status":
        print(_described(server))
    elif cfg.dry_run:
        print(f"Would stop {server.url}, process {server.pid}.")
    else:
        stop_server(server, state)
        print(f"Stopped {server.url}; {server.archive} is kept.")
    return 0


def _described(server: Server) -> str:
    return f"{server.name}\t{server.url}\tmodel {server.model}\tprocess {server.pid}\t{server.archive}"


def _deploy(cfg: DictConfig) -> int:
    port = DEFAULT_PORT if cfg.target.port is None else cfg.target.port
    access = read_access(cfg.target.host, cfg.target.token_file)
    if cfg.dry_run:
        checked = f"compare {cfg.parity.photos} photos" if cfg.ckpt_path and cfg.parity.photos else "compare nothing"
        if cfg.precision == "int8" and cfg.parity.photos:
            checked = "score it on validation photos"
        origin = origin_of(cfg) if cfg.ckpt_path else None
        made = f"pack {origin.checkpoint} into {place_of(cfg, origin)}" if origin else f"take {cfg.archive}"
        print(f"Would {made}, {checked}, and serve it on {access.host}, port {port}.")
        return 0
    check_extra("h11", "prometheus_client", "starlette", "uvicorn", extra="serving", wanted="target=local")
    from bincounter.serving.local.server import check_port, serve, start_template
    from bincounter.serving.packing.tarball import unpack

    state = state_of(cfg)
    check_writable(state, folder=True, key="paths.cache_dir")
    with claimed(cfg.name, state) as (folder, enter):
        check_port(port, access.host)  # before packing and comparing, which take long
        start_template()
        packed = pack_and_check(cfg)

        def started(port: int) -> None:
            archive = str(packed.path.resolve())
            enter(Server(cfg.name, port, os.getpid(), packed.model, archive, access.host))

        unpacked = unpack(packed.path, folder)
        return serve(unpacked, port=port, access=access, name=cfg.name, started=started)


def _invoke(cfg: DictConfig) -> int:
    from bincounter.data.source import list_photos
    from bincounter.serving.local import client
    from bincounter.training.predictor import print_predictions

    server = find_server(cfg.name, state_of(cfg), cfg.target.port, cfg.target.host)
    headers = read_access("127.0.0.1", cfg.target.token_file).headers
    photos = list_photos(cfg.input, Path(cfg.paths.data_dir))
    if cfg.dry_run:
        print(f"Would post {len(photos)} photos to {server.url}invocations.")
        return 0
    return print_predictions(client.post_photos(server, photos, headers))


def check_sagemaker(cfg: DictConfig) -> None:
    """Log the price and check the requests to SageMaker before a checkpoint is packed.

    Args:
        cfg: composed and checked configuration whose ``action`` serves a checkpoint.

    Raises:
        BinCounterError: credentials or role are missing, a request is not valid, or the price is above the ceiling.
    """
    from bincounter.cloud.account import Account
    from bincounter.cloud.endpoints import batch_transform, deployment_plan
    from bincounter.serving.packing.archive import Package

    spec = endpoint_spec(cfg)
    account, unpacked = Account(spec.target["region"], "target", dry=cfg.dry_run), Package(Path(), "", "0" * 64)
    if cfg.action == "transform":
        cost = batch_transform.plan_transform(account, spec, unpacked, source=cfg.input, output=cfg.output).cost
        log.info("Transform job: %s", cost.words)
        return
    cost = deployment_plan.plan_deployment(account, spec, unpacked, update=cfg.action == "update").cost
    log.info("Endpoint %s: %s", spec.name, cost.words)
    if cfg.action == "update":
        log.info("During the update both the old and the new instances run, and are billed.")


def run_on_sagemaker(cfg: DictConfig, package: "Package | None") -> int:
    """Run an action of ``target=realtime|serverless|async``.

    Args:
        cfg: composed and checked configuration.
        package: packed checkpoint; ``None`` for actions that deploy nothing.

    Returns:
        The exit code.

    Raises:
        BinCounterError: the action failed.
        Interrupted: Ctrl-C was pressed; started jobs and endpoints continue at AWS.
    """
    from bincounter.cloud.account import Account
    from bincounter.cloud.endpoints import endpoint_record

    spec = endpoint_spec(cfg)
    account = Account(spec.target["region"], "target", dry=cfg.dry_run)
    if cfg.action == "invoke":
        from bincounter.cloud.endpoints.invoke import invoke
        from bincounter.data.source import list_photos

        return invoke(account, spec, list_photos(cfg.input, Path(cfg.paths.data_dir)), dry=cfg.dry_run)
    if cfg.action == "status":
        from bincounter.cloud.endpoints.endpoint_status import print_status

        return print_status(account, spec)
    if cfg.action == "list":
        from bincounter.cloud.endpoints.endpoint_status import print_endpoints

        return print_endpoints(account)
    if cfg.action == "delete":
        from bincounter.cloud.endpoints.cleanup import delete, show_deletion

        if cfg.dry_run:
            show_deletion(account, spec)
            return 0
        removal = delete(account, spec)
        if removal.ended:
            records = endpoint_record.find_records(Path(cfg.paths.log_dir), state_of(cfg))
            endpoint_record.record_end(account, spec.name, records, "deleted")
        removal.check()
    elif cfg.action == "transform":
        from bincounter.cloud.endpoints.batch_transform import transform

        assert package is not None
        transform(account, spec, package, source=cfg.input, output=cfg.output, dry=cfg.dry_run)
    else:
        from bincounter.cloud.endpoints.deployment import deploy

        assert package is not None
        update = cfg.action == "update"
        if not cfg.dry_run:
            endpoint_record.list_record(package.path, state_of(cfg))
        config = deploy(account, spec, package, update=update, dry=cfg.dry_run)
        if update and not cfg.dry_run:  # its previous archive may belong to another run
            earlier = endpoint_record.find_records(Path(cfg.paths.log_dir), state_of(cfg))
            endpoint_record.record_end(account, spec.name, earlier, "replaced", serves=config)
    return 0


def endpoint_spec(cfg: DictConfig) -> "EndpointSpec":
    """Return the settings of the SageMaker endpoint of a configuration."""
    from bincounter.cloud.endpoints.api_objects import check_request_keys
    from bincounter.cloud.endpoints.endpoint_requests import EndpointSpec

    target = plain_of(cfg.target)
    check_request_keys(target["request"])
    return EndpointSpec(cfg.name, target_name(cfg), target, cfg.limits.max_body_mb)
