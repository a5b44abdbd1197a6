"""Resources that gave out, in one sentence with what to change."""

import errno

import torch

from bincounter.errors import BinCounterError, ResourceError


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
    return None


def _cpu_allocation(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
