"""The checkpoint a person means who names none: the newest best one."""

import logging
from pathlib import Path

from bincounter.errors import UserError

log = logging.getLogger(__name__)


def newest_checkpoint(log_dir: Path, *, named_by: str) -> Path:
    """Find the ``best.ckpt`` written last, and say which one it is.

    Args:
        log_dir: the folder of the runs, searched through.
        named_by: the option that names a checkpoint, for the message.

    Raises:
        UserError: there is none.
    """
    found = sorted(log_dir.glob("**/checkpoints/best.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"no checkpoint is under {log_dir}/: train one first (make demo), or name it with {named_by}")
    log.info("Using %s", found[-1])
    return found[-1]
