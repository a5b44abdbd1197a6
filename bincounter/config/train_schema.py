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
from bincounter.config.debugger_schema import DEBUGGERS, PROFILERS
from bincounter.config.launcher_schema import ContainerConfig, LocalConfig, RehearsalConfig, SageMakerConfig
from bincounter.config.search_schema import OptunaConfig, TunerConfig
from bincounter.data.split_settings import METHODS


@dataclass
class SplitConfig:
    """Split of the photos into training, validation and test."""

    # grouped: linked photos stay on one side | given: the split that the source has | random: photo by photo
    method: str = bounded("grouped", choices=METHODS)
    # shares of training, validation and test; their sum is 1; without effect, as the seed, where grouped finds train,
    # valid and test folders that keep linked photos together, and with given
    fractions: list[float] = field(default_factory=lambda: [0.8, 0.1, 0.1])
    # of the split alone, so that runs of several seeds share their test photos
    seed: int = bounded(0, ge=0, le=2**32 - 1)
    # number of the equal parts that is the test side in this run of a cross-validation, from 0; a test share of 0.2
    # makes 5 parts
    fold: int | None = bounded(None, ge=0, le=99)


@dataclass
class AugmentationConfig:
    """Random changes to the training photos; none if all are zero and false."""

    flip: bool = True  # mirror left and right, every second photo
    shift: float = bounded(0.06, ge=0, le=0.5)  # share of width and height, either way
    scale: float = bounded(0.1, ge=0, le=0.9)  # factor of the zoom: between 1 - scale and 1 + scale
    rotation: float = bounded(5.0, ge=0, le=180)  # degrees, either way
    brightness: float = bounded(0.2, ge=0, le=1)  # factor between 1 - brightness and 1 + brightness
    contrast: float = bounded(0.2, ge=0, le=1)  # factor between 1 - contrast and 1 + contrast
    saturation: float = bounded(0.2, ge=0, le=1)  # factor between 1 - saturation and 1 + saturation
    mixup: float = bounded(0.0, ge=0)  # alpha of the Beta distribution by which two photos are blended; 0: off
    cutmix: float = bounded(0.0, ge=0)  # alpha of the patches; 0: off; with mixup on, too, each batch uses one of them


@dataclass
class ProgressiveConfig:
    """Progressive resizing: a fit begins on small training photos and ends on whole ones, in much less time."""

    start_size: int | None = bounded(None, ge=16, le=1024)  # pixels, both sides, in the first epoch; null: off
    # share of the epochs after which photos have data.image_size; they grow in equal steps until then
    until: float = bounded(0.75, ge=0, le=1)


@dataclass
class SyncConfig:
    """Download of an s3:// source."""

    # counts: fetch no photo whose count is not in data.counts
    only: str = bounded("all", choices=("all", "counts"))
    # local copies of objects that are deleted in the bucket: mirror deletes them, keep does not
    deleted: str = bounded("mirror", choices=("mirror", "keep"))
    connections: int = bounded(64, ge=1, le=1024)  # requests at a time
    stream: bool = False  # read photos of shards by range when they are needed, instead of fetching the shards


