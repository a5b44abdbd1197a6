"""What deploy.py does on this machine: a checked archive for every target, and all of ``target=local``."""

import importlib.util
import logging
import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from bincounter.errors import ConfigError, UserError
from bincounter.serving.application.limits import Limits
from bincounter.serving.local import client
from bincounter.serving.local.running import Server, announced, end, own_place, running
from bincounter.serving.packing.archive import Package, Settings, opened, package, unpack
from bincounter.serving.packing.origin import Origin, origin_of
from bincounter.serving.packing.parity import check_parity
from bincounter.serving.packing.parity_photos import parity_photos
from bincounter.training.newest import newest_checkpoint
from bincounter.training.predicting import photos_of, show_answers

log = logging.getLogger(__name__)


def checked_package(cfg: DictConfig) -> Package:
    """The archive a configuration asks for: made of its checkpoint and compared with it, or one that is there.

    An archive takes its place only once it has passed.

    Raises:
        UserError: the checkpoint or the archive cannot be used, or their answers differ.
        ResourceError: memory, disk or time gave out.
    """
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

    check_port(cfg.target.port)  # packing and comparing take their time
    packed = checked_package(cfg)
    state = _state(cfg)
    with own_place(state) as folder, ExitStack() as stack:

        def started(port: int) -> None:
            server = Server(cfg.name, port, os.getpid(), packed.model, str(packed.path.resolve()))
            stack.enter_context(announced(server, state))

        return serve(unpack(packed.path, folder), port=cfg.target.port, started=started)


def _require_server() -> None:
    for module in ("httptools", "prometheus_client", "starlette", "uvicorn"):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"target=local needs {module}: pip install 'bincounter[serving]'")


def _invoke(cfg: DictConfig) -> int:
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
