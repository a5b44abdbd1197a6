"""The report of a run that has just ended, while its model and photos are at hand."""

import logging
from pathlib import Path

import lightning as L
import numpy as np

from bincounter.data.datamodule import BinDataModule
from bincounter.data.photo_file import read_photos
from bincounter.errors import BinCounterError
from bincounter.inspect.attention import attention
from bincounter.inspect.report import photos_to_explain, write_report
from bincounter.model.counter import BinCounter

log = logging.getLogger(__name__)


def report_run(run: Path, model: BinCounter, data: BinDataModule, fabric: L.Fabric) -> Path:
    """Write ``report.html`` into a run's folder, with maps of where the model looked.

    Args:
        run: the folder, with scores and predictions in it.
        model: in evaluation mode, on the device of ``fabric``.
        data: prepared.
        fabric: gives device and precision.
    """
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
