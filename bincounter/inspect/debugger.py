"""What watches the fit of a run, as its configuration asks for."""

from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig, OmegaConf

from bincounter.inspect.rules.watch import RuleWatch
from bincounter.inspect.tensors.record import FOLDER
from bincounter.inspect.tensors.recorder import TensorRecorder


def debugger_callbacks(cfg: DictConfig) -> list[L.Callback]:
    """The callback of ``debugger=tensors`` or ``debugger=smdebug``, or none.

    Args:
        cfg: the run's whole configuration.
    """
    settings: dict[str, Any] = OmegaConf.to_container(cfg.debugger, resolve=True)  # type: ignore[assignment]
    if settings["kind"] == "smdebug":
        from bincounter.inspect.smdebug.callback import SmdebugCallback  # in an environment of its own

        return [SmdebugCallback(settings, Path(cfg.paths.output_dir))]
    if not cfg.train or settings["kind"] != "tensors":
        return []
    folder = Path(cfg.paths.output_dir) / FOLDER
    return [TensorRecorder(folder, settings, RuleWatch(folder, settings["rules"]))]
