"""Pack a checkpoint into model.tar.gz: weights, description, model card and serving code."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import bincounter
from bincounter.audit.posterior import ERROR_RATE, SPREAD, RecordJudge
from bincounter.data.preprocessing import decode
from bincounter.errors import ConfigError, UserError
from bincounter.model.build import load_counter, without_pretrained
from bincounter.model.counter import BinCounter
from bincounter.model.trust import OWN_PARTS, targets_of
from bincounter.serving.application.answers import Limits
from bincounter.serving.application.engines import ONNX_FILE, TORCH
from bincounter.serving.application.served_model import FORMAT
from bincounter.serving.packing.export import network_of, quantized, to_onnx
from bincounter.serving.packing.foreign_code import foreign_code
from bincounter.serving.packing.model_card import write_card
from bincounter.serving.packing.tarball import file_digest, read_member, write_tarball
from bincounter.training.results import CheckpointOrigin, find_run_of_checkpoint

_PACKAGE = Path(bincounter.__file__).parent
_CARRIED = (
    "__init__.py",
    "errors.py",
    "parallel.py",
    "audit/__init__.py",
    "audit/posterior.py",
    "data/__init__.py",
    "data/photo_bounds.py",
    "data/photo_decoder.py",
    "data/preprocessing.py",
    "model/__init__.py",
    "model/answer.py",
    "model/backbones.py",
    "model/objectives.py",
    "model/timm_backbones.py",
    "serving/__init__.py",
    *sorted(f"serving/application/{path.name}" for path in (_PACKAGE / "serving" / "application").glob("*.py")),
)
_PRECISIONS = ("fp32", "bf16", "int8")
_SERVED = ("backbone.", "head.", "objective.")  # the rest of a checkpoint is for training
_OF_TIMM, _TIMM = "bincounter.model.timm_backbones.", "timm.create_model"  # our wrapper, and the wrapped function
_ENTRYPOINTS = {"ray_serve.py": "deployment.py", "pytorch_image.py": "code/inference.py"}
_RAY_SERVE = """# What AWS's Ray Serve image runs by `serve run`; its adapter asks port 8000.
http_options: {{host: 0.0.0.0, port: 8000, request_timeout_s: {timeout}}}
logging_config: {{enable_access_log: false}}
applications:
  - {{name: bincounter, import_path: "deployment:app", route_prefix: /}}
