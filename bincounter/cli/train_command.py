"""The command ``train``: fit, score and report one configuration.

``bincounter train [GROUP=OPTION] [KEY=VALUE] ...``, or ``python train.py ...`` in a checkout; everyday commands are in
README.md. ``--help`` lists the configuration groups, ``--cfg job`` prints the configuration of a command line.
"""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from bincounter.cli import hydra_app
from bincounter.errors import BinCounterError

if TYPE_CHECKING:
    import lightning as L

    from bincounter.data.datamodule import BinDataModule
    from bincounter.model.counter import BinCounter

log = logging.getLogger(__name__)


def main(*, keep_error: Callable[[str], None] = lambda _: None) -> int:
    """Run the command line in ``sys.argv``; returns the exit code.

    Args:
        keep_error: is given what went wrong, in one sentence, besides its being shown on stderr.
    """
    return hydra_app.main(job, config_name="train", keep_error=keep_error)


def job(cfg: DictConfig) -> float | None:
    """Run one composed configuration and write its report; returns the value a sweep optimises."""
    # Imported here, so that --help and tab completion are quick.
    from bincounter.config.validate import validate

    validate(cfg)
    from bincounter.debugger.rule_runner import debugger_callbacks
    from bincounter.profiler.step_profiler import profiler_callbacks, say_where_the_time_went
    from bincounter.training.run import run
    from bincounter.training.trainer import answered

    callbacks = [*debugger_callbacks(cfg), *profiler_callbacks(cfg)]
    if cfg.hparams_search is not None:
        from bincounter.sweep.pruning import pruning_callbacks

        callbacks += pruning_callbacks(cfg)
    finished = run(cfg, callbacks)
    if finished is None:
        return None
    with answered(batch_size=cfg.data.batch_size, run=finished.folder.path):
        say_where_the_time_went(finished.folder.path, cfg)
        report_run(finished.folder.path, finished.model, finished.data, finished.fabric)
    return finished.objective


def report_run(run: Path, model: "BinCounter", data: "BinDataModule", fabric: "L.Fabric") -> Path:
    """Write ``report.html`` into a run's folder, with maps of where the model looked.

    Args:
        run: the folder, with scores and predictions in it.
        model: in evaluation mode, on the device of ``fabric``.
        data: prepared.
        fabric: gives device and precision.
    """
    import numpy as np

    from bincounter.data.photos import read_photos
    from bincounter.report.report import photos_to_explain, write_report
    from bincounter.report.report_photos import attention

    positions = {record.id: i for i, record in enumerate(data.manifest.records)}
    ids = [id_ for id_ in photos_to_explain(run) if id_ in positions]
    cams: dict[str, np.ndarray] = {}
    if ids:
        loader = data.photo_loader(np.array([positions[id_] for id_ in ids]))
        for batch in loader:
            image = data.on_after_batch_transfer(fabric.to_device(batch), 0)["image"]
            with fabric.autocast():  # as the run computed, and twice as fast where the hardware multiplies bfloat16
                cams |= dict(zip(batch["id"], attention(model, image), strict=True))

    def photo(id_: str) -> bytes | None:
        try:
            return read_photos([data.manifest.records[positions[id_]].file])[0]
        except (KeyError, OSError, BinCounterError):
            return None

    path = write_report(run, photo=photo, cams=cams)
    log.info("Report: %s", path)
    return path


if __name__ == "__main__":  # DDP starts this for each further device, where the command was `bincounter train`
    sys.path[0] = ""  # as there, a user's own modules are found in the folder that the command is started in
    sys.exit(main())
