"""Code archive of a job: the files that git tracks in a checkout, or those of an installed wheel; pinned requirements.

The same files give the same bytes, so that an archive is stored under its digest and sent once. torch, torchvision and
their own requirements are left to the image, which has builds for its GPUs.
"""

import gzip
import hashlib
import json
import os
import re
import stat
import subprocess
import tarfile
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bincounter.errors import ConfigError
from bincounter.files import atomic_write
from bincounter.names import first_of

LARGEST = 50_000_000
"""Maximum size of all files together, in bytes."""

# Spawned processes, such as those that render demo bins, import this file again, and need neither Lightning nor Hydra.
_START = """if __name__ == "__main__":
    import sys

    from bincounter.cli.container_command import main

    sys.exit(main())
"""
_OURS = ("bincounter", "conf", "hydra_plugins", "train.py")  # needed by a run
_SUBMODULE = "160000"
_NAMED = 5  # files named in one sentence
_SECRET_FILE = re.compile(
    r"\.env(\.(?!example$|sample$|template$).+)?|.+\.(pem|key|p12|pfx)|id_(rsa|dsa|ecdsa|ed25519).*|\.netrc|\.pypirc|\.npmrc|\.git-credentials|kubeconfig"
    r"|credentials(\.(csv|ini|json|toml|txt|ya?ml))?|.*accesskeys\.csv|rootkey\.csv",
    re.IGNORECASE,
)
_SECRET_TEXT = {
    # AWS's manuals write keys that end in EXAMPLE.
    "an AWS access key id": re.compile(rb"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b(?<!EXAMPLE)"),
    "an AWS secret access key": re.compile(rb"aws_secret_access_key\s*[=:]\s*['\"]?[A-Za-z0-9/+]{40}\b", re.IGNORECASE),
    "an access token": re.compile(rb"\b(?:gh[pousr]_\w{36}|hf_[A-Za-z0-9]{30,})\b"),
    "a private key": re.compile(rb"-----BEGIN (?:[A-Z0-9]+ ){0,2}PRIVATE KEY-----"),
}
_OF_THE_IMAGE = {"torch", "torchvision"}
_OF_SMDEBUG = {"numpy", "protobuf"}  # it needs older versions than those installed here


@dataclass(frozen=True)
class CodeArchive:
    """Packed archive.

    Attributes:
        path: of the ``.tar.gz``.
        sha256: hexadecimal digest of the archive.
        size: bytes of the archive.
        files: number of files in it.
    """

    path: Path
    sha256: str
    size: int
    files: int


class _File(NamedTuple):
    """File of the archive; ``executable`` is the only bit of its mode that is kept."""

    content: bytes
    executable: bool = False


def pack(
    repository: Path,
    destination: Path,
    *,
    extra: Mapping[str, bytes] | None = None,
    extras: Collection[str] = (),
    smdebug: bool = False,
) -> CodeArchive:
    """Write the archive: files of bincounter as they are on disk, ``start.py`` and ``requirements.txt``.

    Args:
        repository: git checkout with bincounter's ``pyproject.toml``, or the folder that bincounter is installed in.
        destination: the ``.tar.gz`` to write; it appears whole or not at all.
        extra: further files, by their path in the archive.
        extras: extras of the package that the run needs.
        smdebug: whether the run needs smdebug, see :func:`pinned_requirements`.

    Raises:
        ConfigError: there is no checkout, or a file is missing, untracked, too large or looks like a secret.
    """
    root = repository.resolve()
    installed = None if (root / "pyproject.toml").exists() else _installed(root)
    if installed:
        files = {name: _File((root / name).read_bytes()) for name in _recorded(installed)}
    else:
        names = _tracked(root)
        _refuse_untracked(root)
        _refuse_names(names)
        files = _read(root, names)
    requirements = pinned_requirements(None if installed else root / "pyproject.toml", extras, smdebug=smdebug)
    generated = {"start.py": _START.encode(), **(extra or {}), "requirements.txt": requirements.encode()}
    for name in generated.keys() & files.keys():
        raise ConfigError(
            f"git tracks {name}, which is written anew for every job: rename it, and list what it requires under "
            "dependencies in pyproject.toml"
        )
    files |= {name: _File(content) for name, content in generated.items()}
    for name, file in files.items():
        _refuse_secret_text(name, file.content)
    archive = _archive(files)
    with atomic_write(destination, "wb") as out:
        out.write(archive)
    return CodeArchive(destination, hashlib.sha256(archive).hexdigest(), len(archive), len(files))


