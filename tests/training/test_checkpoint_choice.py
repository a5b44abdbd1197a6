"""Choice of the checkpoint to resume from, when a run's files are of different states."""

from pathlib import Path

import pytest
import torch

from bincounter.training.checkpoint import find_resume_checkpoint


@pytest.mark.parametrize(
    ("last", "best", "chosen"),
    [
        (None, None, None),
        ("nothing yet", None, "last.ckpt"),
        (2, 2, "last.ckpt"),
        (2, 4, "last.ckpt"),  # killed between the two writes: the best is found again
        (4, 2, "best.ckpt"),  # the newer best never arrived
        (4, None, None),
        (None, 2, "best.ckpt"),
    ],
)
def test_no_best_model_is_lost(last: object, best: object, chosen: str | None, tmp_path: Path) -> None:
    for name, epoch in (("last.ckpt", last), ("best.ckpt", best)):
        if epoch is not None:
            state = {"best": 0.5, "best_epoch": epoch if isinstance(epoch, int) else None, "stopped": False}
            torch.save({"callbacks": {"RunCheckpoint": state}}, tmp_path / name)
    found = find_resume_checkpoint(tmp_path)
    assert (found.name if found else None) == chosen
