"""Configurations of earlier versions."""

from pathlib import Path

import pytest
import yaml

from bincounter.config.checks import check_target
from bincounter.errors import ConfigError
from bincounter.training.resume import check_unchanged, stored_config

MOVED = "bincounter.cloud.container.cluster.SageMakerEnvironment"


def test_a_target_that_moved_is_no_change_of_the_configuration(tmp_path: Path) -> None:
    before = {"trainer": {"num_nodes": 2, "plugins": [{"_target_": MOVED}]}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(before))
    stored = stored_config(tmp_path)
    assert stored is not None
    now = stored["trainer"]["plugins"][0]
    check_target("trainer.plugins", now)  # it exists
    check_unchanged(stored, {"trainer": {"num_nodes": 2, "plugins": [now]}}, tmp_path)
    with pytest.raises(ConfigError, match=r"trainer\.plugins"):
        check_unchanged(before, {"trainer": {"num_nodes": 2, "plugins": [now]}}, tmp_path)
