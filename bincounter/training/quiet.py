"""Silence for what says nothing to a user."""

import logging
import warnings

_MESSAGES = (
    r".*treespec, LeafSpec.*",  # lightning 2.6 calls what torch 2.14 deprecates
    r".*smaller than the logging interval.*",  # the end of an epoch is logged anyway
    r".*does not have many workers.*",  # photos come out of a memory map: workers would slow it down
    r".*your dataloader is not resumable.*",  # its state is the data module's, and restored
    r".*module\(s\) in eval mode at the start of training.*",  # a frozen backbone, as configured
)


def quiet_lightning() -> None:
    """Drop Lightning's tips and start-up facts, which it prints twice, and known warnings; call after importing it."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()  # the root logger has one
        logger.setLevel(logging.WARNING)
    for message in _MESSAGES:
        warnings.filterwarnings("ignore", message)