def _installed(root: Path) -> Distribution | None:
    """Find the distribution of bincounter that a wheel has installed in ``root``."""
    return next(iter(distributions(name="bincounter", path=[str(root)])), None)


def _recorded(installed: Distribution) -> list[str]:
    """List the installed files that a run needs, relative to the folder of the distribution."""
    files = [path for path in installed.files or () if path.parts[0] in _OURS and path.suffix != ".pyc"]
    if not any(path.match("bincounter/conf/train.yaml") for path in files):
        raise ConfigError(
            f"the installation of bincounter in {installed.locate_file('')} does not list its files (RECORD), which a "
            "job is sent: install its wheel by pip, or start from a git clone of it"
        )
    return sorted(path.as_posix() for path in files)


def _tracked(root: Path) -> list[str]:
    """List the files that git tracks under ``root``, relative to it."""
    entries = [entry.partition("\t") for entry in _git(root, "ls-files", "--stage", "-z")]
    for described, _, name in entries:
        if described.startswith(_SUBMODULE):
            raise ConfigError(
                f"{name} is a submodule of git, whose files would be missing in the container: add them to this "
                "repository, or remove the submodule"
            )
    names = sorted({name for _, _, name in entries})  # a file in a merge conflict is listed more than once
    if "pyproject.toml" not in names:
        raise ConfigError(
            f"{root} tracks no pyproject.toml, so it is not a checkout of bincounter: start from a git clone of it"
        )
    return names


def _git(root: Path, *arguments: str) -> list[str]:
    """Run a git command with ``-z`` and return its entries."""
    try:
        # In a git hook, these variables name another repository.
        own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        done = subprocess.run(["git", *arguments], cwd=root, env=own, capture_output=True, check=False)
    except FileNotFoundError as error:
        if not root.is_dir():
            raise ConfigError(f"{root} does not exist: start from a git clone of bincounter") from error
        raise ConfigError(
            "git is not installed, and a job gets the files that it tracks: install git, and start from a git clone of "
            "bincounter"
        ) from error
    if done.returncode:
        why = next(iter(done.stderr.decode(errors="replace").splitlines()), f"exit code {done.returncode}")
        raise ConfigError(f"{root} is not a checkout that git can read ({why}): start from a git clone of bincounter")
    return [entry for entry in os.fsdecode(done.stdout).split("\0") if entry]


def _refuse_untracked(root: Path) -> None:
    others = ("ls-files", "--others", "--exclude-standard", "-z")
    untracked = _git(root, *others, "--", *_OURS)
    # Hydra composes ignored configuration files here, too.
    untracked += _git(
        root, "ls-files", "--others", "--ignored", "--exclude-standard", "-z", "--", ":(glob)conf/**/*.yaml"
    )
    if untracked:
        raise ConfigError(
            f"{first_of(untracked)} {'is' if len(untracked) == 1 else 'are'} not tracked by git and would be missing "
            "in the container: git add (-f) what belongs to the run, and move the rest away or add it to .gitignore"
        )


def _refuse_names(names: Iterable[str]) -> None:
    for name in names:
        if name == "setup.py":
            raise ConfigError(
                "a setup.py at the top of the repository makes SageMaker install it as a package instead of starting "
                "the run: move its content to pyproject.toml and delete it"
            )
        if _SECRET_FILE.fullmatch(PurePosixPath(name).name):
            raise _secret(name, "looks like a file of secrets")


def _read(root: Path, names: list[str]) -> dict[str, _File]:
    """Read the tracked files that exist; links among them are followed."""
    tracked = set(names)
    paths: dict[str, Path] = {}
    for name in names:
        path = root / name
        if not path.is_symlink() and not path.is_file():
            continue  # deleted, and not yet in git
        target = path.resolve()
        if not (target.is_relative_to(root) and target.relative_to(root).as_posix() in tracked and target.is_file()):
            raise ConfigError(
                f"{name} is a link to something other than a file that git tracks here: put a copy of it in the place "
                "of the link, or remove it from git"
            )
        paths[name] = target
    _refuse_large({name: path.stat().st_size for name, path in paths.items()})
    return {name: _File(path.read_bytes(), bool(path.stat().st_mode & stat.S_IXUSR)) for name, path in paths.items()}


def _refuse_large(sizes: Mapping[str, int]) -> None:
    total = sum(sizes.values())
    if total > LARGEST:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:_NAMED]
        shown = ", ".join(f"{name} ({sizes[name] / 1e6:.1f} MB)" for name in largest)
        raise ConfigError(
            f"the files that git tracks have {total / 1e6:.1f} MB, more than the {LARGEST / 1e6:.0f} MB of a code "
            f"archive; the largest are {shown}: keep photos and weights out of git, with git rm --cached and .gitignore"
        )


