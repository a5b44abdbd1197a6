"""Resources that gave out, in one sentence with what to change."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from bincounter.errors import BinCounterError, ConfigError, DataError, ResourceError


@contextmanager
def answered(*, batch_size: int, run: object) -> Iterator[None]:
    """Turn what :func:`explained` knows into its sentence.

    Raises:
        BinCounterError: instead of the exceptions it knows; others pass.
    """
    try:
        yield
    except Exception as error:
        answer = explained(error, batch_size=batch_size, run=run)
        if answer is None:
            raise
        raise answer from error


def explained(error: BaseException, *, batch_size: int, run: object) -> BinCounterError | None:
    """The sentence for an exception out of a fit or a scoring, or ``None`` if it is none of the known ones.

    Args:
        error: what was raised.
        batch_size: ``data.batch_size`` in force.
        run: the run's folder.
    """
    go_on = f"what was saved is in {run}; go on with ckpt_path=last paths.output_dir={run}"
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _cpu_allocation(error):
        smaller = max(batch_size // 2, 1)
        return ResourceError(
            f"Out of memory with data.batch_size={batch_size}: start anew with data.batch_size={smaller} "
            "trainer.accumulate_grad_batches=2 (the same effective batch), or a smaller data.image_size"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f" for {error.filename}" if error.filename else ""
        return ResourceError(f"The disk is full{place}: make room, or move paths.data_dir and paths.cache_dir; {go_on}")
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error) and "killed" in str(error):
        return ResourceError(f"A data.num_workers process was killed, most likely for its memory: use fewer; {go_on}")
    if isinstance(error, DataError) and str(error).startswith("Caught"):  # from a worker, with its traceback
        return DataError(str(error).strip().splitlines()[-1].partition(": ")[2])
    if isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
        return ConfigError(
            "batch normalisation needs more than one value: use a larger data.batch_size or data.image_size"
        )
    if isinstance(error, MisconfigurationException):
        return ConfigError(" ".join(str(error).split()))
    return None


def _cpu_allocation(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
