"""Schemas of a training configuration, one per group, registered with Hydra before any YAML is read.

Hydra rejects wrong keys and types while it composes; ``bincounter.config.validate`` checks bounds and rules between
settings. Nodes typed ``Any`` are open: they hold a ``_target_`` and its arguments, which are checked against the
target's signature. Every setting and its default is here or in the YAML files under ``conf/``.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from bincounter.config.checks import bounded, path_setting
from bincounter.config.debugger_schema import (
    DEBUGGERS,
    AdvancedProfiler,
    NoProfiler,
    PytorchProfiler,
    SimpleProfiler,
)
from bincounter.config.launcher_schema import ContainerConfig, LocalConfig, RehearsalConfig, SageMakerConfig
from bincounter.config.search_schema import OptunaConfig, TunerConfig


@dataclass
class SplitConfig:
    """Split of the photos into training, validation and test."""

    method: str = bounded("grouped", choices=("grouped", "given", "random"))
    fractions: list[float] = field(default_factory=lambda: [0.8, 0.1, 0.1])  # training, validation, test; sum 1
    # Apart from the run's seed, so that runs of several seeds share their test photos.
    seed: int = bounded(0, ge=0, le=2**32 - 1)


@dataclass
class AugmentationConfig:
    """Random changes to the training photos; none if all are zero and false."""

    flip: bool = True  # left-right
    shift: float = bounded(0.06, ge=0, le=0.5)  # at most this fraction of the width and the height
    scale: float = bounded(0.1, ge=0, le=0.9)  # zoom between 1 - scale and 1 + scale
    rotation: float = bounded(5.0, ge=0, le=180)  # degrees, either way
    brightness: float = bounded(0.2, ge=0, le=1)  # factor between 1 - b and 1 + b; likewise the next two
    contrast: float = bounded(0.2, ge=0, le=1)
    saturation: float = bounded(0.2, ge=0, le=1)
    mixup: float = bounded(0.0, ge=0)  # alpha of the Beta distribution; 0 is off
    cutmix: float = bounded(0.0, ge=0)  # likewise; with both on, each batch takes one of them


@dataclass
class SyncConfig:
    """Download of an s3:// source."""

    # Counts: of photos whose count is not in data.counts, fetch none.
    only: str = bounded("all", choices=("all", "counts"))
    # What becomes of local copies of objects that are deleted in the bucket.
    deleted: str = bounded("mirror", choices=("mirror", "keep"))
    connections: int = bounded(64, ge=1, le=1024)  # requests at a time
    stream: bool = False  # photos in shards: read each by range when it is needed, instead of fetching the shards


@dataclass
class DataConfig:
    """A data set, and how its photos become batches."""

    source: str | None = path_setting(None)  # a folder or an s3:// URI
    layout: Any = None  # open: what reads the source, see bincounter.data.layouts
    counts: list[int] | None = None  # photos with other counts are excluded; null takes every count there is
    image_size: int = bounded(224, ge=16, le=1024)  # pixels, both sides; the aspect ratio is not kept
    batch_size: int = bounded(32, ge=1)  # photos per step on each device
    balanced: bool = False  # draw every count equally often in training
    num_workers: int | None = bounded(None, ge=0)  # processes that decode photos; null: as many as help
    cache: bool = True  # keep decoded photos (image_size^2 * 3 bytes each) and a frozen backbone's features on disk
    split: SplitConfig = field(default_factory=SplitConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)


@dataclass
class HeadConfig:
    """Fully connected layers between the backbone's features and the objective's outputs."""

    layers: int = bounded(0, ge=0)  # extra hidden layers
    width: int = bounded(512, ge=1)  # units in each of them
    dropout: float = bounded(0.0, ge=0, le=0.99)  # after each hidden layer, and before the output when there is none


@dataclass
class ScheduleConfig:
    """The learning rate over a run, as a factor of the optimizer's lr."""

    name: str = bounded("cosine", choices=("cosine", "constant"))
    warmup_epochs: float = bounded(0.5, ge=0)  # linear warm-up
    final_factor: float = bounded(0.01, ge=0, le=1)  # where the cosine ends


