"""A checkpoint -> ``model.tar.gz``: the same checkpoint and settings give the same bytes."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bincounter.errors import UserError
from bincounter.serving.application.limits import Limits
from bincounter.serving.packing.contents import contents
from bincounter.serving.packing.tarball import write_tarball
from bincounter.serving.packing.unpacking import read_member, unpack

__all__ = ["Package", "Settings", "opened", "package", "unpack"]


@dataclass(frozen=True)
class Settings:
    """What an archive is made with.

    Attributes:
        path: of the ``.tar.gz`` to write.
        precision: ``fp32`` or ``bf16``.
        limits: what an endpoint takes before it refuses.
    """

    path: Path
    precision: str = "fp32"
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Package:
    """An archive.

    Attributes:
        path: of the ``.tar.gz``.
        model: the id that its answers carry.
        digest: hexadecimal sha256 of the file.
    """

    path: Path
    model: str
    digest: str


def package(checkpoint: Path, settings: Settings, *, trusted: Sequence[str] = ()) -> Package:
    """Pack a checkpoint.

    Args:
        checkpoint: of a run.
        settings: where and with which limits.
        trusted: dotted prefixes of foreign callables the model may be built from.

    Raises:
        UserError: the checkpoint cannot be used, or its foreign code cannot be found.
        ResourceError: the archive cannot be written.
    """
    packed = contents(checkpoint, precision=settings.precision, limits=settings.limits, trusted=trusted)
    digest = write_tarball(packed.files, settings.path)
    return Package(settings.path, packed.model, digest)


def opened(path: Path) -> Package:
    """An archive that is there already.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        model = str(json.loads(read_member(path, "model.json"))["model"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} has a damaged model.json: package the checkpoint anew with action=package") from error
    with path.open("rb") as file:
        return Package(path, model, hashlib.file_digest(file, "sha256").hexdigest())
