"""The folder a run's model is handed over in, beside the run's own: complete at any moment it is looked at."""

import shutil
from pathlib import Path

from bincounter.files import replacing

# In this order: a model is never there without the configuration that it came from.
_HANDED_OVER = ("config.yaml", "checkpoints/best.ckpt", "metrics.json")


def hand_over(run: Path, target: Path) -> None:
    """Copy a run's best checkpoint, its configuration and its scores, as far as they are there, into one folder.

    Args:
        run: the run's folder.
        target: the folder to fill, ``paths.model_dir``; made when it is missing.
    """
    for name in _HANDED_OVER:
        if not (run / name).exists():
            continue
        with (run / name).open("rb") as source, replacing(target / Path(name).name, "wb") as copy:
            shutil.copyfileobj(source, copy)
