"""Errors of Lightning and of the loggers' packages are one sentence with the next step."""

import errno
import logging
from pathlib import Path

import pytest
from hydra.errors import InstantiationException
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, Dataset

from bincounter.cli.hydra_app import compose
from bincounter.data.s3.error_messages import REPEAT_TRANSFER
from bincounter.errors import BinCounterError, ConfigError, ResourceError, UserError
from bincounter.training.run_folder import RunFolder
from bincounter.training.trainer import make_trainer, resolve_precision, translate_errors


def raised_by(package: str, message: str) -> Exception:
    """An exception of a package that need not be installed, as Hydra passes it on."""
    kind = type("Error", (Exception,), {"__module__": f"{package}.exceptions"})
    error = InstantiationException("Error in call to target")
    error.__cause__ = kind(message)
    return error


def missing(package: str) -> Exception:
    error = InstantiationException("Error in call to target")
    error.__cause__ = ModuleNotFoundError(f"Requirement '{package}>=1.0' not met. HINT: Try running `pip install`")
    return error


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (missing("wandb"), ConfigError, r"logger=wandb needs a package .*: pip install 'bincounter\[wandb\]', or"),
        (missing("mlflow"), ConfigError, r"logger=mlflow needs a package .*: pip install 'bincounter\[mlflow\]', or"),
        (
            raised_by("wandb", "api_key not configured (no-tty). call wandb.login(key=[your_api_key])"),
            ConfigError,
            "wandb refuses this login .*: run `wandb login`, or set WANDB_API_KEY, or choose logger=csv",
        ),
        (
            raised_by("wandb", "Run initialization has timed out after 90.0 sec."),
            ResourceError,
            r"wandb cannot log this run \(Run init.*sec\): check the network, or add logger.wandb.offline=true",
        ),
        (
            raised_by("mlflow", "API request to http://ada:hunter2@127.0.0.1:1/api failed with exception Max retries"),
            ResourceError,
            r"mlflow cannot log this run \(API request to http://\*\*\*@127.*: start the server of logger.mlflow",
        ),
        (
            MisconfigurationException(
                "You requested to check 0.1 of the `train_dataloader` but 0.1 * 4 < 1. Please increase the "
                "`limit_train_batches` argument. Try at least `limit_train_batches=0.25`"
            ),
            ConfigError,
            "trainer.limit_train_batches=0.1 of 4 batches is less than one: set trainer.limit_train_batches=1, which",
        ),
        (
            IsADirectoryError(errno.EISDIR, "Is a directory", "run/logs/.x.part", None, "run/logs/metrics.csv"),
            UserError,
            r"run/logs/metrics.csv cannot be written \(is a directory\): move .*; resume with bincounter train",
        ),
        (
            NotADirectoryError(errno.ENOTDIR, "Not a directory", "run/checkpoints/last.ckpt"),
            UserError,
            r"run/checkpoints/last.ckpt cannot be written \(not a directory\)",
        ),
        (
            RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors"),
            ConfigError,
            "this GPU is too old, or too new, for the installed torch .*: use trainer=cpu, or install a torch that is",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            ResourceError,
            "A data.num_workers process was killed, most likely for its memory: use fewer workers; saved files are in",
        ),
        (
            RuntimeError(
                "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers "
                "are out of shared memory. Please try to raise your shared memory limit."
            ),
            ResourceError,
            r"A data.num_workers process ran out of shared memory: give it more \(docker run .*=1g\), or use fewer",
        ),
    ],
)
def test_raw_failures(error: Exception, kind: type[BinCounterError], sentence: str) -> None:
    with pytest.raises(kind, match=sentence) as caught, translate_errors(batch_size=8, run="run"):
        raise error
    assert "\n" not in str(caught.value) and "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("capabilities", "precision", "emulated"),
    [
        ({"avx2": True, "avx512_bf16": True, "amx_bf16": False}, "bf16-mixed", False),
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, "32-true", True),
        ({"neon": True, "bf16": True}, "32-true", False),  # ARM, unmeasured
        ({"neon": True, "bf16": False}, "32-true", True),
        ({"architecture": "unknown"}, "32-true", False),
    ],
)
def test_bf16_of_cpus(
    capabilities: dict[str, object],
    precision: str,
    emulated: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
    assert resolve_precision("auto", "cpu") == precision
    with caplog.at_level(logging.WARNING):
        make_trainer(compose(["trainer=cpu", "trainer.precision=bf16-mixed", "logger=csv"]), RunFolder(tmp_path), None)
    assert ("emulates 16-bit numbers" in caplog.text) == emulated


class LostPhotos(Dataset):
    """Photos in a bucket that does not respond."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        raise ResourceError(f"the connection to host failed: {REPEAT_TRANSFER}")


@pytest.mark.parametrize("workers", [0, 1])
def test_lost_connection_of_a_fit(workers: int, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").touch()
    with pytest.raises(ResourceError) as caught, translate_errors(batch_size=8, run=tmp_path):
        next(iter(DataLoader(LostPhotos(), num_workers=workers)))
    assert str(caught.value).startswith(f"the connection to host failed: saved files are in {tmp_path}; resume with ")
    assert "ckpt_path=last" in str(caught.value) and "\n" not in str(caught.value)
