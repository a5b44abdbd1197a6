"""The commit that a result names is that of the code that ran, or none."""

import json
import subprocess
from pathlib import Path

import pytest
from commands import REPOSITORY

import bincounter
from bincounter.training.run_folder import COMMIT_FILE, code_commit

NOBODY_KNOWS = {"commit": None, "clean": None}


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package, in an environment inside of somebody's repository."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "analysis.py").write_text("import bincounter\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "Not bincounter's")
    folder = tmp_path / ".venv" / "site-packages" / "bincounter"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    monkeypatch.setattr(bincounter, "__file__", str(folder / "__init__.py"))
    return folder


def installed(package: Path, monkeypatch: pytest.MonkeyPatch, origin: dict) -> None:
    metadata = package.parent / "bincounter-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.4\nName: bincounter\nVersion: 0.1\n")
    (metadata / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.syspath_prepend(str(package.parent))


def test_a_checkout_has_the_commit_of_its_repository() -> None:
    assert code_commit()["commit"] == git(REPOSITORY, "rev-parse", "HEAD")
    assert code_commit()["clean"] == (git(REPOSITORY, "status", "--porcelain") == "")


def test_a_repository_around_the_environment_is_not_asked(package: Path) -> None:
    assert code_commit() == NOBODY_KNOWS


def test_a_change_after_the_commit_is_seen(package: Path) -> None:
    around = package.parents[2]
    git(around, "add", "--force", str(package))
    git(around, "commit", "--quiet", "-m", "A copy in one's own repository")
    assert code_commit() == NOBODY_KNOWS
    repository = package.parent
    git(repository, "init", "--quiet")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "A checkout")
    assert code_commit() == {"commit": git(repository, "rev-parse", "HEAD"), "clean": True}
    (package / "__init__.py").write_text("changed = True\n")
    assert code_commit() == {"commit": git(repository, "rev-parse", "HEAD"), "clean": False}


def test_what_pip_installed_from_a_repository_names_its_commit(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(package, monkeypatch, {"url": "https://host/x.git", "vcs_info": {"vcs": "git", "commit_id": "0" * 40}})
    assert code_commit() == {"commit": "0" * 40, "clean": True}


def test_what_pip_installed_from_a_folder_names_none(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(package, monkeypatch, {"url": "file:///home/me/bincounter", "dir_info": {}})
    assert code_commit() == NOBODY_KNOWS


def test_an_installation_of_other_code_is_not_asked(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(package, monkeypatch, {"url": "https://host/x.git", "vcs_info": {"vcs": "git", "commit_id": "0" * 40}})
    monkeypatch.setattr(bincounter, "__file__", str(tmp_path / "copy" / "bincounter" / "__init__.py"))
    assert code_commit() == NOBODY_KNOWS


def test_what_was_shipped_brings_its_commit(package: Path) -> None:
    (package.parent / COMMIT_FILE).write_text('{"commit": "abc", "clean": false}')
    assert code_commit() == {"commit": "abc", "clean": False}