@dataclass
class DataConfig:
    """A data set, and how its photos become batches."""

    source: str | None = path_setting(None)  # a folder or an s3:// URI
    layout: Any = None  # class that reads the source, and its arguments: docs/extending.md
    counts: list[int] | None = None  # counts to use, others are excluded; null: every count in the data
    # further counts, above the largest of counts, that are learnt and never answered; the last takes all larger ones
    learn_above: int = bounded(0, ge=0, le=100)
    corrections: str | None = path_setting(None)  # corrections.csv of a review, whose counts replace the source's
    image_size: int = bounded(224, ge=16, le=1024)  # pixels, both sides; the aspect ratio is not kept
    batch_size: int = bounded(32, ge=1)  # photos per step on each device
    balanced: bool = False  # draw every count equally often in training
    num_workers: int | None = bounded(None, ge=0)  # processes that decode photos; null: as many as help
    cache: bool = True  # keep decoded photos (image_size^2 * 3 bytes each) and a frozen backbone's features on disk
    split: SplitConfig = field(default_factory=SplitConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    progressive: ProgressiveConfig = field(default_factory=ProgressiveConfig)


@dataclass
class HeadConfig:
    """Fully connected layers between the backbone's features and the objective's outputs."""

    layers: int = bounded(0, ge=0, le=10_000)  # hidden layers, besides the output
    width: int = bounded(512, ge=1, le=10_000)  # units in each of them
    # share of units dropped after each hidden layer, and before the output where there is none
    dropout: float = bounded(0.0, ge=0, le=0.99)


@dataclass
class ScheduleConfig:
    """The learning rate over a run, as a factor of the optimizer's lr."""

    # cosine: falls to final_factor at the end | constant
    name: str = bounded("cosine", choices=("cosine", "constant"))
    warmup_epochs: float = bounded(0.5, ge=0)  # epochs of linear warm-up
    final_factor: float = bounded(0.01, ge=0, le=1)  # factor at the end of the cosine


@dataclass
class ModelConfig:
    """The network and its optimisation."""

    backbone: Any = MISSING  # function that builds the backbone, and its arguments: docs/extending.md
    weights: str | None = path_setting(None)  # a torchvision name, a local file, or null: random weights
    # part of the backbone: all | frozen: none | last_stages | gradual: one more stage every unfreeze_every epochs
    trained: str = bounded("all", choices=("all", "frozen", "last_stages", "gradual"))
    stages: int = bounded(1, ge=1)  # stages that trained=last_stages trains, counted from the output
    unfreeze_every: int = bounded(1, ge=1)  # epochs between two stages of trained=gradual
    head: HeadConfig = field(default_factory=HeadConfig)
    optimizer: Any = MISSING  # a group of its own, model/optimizer
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    class_weights: str | None = bounded(None, choices=("balanced",))  # balanced: a rare count weighs more in the loss
    # answer with the mean of the distributions for a photo and for its mirror image: takes twice as long
    average_flips: bool = False
    # count to answer with: mode: the most likely one | median: less often the right one, but off by less
    answer: str = bounded("mode", choices=("mode", "median"))
    channels_last: bool = True  # memory format, several times faster on CPUs and tensor cores


@dataclass
class PathsConfig:
    """Folders; relative ones start at the working directory."""

    data_dir: str = path_setting()  # folder of demo bins and synced buckets
    cache_dir: str = path_setting()  # folder of manifests, splits, decoded photos and features; safe to delete
    log_dir: str = path_setting()  # folder of runs and sweeps
    output_dir: str = path_setting()  # folder of this run
    # folder to which each new best.ckpt is copied, with its config.yaml; null: none
    model_dir: str | None = path_setting(None)


@dataclass
class CheckpointConfig:
    """Intervals of checkpoints, besides the end of every epoch."""

    every_n_train_steps: int = bounded(100, ge=1)  # optimizer steps between two checkpoints within an epoch


@dataclass
class TrainConfig:
    """The whole configuration of ``bincounter train``."""

    task_name: str = "train"  # of the run: part of its folder, of jobs and of studies
    tags: list[str] = field(default_factory=list)  # words for your own use; W&B shows them
    train: bool = True  # fit the model; false: only score ckpt_path
    test: bool = True  # score the test photos at the end
    # to resume or to score: last (of paths.output_dir), latest (of all runs), a file or a run's folder
    ckpt_path: str | None = path_setting(None)
    seed: int = bounded(0, ge=0, le=2**32 - 1)  # of weights, order and augmentation
    optimized_metric: str = "val/accuracy"  # validation metric that chooses best.ckpt, and that a sweep optimises
    # PyTorch's setting of that name: lower is faster on GPUs with TF32
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
    dry_run: bool = False  # print the request of a launcher, and send none


def register() -> None:
    """Register the schemas with Hydra; called once before it composes."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(group="data", name="schema", node=DataConfig)
    store.store(group="paths", name="schema", node=PathsConfig)
    for name, schema in DEBUGGERS.items():
        store.store(group="debugger", name=f"{name}_schema", node=schema)
    for name, schema in PROFILERS.items():
        store.store(group="profiler", name=f"{name}_profiler_schema", node=schema)
    store.store(group="launcher", name="local_schema", node=LocalConfig)
    store.store(group="launcher", name="sagemaker_schema", node=SageMakerConfig)
    store.store(group="launcher", name="rehearsal_schema", node=RehearsalConfig)
    store.store(group="launcher", name="container_schema", node=ContainerConfig)
    store.store(group="hparams_search", name="optuna_schema", node=OptunaConfig)
    store.store(group="hparams_search", name="tuner_schema", node=TunerConfig)