def _refuse_secret_text(name: str, content: bytes) -> None:
    for what, pattern in _SECRET_TEXT.items():
        found = pattern.search(content)
        if found:  # the value is not repeated
            line = content.count(b"\n", 0, found.start()) + 1
            raise _secret(f"{name}, line {line},", f"looks like {what}")


def _secret(where: str, why: str) -> ConfigError:
    return ConfigError(
        f"{where} {why}, and a code archive holds no secrets: remove it from git (git rm --cached), replace the secret "
        "if it was ever pushed, and let the job's role give access"
    )


def _archive(files: Mapping[str, _File]) -> bytes:
    """Make a ``.tar.gz`` that depends on names, contents and executable bits only."""
    packed = BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in sorted(files):
            content, executable = files[name]
            member = tarfile.TarInfo(name)  # time 0, owner 0
            member.size = len(content)
            member.mode = 0o755 if executable else 0o644
            tar.addfile(member, BytesIO(content))
    return packed.getvalue()


def pinned_requirements(pyproject: Path | None, extras: Collection[str], *, smdebug: bool = False) -> str:
    """Write a requirements.txt with everything that a run imports.

    Versions, and the requirements of each distribution, are the installed ones.

    Args:
        pyproject: bincounter's ``pyproject.toml``, since the metadata of an editable installation is as old as the
            last ``pip install -e .``; ``None`` to read what was installed from a wheel.
        extras: extras of the package that the run needs.
        smdebug: leave smdebug's older requirements to the image.

    Raises:
        ConfigError: a requirement is not installed here, or not from a package index.
    """
    versions = {}
    for found in _closure(_roots(pyproject, set(extras)), _OF_THE_IMAGE | (_OF_SMDEBUG if smdebug else set())):
        _refuse_local(found)
        versions[canonicalize_name(found.metadata["Name"])] = found.version
    return "".join(f"{name}=={version}\n" for name, version in sorted(versions.items()))


def _roots(pyproject: Path | None, extras: Set[str]) -> list[Requirement]:
    """The dependencies of bincounter with some extras, and with those that these extras name in turn."""
    roots = _declared(pyproject, extras) if pyproject else _installed_version(extras)
    own = [root for root in roots if canonicalize_name(root.name) == "bincounter"]
    named = {extra for root in own for extra in root.extras}
    return _roots(pyproject, extras | named) if named - extras else [root for root in roots if root not in own]


def _declared(pyproject: Path, extras: Collection[str]) -> list[Requirement]:
    """The dependencies of a checkout, with those of some extras."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    optional = project.get("optional-dependencies", {})
    return [Requirement(each) for each in (*project["dependencies"], *(n for e in extras for n in optional.get(e, ())))]


def _installed_version(extras: Collection[str]) -> list[Requirement]:
    """The dependencies of the installed bincounter, with those of some extras."""
    found = []
    for requirement in map(Requirement, distribution("bincounter").requires or ()):
        marker, requirement.marker = requirement.marker, None
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            found.append(requirement)
    return found


def _closure(roots: list[Requirement], of_the_image: Collection[str]) -> Iterator[Distribution]:
    """Yield every distribution that the requirements need, once; those of the image are skipped with their needs."""
    pending = [(root, "") for root in roots]
    seen: set[tuple[str, str]] = set()
    while pending:
        requirement, extra_asked = pending.pop()
        name = canonicalize_name(requirement.name)
        if name in of_the_image or (requirement.marker and not requirement.marker.evaluate({"extra": extra_asked})):
            continue
        try:
            found = distribution(name)
        except PackageNotFoundError as error:
            raise ConfigError(
                f"{name} is needed in the container, and its version is unknown since it is not installed here: pip "
                f"install -e . here, or pip install '{requirement.name}{requirement.specifier}'"
            ) from error
        new = {(name, extra) for extra in ("", *requirement.extras)} - seen
        if (name, "") in new:
            yield found
        seen |= new
        pending += [(Requirement(needed), extra) for _, extra in sorted(new) for needed in found.requires or ()]


def _refuse_local(found: Distribution) -> None:
    """Refuse a version that no package index has, since the container could not install it."""
    origin = json.loads(found.read_text("direct_url.json") or "{}")
    if not origin and "+" not in found.version:
        return
    name = found.metadata["Name"]
    raise ConfigError(  # the address may contain a token
        f"{name} {found.version} is installed here from a folder, a URL or another build, where the container cannot "
        f"get it: pip install --force-reinstall {name}=={found.version.partition('+')[0]} from a package index"
    )
