"""Python API: the names of ``import bincounter``, imported from here on first use."""

import logging
import os
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from bincounter.cli import train_command
from bincounter.cli.composition import Composer, checked_folder
from bincounter.cli.hydra_app import parse_overrides, replace_overrides, run_app, start_app, start_as_script
from bincounter.config.checks import plain_of
from bincounter.config.launcher_schema import runs_locally
from bincounter.config.overrides import with_recipe
from bincounter.data.datamodule import BinDataModule
from bincounter.errors import BinCounterError, ConfigError, UserError
from bincounter.files import read_json
from bincounter.model.trust import own_targets
from bincounter.parallel import hidden_script
from bincounter.redaction import mask_text
from bincounter.training import resume
from bincounter.training.predictor import Prediction, Predictor

__all__ = ["BinDataModule", "Prediction", "Predictor", "Run", "load", "train"]


def load(
    checkpoint: str | Path,
    *,
    trust: Sequence[str] = (),
    device: str = "auto",
    batch_size: int = 32,
    coverage: float | None = None,
) -> Predictor:
    """Load a checkpoint to predict counts with.

    Args:
        checkpoint: a file, the folder of its run, or ``hf://owner/name`` at the Hugging Face Hub.
        trust: modules or packages of your own that may define the checkpoint's model.
        device: ``auto`` for a GPU if there is one, or a torch device such as ``cpu`` or ``cuda:1``.
        batch_size: photos per call of the model.
        coverage: share of photos to be answered without a person, above 0 and at most 1, by the model's confidences in
            its run's validation photos; predictions then have ``needs_person``.

    Raises:
        ConfigError: the device is not available, the batch size is below 1, or the coverage is not a share.
        UserError: the checkpoint is missing or broken, built by a module that is not trusted, or without a scored run
            although a coverage is given.
    """
    return Predictor(checkpoint, trust, device=device, batch_size=batch_size, coverage=coverage)


class Run:
    """A run, of this process or an earlier one.

    Args:
        folder: of the run.
        trust: modules or packages of your own that define its model.

    Attributes:
        folder: the run's folder.
        checkpoint: path of ``best.ckpt``, which a run with ``train=false`` lacks.
    """

    def __init__(self, folder: str | Path, *, trust: Sequence[str] = ()) -> None:
        self.folder = Path(folder)
        self.checkpoint = self.folder / "checkpoints" / "best.ckpt"
        self._trust = trust

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def scores(self) -> dict[str, Any]:
        """Content of ``metrics.json``: scores by ``val`` and ``test``, and ``caveats``.

        Raises:
            UserError: the file is missing: the run has not ended, or the folder is not a run's.
        """
        found = read_json(self.folder / "metrics.json", "restore it, or start a new run")
        if found is None:
            raise UserError(f"{self.folder} has no metrics.json: name the folder of a run that has ended")
        return found

    def load(self, *, device: str = "auto", batch_size: int = 32) -> Predictor:
        """Load the checkpoint, see :func:`load`."""
        return load(self.checkpoint, trust=self._trust, device=device, batch_size=batch_size)


def train(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> Run:
    """Fit, score and report one configuration in this process, as the command ``bincounter train`` does.

    Args:
        overrides: as on the command line: ``["experiment=demo", "trainer.max_epochs=3"]``.
        config_dir: a further folder of configuration files, and of Python modules that these name.

    Returns:
        The run; its folder holds the report.

    Raises:
        BinCounterError: the run failed; the message is the one that the command would print.
    """
    if isinstance(overrides, str):
        raise ConfigError(f"overrides is a text: write a list of them, as in [{overrides!r}]")
    overrides = list(overrides) if isinstance(overrides, Iterable) else [overrides]
    for each in overrides:
        if not isinstance(each, str):
            raise ConfigError(f"the override {each!r} is not a text: write KEY=VALUE, as in 'seed=3'")
    option = next((word for word in overrides if word.startswith("-")), None)
    if option is not None:
        raise ConfigError(_ONE_RUN if option in ("-m", "--multirun") else f"{option} is not KEY=VALUE: remove it")
    runs: list[Run] = []

    def job(cfg: DictConfig) -> float | None:
        cfg.paths.output_dir = HydraConfig.get().runtime.output_dir
        value = train_command.job(cfg)
        plain = plain_of(cfg)
        runs.append(Run(cfg.paths.output_dir, trust=own_targets(plain)))
        return value

    def start(composer: Composer, arguments: Namespace) -> int:
        replace_overrides(arguments, with_recipe(resume.expand_resume_overrides(arguments.overrides, composer)))
        swept = next((each for each in parse_overrides(arguments.overrides) if each.is_sweep_override()), None)
        if swept is not None:
            raise ConfigError(f"{swept.input_line} lists several values: quote it if it is one text; {_ONE_RUN}")
        cfg = composer(arguments.overrides)
        if cfg.dry_run:
            raise ConfigError(f"dry_run=true shows the request of a launcher: remove it; {_ONE_RUN}")
        if "hydra.mode=MULTIRUN" in arguments.overrides or cfg.hparams_search or not runs_locally(cfg.launcher):
            raise ConfigError(_ONE_RUN)
        run_app(job, "train")
        return 0

    folder = [] if config_dir is None else [f"--config-dir={checked_folder(config_dir)}"]
    with _as_command([*folder, *overrides]):
        try:
            start_app(start, "train")
        except BinCounterError as error:
            error.args = (mask_text(str(error)),)
            raise
    return runs[0]


_ONE_RUN = (
    "bincounter.train fits one configuration in this process: start sweeps and launchers by the command "
    "`bincounter train`, and open their runs with bincounter.Run"
)


@contextmanager
def _as_command(arguments: list[str]) -> Iterator[None]:
    """Make this process look like the command ``train``, which Hydra parses and Lightning starts again for DDP."""
    root, hydras = logging.getLogger(), GlobalHydra.instance()
    argv, handlers, level, hydra = sys.argv, root.handlers[:], root.level, hydras.hydra
    environment = dict(os.environ)
    hydras.clear()
    try:
        with hidden_script():
            start_as_script(str(train_command.__file__), arguments)
            yield
    finally:
        sys.argv, hydras.hydra = argv, hydra
        for handler in set(root.handlers) - set(handlers):
            handler.close()  # of the run's log
        root.handlers[:] = handlers
        root.setLevel(level)
        for name in os.environ.keys() - environment.keys():  # a rank left by DDP would end the next DDP
            del os.environ[name]
        os.environ.update(environment)
