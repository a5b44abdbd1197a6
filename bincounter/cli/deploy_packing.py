"""Archive of a configuration of ``bincounter deploy``: engine, calibration, and comparison with training."""

import logging
import os
import tempfile
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from bincounter.config.deploy_schema import target_name
from bincounter.errors import ConfigError, check_extra
from bincounter.files import check_writable
from bincounter.hub import folder_for
from bincounter.serving.application.answers import Limits

if TYPE_CHECKING:  # what needs numpy or torch is imported on use: --help and refusals are quick
    from bincounter.serving.packing.archive import Package, PackageSettings
    from bincounter.training.results import CheckpointOrigin

log = logging.getLogger(__name__)


def pack_and_check(cfg: DictConfig) -> "Package":
    """Pack the checkpoint of a configuration and compare the archive with it, or open the given archive.

    The archive gets its final name only after the comparison.

    Raises:
        UserError: the checkpoint or the archive cannot be used, or their answers differ.
        ResourceError: out of memory, disk or time.
    """
    from bincounter.serving.packing.archive import (
        PackageSettings,
        check_trust,
        read_package,
        record_packed,
    )
    from bincounter.serving.packing.parity import check_parity, check_score
    from bincounter.serving.packing.parity_photos import calibration_photos, parity_photos, scored_photos
    from bincounter.training.results import confidence_threshold

    packed_here = state_of(cfg) / "packed.sha256"
    if cfg.ckpt_path is None:
        archive = Path(cfg.archive)
        check_trust(archive, packed_here, digest=cfg.archive_sha256, trusted=cfg.trust is True)
        log.warning("The answers of %s are not compared with training.", cfg.archive)
        return read_package(archive)
    origin = origin_of(cfg)
    settings = PackageSettings(Path(), cfg.precision, _limits(cfg), _engine(cfg), **cfg.audit)
    if cfg.precision == "int8":
        settings = replace(settings, calibration=calibration_photos(origin.run))
    if cfg.coverage is not None:
        settings = replace(settings, least=confidence_threshold(origin, cfg.coverage))
    trusted = cfg.trust or []
    if cfg.dry_run:  # for the names in the requests, which are digests
        with tempfile.TemporaryDirectory() as folder:
            return _packed(cfg, origin, replace(settings, path=Path(folder) / "model.tar.gz"))
    path = place_of(cfg, origin)
    check_writable(path, key="archive")
    # In the same folder, so that it can be renamed.
    aside = path.with_name(f".{path.name}.{os.getpid()}.unchecked")
    try:
        packed = _packed(cfg, origin, replace(settings, path=aside))
        if cfg.precision == "int8" and cfg.parity.photos:
            log.info("%s", check_score(origin.checkpoint, aside, scored_photos(origin.run), trusted=trusted))
        elif cfg.parity.photos:
            photos = parity_photos(
                origin, cfg.parity.photos, source=cfg.parity.source, data_dir=Path(cfg.paths.data_dir)
            )
            log.info("%s", check_parity(origin.checkpoint, aside, photos, trusted=trusted))
        else:
            log.warning("parity.photos=0: the archive's answers are not compared with training.")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    log.info("%s: model %s, %.1f MB", path, packed.model, path.stat().st_size / 1e6)
    packed = replace(packed, path=path)
    record_packed(packed, packed_here)
    return packed


def _packed(cfg: DictConfig, origin: "CheckpointOrigin", settings: "PackageSettings") -> "Package":
    """Pack for the engine of the settings; a default engine gives way to torch for a backbone that does not export."""
    from bincounter.serving.application.engines import TORCH
    from bincounter.serving.packing.archive import package
    from bincounter.serving.packing.export import ExportError

    try:
        return package(origin.checkpoint, settings, trusted=cfg.trust or [])
    except ExportError as error:
        if cfg.engine is not None or cfg.precision == "int8":
            raise
        log.info("engine=torch: %s", error)
        return package(origin.checkpoint, replace(settings, engine=TORCH), trusted=cfg.trust or [])


def _engine(cfg: DictConfig) -> str:
    """Engine of the archive: the given one, else ONNX Runtime on CPUs where it is installed.

    Raises:
        ConfigError: it computes on CPUs and the instances have GPUs, or it is not installed.
    """
    import torch

    from bincounter.cloud.instances import gpu_count
    from bincounter.serving.application.engines import TORCH
    from bincounter.serving.packing.export import EXPORTER

    instance = cfg.target.get("instance_type")
    gpus = gpu_count(instance) if instance else 0
    if cfg.engine == TORCH or cfg.precision == "bf16":
        return TORCH
    if cfg.engine or cfg.precision == "int8":
        engine = cfg.engine or "onnxruntime"
        named = f"engine={cfg.engine}" if cfg.engine else "precision=int8"
        if gpus:
            raise ConfigError(
                f"{named} computes on CPUs, and target.instance_type={instance} has GPUs: remove {named}, or choose an "
                "instance without GPUs, such as ml.m5.xlarge"
            )
        extra = "openvino" if engine == "openvino" else "onnx"
        check_extra(*EXPORTER, engine, extra=extra, wanted=named)
        if not _is_distribution(engine):
            raise ConfigError(
                f"{named} needs the package {engine}, which archives require by this name: pip install {engine}"
            )
        return engine
    if gpus or (target_name(cfg) == "local" and torch.cuda.is_available()):
        return TORCH
    if all(map(find_spec, EXPORTER)) and _is_distribution("onnxruntime"):
        return "onnxruntime"
    log.info("engine=torch; ONNX Runtime is faster on CPUs: pip install 'bincounter[onnx]'")
    return TORCH


def _is_distribution(name: str) -> bool:
    """Return True if a package of that name is installed; others, as onnxruntime-gpu, may bring its module."""
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def origin_of(cfg: DictConfig) -> "CheckpointOrigin":
    """Checkpoint of a configuration, and its run."""
    from bincounter.training.results import find_run_of_checkpoint

    if cfg.ckpt_path == "latest":
        from bincounter.training.run_folder import find_newest_checkpoint

        return find_run_of_checkpoint(find_newest_checkpoint(Path(cfg.paths.log_dir), named_by="ckpt_path"))
    return find_run_of_checkpoint(Path(cfg.ckpt_path))


def place_of(cfg: DictConfig, origin: "CheckpointOrigin") -> Path:
    """Path of the archive of a configuration."""
    if cfg.archive:
        return Path(cfg.archive)
    return folder_for(cfg.ckpt_path, origin.folder, Path(cfg.paths.log_dir)) / "endpoint" / "model.tar.gz"


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


def state_of(cfg: DictConfig) -> Path:
    """Folder of unpacked archives, of the list of those packed here, and of the list of endpoints' records."""
    return Path(cfg.paths.cache_dir) / "serving"
