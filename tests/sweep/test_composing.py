"""What a trial is composed of is what Hydra would compose."""

from collections.abc import Iterator

import pytest
from commands import REPOSITORY
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from bincounter.config.checks import mode_of
from bincounter.config.train_schema import register
from bincounter.sweep.composing import TrialLoader

COMMON = ["data=abid", "trainer=cpu", "model=resnet18", "seed=3", "hparams_search=optuna", "hydra.verbose=false"]


@pytest.fixture(scope="module")
def loader() -> Iterator[ConfigLoader]:
    register()
    OmegaConf.register_new_resolver("mode_of", mode_of, replace=True)
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


@pytest.fixture(scope="module")
def master(loader: ConfigLoader) -> DictConfig:
    overrides = [*COMMON, "model.optimizer.lr=interval(0.1,1)", "hydra/job_logging=stdout"]
    cfg = loader.load_configuration("train", overrides, RunMode.MULTIRUN)
    assert cfg.paths.output_dir  # from now on its moment is that of all
    return cfg


def written(cfg: DictConfig) -> str:
    """Everything of a configuration, interpolations as they stand and what is of the moment once read."""
    assert OmegaConf.is_struct(cfg)
    return OmegaConf.to_yaml(cfg) + str(cfg.paths.output_dir) + str(cfg.hydra.sweep.dir)


def test_trials_are_those_of_hydra(loader: ConfigLoader, master: DictConfig) -> None:
    ours = TrialLoader(loader, COMMON)
    for own in (
        ["model.optimizer.lr=0.5", "data.counts=[1,2]", "hydra.sweep.dir=somewhere", "hydra.sweep.subdir=0"],
        ["model.optimizer.lr=0.25", "+trainer.limit_val_batches=0.5", "~logger.csv", "hydra.sweep.subdir=1"],
        ["seed=4", "++trainer.max_epochs=7", "model.head={layers:2,width:8}", "tags=['a=b','c']"],
        ["model=cnn", "model.backbone.width=8"],  # another file is read
        ["model/optimizer=sgd", "model.optimizer.lr=0.1"],
        ["model.optimizer.lr=0.5", "hydra.sweep.subdir=2"],
    ):
        expected = loader.load_sweep_config(master, [*COMMON, *own])
        assert written(ours.load_sweep_config(master, [*COMMON, *own])) == written(expected)
    for other in (["seed=1"], COMMON[:-1], [*COMMON[1:], COMMON[0], "seed=9"]):
        expected = loader.load_sweep_config(master, other)
        assert written(ours.load_sweep_config(master, other)) == written(expected)


@pytest.mark.parametrize("wrong", ["model.optimizer.lrr=1", "seed=a", "+seed=1", "seed=1,2", "seed="])
def test_what_hydra_refuses_is_refused(wrong: str, loader: ConfigLoader, master: DictConfig) -> None:
    told = []
    for each in (loader, TrialLoader(loader, COMMON)):
        with pytest.raises(HydraException) as refused:
            each.load_sweep_config(master, [*COMMON, wrong])
        told.append(str(refused.value))
    assert told[0] == told[1]
