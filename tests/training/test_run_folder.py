"""Commit of the code that runs, and configurations of earlier versions."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

import bincounter
from bincounter.config.checks import check_target
from bincounter.errors import ConfigError
from bincounter.training import run_folder
from bincounter.training.resume import refuse_changes, stored_config

MOVED = "bincounter.cloud.container.cluster.SageMakerEnvironment"


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose file package/bincounter/__init__.py is taken for the code that runs."""
    package = tmp_path / "package" / "bincounter"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setattr(bincounter, "__file__", str(package / "__init__.py"))
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "All")
    return tmp_path


def test_the_commit_is_that_of_this_project_and_of_no_repository_around_it(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Installed:
        url = json.dumps({"url": "https://example.com/bincounter", "vcs_info": {"vcs": "git", "commit_id": "abc"}})

        def read_text(self, name: str) -> str | None:
            return self.url if name == "direct_url.json" else None

    monkeypatch.setattr(run_folder, "distribution", lambda name: Installed())
    assert run_folder.commit() == {"commit": "abc", "clean": None}
    Installed.url = ""  # from a package index
    assert run_folder.commit() == {"commit": None, "clean": None}
    (repository / "pyproject.toml").write_text('[project]\nname = "another"\n')
    assert run_folder.commit()["commit"] is None
    (repository / "pyproject.toml").write_text('[project]\nname = "bincounter"\n')
    assert run_folder.commit() == {"commit": git(repository, "rev-parse", "HEAD"), "clean": False}
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "Ours")
    assert run_folder.commit() == {"commit": git(repository, "rev-parse", "HEAD"), "clean": True}
    shipped = {"commit": "def", "clean": True}
    (repository / "package" / run_folder.SHIPPED).write_text(json.dumps(shipped))
    assert run_folder.commit() == shipped


def test_a_target_that_moved_is_no_change_of_the_configuration(tmp_path: Path) -> None:
    before = {"trainer": {"num_nodes": 2, "plugins": [{"_target_": MOVED}]}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(before))
    stored = stored_config(tmp_path)
    assert stored is not None
    now = stored["trainer"]["plugins"][0]
    check_target("trainer.plugins", now)  # it exists
    refuse_changes(stored, {"trainer": {"num_nodes": 2, "plugins": [now]}}, tmp_path)
    with pytest.raises(ConfigError, match=r"trainer\.plugins"):
        refuse_changes(before, {"trainer": {"num_nodes": 2, "plugins": [now]}}, tmp_path)
