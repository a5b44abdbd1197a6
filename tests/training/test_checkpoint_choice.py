"""Choice of the checkpoint to resume from, when a run's files are of different states."""

from pathlib import Path

import pytest
import torch

from bincounter.training.checkpoint import export_model, find_resume_checkpoint


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


def test_an_exported_model_never_stands_beside_the_scores_of_another(tmp_path: Path) -> None:
    for name in ("config.yaml", "checkpoints/best.ckpt", "metrics.json"):
        for run in ("before", "now"):
            (tmp_path / run / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / run / name).write_text(run)
    (tmp_path / "now" / "metrics.json").unlink()  # it is in training
    for run in ("before", "now"):
        export_model(tmp_path / run, tmp_path / "served")
    assert {path.name: path.read_text() for path in (tmp_path / "served").iterdir()} == {
        "config.yaml": "now",
        "best.ckpt": "now",
    }