@dataclass
class ModelConfig:
    """The network and its optimisation."""

    backbone: Any = MISSING  # open: see bincounter.model.backbones
    weights: str | None = path_setting(None)  # a torchvision name, a local file, or null for a random start
    trained: str = bounded("all", choices=("all", "frozen", "last_stages", "gradual"))
    stages: int = bounded(1, ge=1)  # trained=last_stages: how many, counted from the output
    unfreeze_every: int = bounded(1, ge=1)  # trained=gradual: epochs between one more stage and the next
    head: HeadConfig = field(default_factory=HeadConfig)
    optimizer: Any = MISSING  # open, a group of its own: model/optimizer=adamw|sgd
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    class_weights: str | None = bounded(None, choices=("balanced",))  # balanced: the loss of a rare count weighs more
    channels_last: bool = True  # memory format; several times faster on CPU and on tensor cores


@dataclass
class PathsConfig:
    """Folders; relative ones start at the working directory."""

    data_dir: str = path_setting()  # demo bins and synced buckets
    cache_dir: str = path_setting()  # manifests, splits and decoded photos; safe to delete
    log_dir: str = path_setting()  # the runs
    output_dir: str = path_setting()  # this run
    # Where each new best.ckpt is also copied, with its config.yaml; null: nowhere.
    model_dir: str | None = path_setting(None)


@dataclass
class CheckpointConfig:
    """How often a run saves a checkpoint, besides the end of every epoch."""

    every_n_train_steps: int = bounded(100, ge=1)  # optimizer steps


@dataclass
class TrainConfig:
    """The whole configuration of train.py."""

    task_name: str = "train"
    tags: list[str] = field(default_factory=list)
    train: bool = True
    test: bool = True
    ckpt_path: str | None = path_setting(None)  # last | latest | a file
    seed: int = bounded(0, ge=0, le=2**32 - 1)
    optimized_metric: str = "val/accuracy"  # chooses best.ckpt, and what a sweep gets back
    float32_matmul_precision: str = bounded("highest", choices=("highest", "high", "medium"))
    data: DataConfig = MISSING
    model: ModelConfig = MISSING
    objective: Any = MISSING
    callbacks: Any = None
    logger: Any = None
    trainer: Any = MISSING
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    debugger: Any = MISSING  # typed by its own schemas: none, tensors, smdebug
    profiler: Any = MISSING  # typed by its own schemas: none, simple, advanced, pytorch
    paths: PathsConfig = MISSING
    launcher: Any = MISSING  # typed by its own schemas: local, SageMaker, rehearsal
    hparams_search: Any = None  # typed by its own schemas: Optuna, SageMaker's tuner
    dry_run: bool = False  # print the request that a launcher would send, and end


def register() -> None:
    """Register the schemas with Hydra; called once before it composes."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(group="data", name="schema", node=DataConfig)
    store.store(group="paths", name="schema", node=PathsConfig)
    for name, schema in DEBUGGERS.items():
        store.store(group="debugger", name=f"{name}_schema", node=schema)
    store.store(group="profiler", name="no_profiler_schema", node=NoProfiler)
    store.store(group="profiler", name="simple_profiler_schema", node=SimpleProfiler)
    store.store(group="profiler", name="advanced_profiler_schema", node=AdvancedProfiler)
    store.store(group="profiler", name="pytorch_profiler_schema", node=PytorchProfiler)
    store.store(group="launcher", name="local_schema", node=LocalConfig)
    store.store(group="launcher", name="sagemaker_schema", node=SageMakerConfig)
    store.store(group="launcher", name="rehearsal_schema", node=RehearsalConfig)
    store.store(group="launcher", name="container_schema", node=ContainerConfig)
    store.store(group="hparams_search", name="optuna_schema", node=OptunaConfig)
    store.store(group="hparams_search", name="tuner_schema", node=TunerConfig)
