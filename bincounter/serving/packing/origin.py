"""Where a checkpoint came from: its run's folder, as far as it is there."""

from dataclasses import dataclass
from pathlib import Path

from bincounter.inspect.run_folder import Run, read_run
from bincounter.training.resume import stored_config


@dataclass(frozen=True)
class Origin:
    """A checkpoint and its run.

    Attributes:
        checkpoint: the file.
        run: what the run left behind; ``None`` where the checkpoint lies alone.
    """

    checkpoint: Path
    run: Run | None

    @property
    def folder(self) -> Path:
        """The run's folder, or the one the checkpoint lies in."""
        return self.run.path if self.run else self.checkpoint.parent


def origin_of(checkpoint: Path) -> Origin:
    """Look for the run of a checkpoint: around ``checkpoints/``, or in the folder a run handed its model over in.

    Raises:
        UserError: a file of the run is damaged.
    """
    folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    config = stored_config(folder)
    return Origin(checkpoint, read_run(folder) if config and "task_name" in config else None)