"""
_RAY_LATER = 5.0  # seconds beyond the application's own timeout, for requests that no replica accepts


@dataclass(frozen=True)
class PackageSettings:
    """Settings of an archive.

    Attributes:
        path: of the ``.tar.gz`` to write.
        precision: ``fp32``, ``bf16`` (of torch) or ``int8`` (of the other engines).
        limits: bounds of requests.
        engine: that computes the model: ``torch``, ``onnxruntime`` or ``openvino``.
        calibration: photos that ``int8`` takes its ranges from.
        least: confidence below which an answer says that it needs a person; ``None``: answers do not say so.
        error_rate: share of wrong records, see :class:`bincounter.audit.posterior.RecordJudge`.
        spread: of their errors.
    """

    path: Path
    precision: str = "fp32"
    limits: Limits = field(default_factory=Limits)
    engine: str = TORCH
    calibration: Sequence[bytes] = ()
    least: float | None = None
    error_rate: float = ERROR_RATE
    spread: float = SPREAD


@dataclass(frozen=True)
class Package:
    """A packed archive.

    Attributes:
        path: of the ``.tar.gz``.
        model: id of the model, part of every answer.
        digest: hexadecimal sha256 of the file.
    """

    path: Path
    model: str
    digest: str


def package(checkpoint: Path, settings: PackageSettings, *, trusted: Sequence[str] = ()) -> Package:
    """Pack a checkpoint.

    Args:
        checkpoint: of a run.
        settings: of the archive.
        trusted: dotted prefixes of foreign callables the model may be built from.

    Raises:
        UserError: the checkpoint cannot be used, or its foreign code cannot be found.
        ExportError: another engine than torch is set, and the backbone cannot be exported.
        ResourceError: the archive cannot be written.
    """
    model, files = _files(checkpoint, settings, trusted)
    return Package(settings.path, model, write_tarball(files, settings.path))


def read_package(path: Path) -> Package:
    """Read an existing archive.

    Raises:
        UserError: it does not exist or is damaged.
    """
    try:
        model = str(json.loads(read_member(path, "model.json"))["model"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} has a damaged model.json: package the checkpoint again with action=package") from error
    return Package(path, model, file_digest(path))


def check_trust(path: Path, packed_here: Path, *, digest: str | None, trusted: bool) -> None:
    """Check that an existing archive is trusted: serving runs its code, and its checksums are its own.

    Args:
        path: of the archive.
        packed_here: list of the archives that this machine has packed, which are trusted.
        digest: hexadecimal sha256 of the archive that the user was given.
        trusted: the user trusts the archive as it is.

    Raises:
        ConfigError: the archive is not trusted, or its digest is another.
    """
    if not path.is_file():
        return  # read_package raises the error
    found = file_digest(path)
    if digest is not None:
        if digest.lower().removeprefix("sha256:") != found:
            raise ConfigError(
                f"archive={path} is another file, since its sha256 is {found} and not archive_sha256={digest}: get "
                "it again from its author"
            )
    elif not trusted and found not in _packed(packed_here):
        raise ConfigError(
            f"archive={path} was not packed on this machine, and serving it runs its code: ask its author for the "
            f"sha256, and add archive_sha256={found} if it is the same, or trust=true to take it unchecked"
        )


def record_packed(package: Package, packed_here: Path) -> None:
    """Add an archive to those that this machine has packed."""
    if package.digest not in _packed(packed_here):
        packed_here.parent.mkdir(parents=True, exist_ok=True)
        with packed_here.open("a", encoding="utf-8") as file:
            file.write(f"{package.digest}  {package.path.absolute()}\n")


def _packed(packed_here: Path) -> set[str]:
    if not packed_here.is_file():
        return set()
    lines = packed_here.read_text(encoding="utf-8", errors="replace").splitlines()
    return {line.partition(" ")[0] for line in lines}


def _files(checkpoint: Path, settings: PackageSettings, trusted: Sequence[str]) -> tuple[str, dict[str, bytes]]:
    """Return the id of the model, and the contents of the archive by name."""
    counter, description = load_counter(checkpoint, trusted)
    model, state, served = _identified(counter, description, settings.precision)
    parts = served["description"]
    origin = find_run_of_checkpoint(checkpoint)
    targets = {_TIMM if target.startswith(_OF_TIMM) else target for target in targets_of(parts)}
    foreign = foreign_code(target for target in targets if not target.startswith(OWN_PARTS))
    about = {
        "format": FORMAT,
        "model": model,
        "engine": settings.engine,
        **served,
        "limits": asdict(settings.limits),
        "needs_person_below": settings.least,
        "audit": RecordJudge.of_model(description, settings.error_rate, settings.spread).stored(),
        "task_name": origin.run.config.get("task_name") if origin.run else None,
        "bincounter": bincounter.__version__,
    }
    requirements, exported = set(foreign.requirements), {}
    if settings.engine != TORCH:
        onnx = to_onnx(network_of(counter, description), description)
        if settings.precision == "int8":
            size = description["image_size"]
            onnx = quantized(onnx, np.stack([decode(photo, size).numpy() for photo in settings.calibration]))
        exported[ONNX_FILE] = onnx
        requirements.add(f"{settings.engine}=={version(settings.engine)}")
    return model, {
        "weights.pt": _saved(state),
        **exported,
        "model.json": _json(about),
        "README.md": write_card(about, description, origin).encode(),
        "config.yaml": _RAY_SERVE.format(timeout=settings.limits.timeout_s + _RAY_LATER).encode(),
        "code/requirements.txt": _requirements(requirements),
        **_training(origin),
        **_own_code(),
        **{f"code/{name}": source for name, source in foreign.files.items()},
    }


def model_ids(checkpoint: Path, *, trusted: Sequence[str] = ()) -> set[str]:
    """Return the ids of the model of a checkpoint, one for each precision; arguments and errors of :func:`package`."""
    counter, description = load_counter(checkpoint, trusted)
    return {_identified(counter, description, precision)[0] for precision in _PRECISIONS}


def _identified(
    counter: BinCounter, description: Mapping[str, Any], precision: str
) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """Return the id of a model, its weights, and what else affects its answers."""
    state = {name: tensor for name, tensor in counter.state_dict().items() if name.startswith(_SERVED)}
    served: dict[str, Any] = {
        "counts": list(description["counts"]),
        "image_size": description["image_size"],
        "precision": precision,
        "temperature": description.get("temperature", 1.0),
        "learn_above": description.get("learn_above", 0),
        "description": {
            "model": without_pretrained(description["model"]),
            "objective": dict(description["objective"]),
        },
    }
    return f"bincounter-{_digest(state, served)[:12]}", state, served


def _digest(state: Mapping[str, Tensor], served: Mapping[str, Any]) -> str:
    """Hash everything that affects an answer, independent of file format and torch version."""
    digest = hashlib.sha256(_json(served))
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _saved(state: Mapping[str, Tensor]) -> bytes:
    # Cloned and contiguous, so that the bytes do not depend on the storage layout of the checkpoint.
    plain = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    file = io.BytesIO()
    torch.save(plain, file)
    return file.getvalue()


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _requirements(names: set[str]) -> bytes:
    lines = sorted(names) or ["# Nothing: torch, torchvision and Pillow are the image's own."]
    return "".join(f"{line}\n" for line in lines).encode()


def _training(origin: CheckpointOrigin) -> dict[str, bytes]:
    """Configuration of the run; secrets were masked when it was written."""
    return {"training.yaml": (origin.run.path / "config.yaml").read_bytes()} if origin.run else {}


def _own_code() -> dict[str, bytes]:
    entrypoints = _PACKAGE / "serving" / "entrypoints"
    return {
        **{name: (entrypoints / file).read_bytes() for file, name in _ENTRYPOINTS.items()},
        **{f"code/bincounter/{name}": (_PACKAGE / name).read_bytes() for name in _CARRIED},
    }
