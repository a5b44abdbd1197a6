"""Hydra's own tests for launchers: apps that know nothing of bincounter, run as training jobs by the rehearsal."""

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, LauncherTestSuite

from hydra_plugins.bincounter import SageMakerLauncher

_SETTINGS = [
    "hydra.launcher.settings.region=us-east-1",
    "hydra.launcher.settings.role=arn:aws:iam::123456789012:role/rehearsal",
    "hydra.launcher.settings.instance_type=ml.m5.xlarge",
    "hydra.launcher.settings.max_parallel_jobs=2",
]


pytestmark = pytest.mark.usefixtures("at_plane")


def test_hydra_finds_the_plugin() -> None:
    assert SageMakerLauncher.__name__ in [cls.__name__ for cls in Plugins.instance().discover(Launcher)]


@pytest.mark.parametrize(("launcher_name", "overrides"), [("sagemaker", _SETTINGS)])
class TestSageMakerLauncher(LauncherTestSuite):
    pass


@pytest.mark.parametrize(
    ("launcher_name", "overrides"), [("sagemaker", [*_SETTINGS, "hydra.sweeper.max_batch_size=2"])]
)
class TestInBatches(BatchedSweeperTestSuite):
    pass
