"""Records of what was spent, as the product writes them, and what the command shows of them."""

import io
import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bincounter.cloud.cost_records import read_costs
from bincounter.cloud.cost_report import render_costs
from bincounter.cloud.jobs import Job

TABLE = "table of 2026-11-21 for us-east-1; other regions differ"
STARTED = "2026-11-21 03:44:40.123000+00:00"  # as job.json has it


def recorded(folder: Path, status: str | None, seconds: tuple[int, int] | None = None, **changes: Any) -> Job:
    """A job's record in the folder of its run."""
    description: dict[str, Any] = {"TrainingStartTime": STARTED, "EnableManagedSpotTraining": True}
    description |= {"TrainingJobStatus": status} if status else {}
    if seconds is not None:
        description |= {"TrainingTimeInSeconds": seconds[0], "BillableTimeInSeconds": seconds[1]}
    job = Job(
        name=f"bincounter-{folder.parent.name}-{folder.name}",
        number=0,
        folder=folder,
        region="us-east-1",
        checkpoint_uri="s3://bucket/run",
        overrides=[],
        usd_per_hour=3.6,
        description=description,
        instance_type="ml.g5.xlarge",
        price_origin=TABLE,
    )
    folder.mkdir(parents=True, exist_ok=True)
    job = replace(job, **changes)
    job.save()
    return job


def scored(folder: Path, **sides: tuple[float, float]) -> None:
    """The scores of a run: accuracy and that of the majority baseline."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {side: {"accuracy": one, "majority_accuracy": other} for side, (one, other) in sides.items()}
    (folder / "metrics.json").write_text(json.dumps(told))


def made_here(folder: Path) -> None:
    """A run that was carried out on this machine in 90 seconds."""
    scored(folder, test=(0.36, 0.3))
    (folder / "config.yaml").write_text("seed: 0\n")
    ended = int((folder / "metrics.json").stat().st_mtime)
    os.utime(folder / "metrics.json", (ended, ended))
    started = datetime.fromtimestamp(ended - 90, UTC)
    (folder / "provenance.json").write_text(json.dumps({"started": started.isoformat(timespec="seconds")}))


def shown(*folders: Path, width: int = 100) -> str:
    """The tables as a terminal of that width shows them."""
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(render_costs(read_costs(folders)))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert max(map(len, lines)) <= width
    return "\n".join(lines)


def row(text: str, start: str) -> str:
    """The cells of a row, one space between them."""
    return " ".join(next(line for line in text.splitlines() if line.startswith(f"{start} ")).split())


@pytest.fixture(autouse=True)
def nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials, wherever the tests run; what asks brings its own."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
