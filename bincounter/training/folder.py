"""A run's folder: claimed by one process at a time, and never written over by another run."""

import csv
import fcntl
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import yaml
from torch import Tensor

from bincounter.data.records import Refusal
from bincounter.errors import UserError
from bincounter.files import replacing, write_text
from bincounter.training.provenance import provenance
from bincounter.training.secrets import masked, masked_argument


class RunFolder:
    """Where one run keeps what it was, what it learnt and what it scored.

    Args:
        path: of the folder; made when it is missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: IO | None = None

    @property
    def checkpoints(self) -> Path:
        """Folder of ``best.ckpt`` and ``last.ckpt``."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The checkpoint to go on from, which may not be there yet."""
        return self.checkpoints / "last.ckpt"

    def claim(self, *, fresh: bool) -> None:
        """Take the folder for this process until it ends.

        Args:
            fresh: the run is a new one, so that the folder must not hold another.

        Raises:
            UserError: another process is at work in it, or it holds a run that would be written over.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("w")
        if not _locked(self._lock):
            raise UserError(f"{self.path} is in use by another process: wait for it, or name another paths.output_dir")
        if fresh and (self.last.exists() or (self.checkpoints / "best.ckpt").exists()):
            raise UserError(
                f"{self.path} already holds a run: go on with it by ckpt_path=last, or name another paths.output_dir"
            )

    def describe(self, config: Mapping[str, Any], overrides: Sequence[str], facts: Mapping[str, Any]) -> None:
        """Write ``config.yaml``, ``overrides.txt`` and ``provenance.json``; secrets are masked."""
        lines = [masked_argument(override) for override in overrides]
        write_text(self.path / "overrides.txt", "".join(f"{line}\n" for line in lines))
        self.write_json("provenance.json", {**provenance(), **facts})
        write_text(self.path / "config.yaml", yaml.safe_dump(masked(config), sort_keys=False, allow_unicode=True))

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        write_text(self.path / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def write_quarantine(self, refusals: Iterable[Refusal]) -> None:
        """Write ``quarantine.csv``."""
        self.write_rows("quarantine.csv", ["path", "reason"], ([r.path, r.reason] for r in refusals))

    def write_predictions(self, sides: Mapping[str, "Predicted"], counts: Sequence[int]) -> None:
        """Write ``predictions.csv``: a row for each scored photo."""
        header = ["id", "split", "count", "predicted", "expected_count", *(f"p_{count}" for count in counts)]
        rows = (row for split, predicted in sides.items() for row in predicted.rows(split, counts))
        self.write_rows("predictions.csv", header, rows)

    def write_rows(self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write a CSV file, whole or not at all."""
        with replacing(self.path / name) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)


def _locked(file: IO, patience: float = 10.0) -> bool:
    """Lock a file; for a while, since the workers of a killed process outlive it by seconds."""
    ends = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > ends:
                return False
            time.sleep(0.2)
        else:
            return True


class Predicted:
    """What a model answered for some photos.

    Attributes:
        ids: of the photos ``[N]``.
        labels: their counts, ``int64[N]``.
        probabilities: ``float32[N, K]``.
    """

    def __init__(self, ids: list[str], labels: Tensor, probabilities: Tensor) -> None:
        self.ids, self.labels, self.probabilities = ids, labels, probabilities

    def rows(self, split: str, counts: Sequence[int]) -> Iterable[list[Any]]:
        """Rows of ``predictions.csv``."""
        support = self.probabilities.new_tensor(list(counts))
        expected = (self.probabilities * support).sum(dim=1).tolist()
        best = self.probabilities.argmax(dim=1).tolist()
        for id_, label, k, mean, row in zip(
            self.ids, self.labels.tolist(), best, expected, self.probabilities.tolist(), strict=True
        ):
            yield [id_, split, label, counts[k], f"{mean:.4f}", *(f"{p:.6g}" for p in row)]
