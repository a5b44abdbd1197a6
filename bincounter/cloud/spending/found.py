"""All that a command names: runs, sweeps, tuning jobs and endpoints, each counted once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bincounter.cloud.spending.aws import Aws
from bincounter.cloud.spending.bills import Bill
from bincounter.cloud.spending.endpoints import EndpointBill, endpoint_bills, records
from bincounter.cloud.spending.runs import bills_of, is_run
from bincounter.cloud.tuning.record import ENDED, RECORD, load
from bincounter.errors import BinCounterError, UserError


@dataclass
class Group:
    """Runs that are shown, and added up, together.

    Attributes:
        kind: ``runs``, ``sweep`` or ``tuning job``.
        folder: of the sweep; ``None`` for runs that were named one by one.
        bills: of the runs, in the order of their numbers.
    """

    kind: str
    folder: Path | None
    bills: list[Bill] = field(default_factory=list)


@dataclass
class Found:
    """What :func:`find` found.

    Attributes:
        groups: the runs that were named one by one, then the sweeps.
        endpoints: of all that was named.
        notes: what there is to say beside the figures.
        errors: a sentence for each folder that could not be read.
    """

    groups: list[Group] = field(default_factory=list)
    endpoints: list[EndpointBill] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def bills(self) -> list[Bill]:
        """Those of all groups."""
        return [bill for group in self.groups for bill in group.bills]


def find(folders: Sequence[Path]) -> Found:
    """Read the records of runs, of sweeps with their jobs inside, of tuning jobs and of endpoints.

    Args:
        folders: of them. One that cannot be read is named in the result's ``errors``, and the others are read.
    """
    search = _Search()
    for folder in folders:
        search.look(folder)
    return search.found


class _Search:
    def __init__(self) -> None:
        self.found = Found()
        self._aws = Aws()
        self._seen: set[Path] = set()
        self._jobs: dict[str, Path] = {}

    def look(self, folder: Path) -> None:
        try:
            self._look(folder)
        except OSError as error:
            self.found.errors.append(f"{error.filename or folder}: {error.strerror}")

    def _look(self, folder: Path) -> None:
        with_records = records(folder)
        inside = [] if is_run(folder) else _runs_inside(folder)
        if is_run(folder):
            self._take(folder, self._runs())
        elif inside or (folder / RECORD).is_file():
            self._sweep(folder, inside)
        elif not with_records:
            self.found.errors.append(_nothing_in(folder))
        self._endpoints(with_records)

    def _runs(self) -> Group:
        """The group of runs that are named one by one, which comes first."""
        if not self.found.groups or self.found.groups[0].kind != "runs":
            self.found.groups.insert(0, Group("runs", None))
        return self.found.groups[0]

    def _sweep(self, folder: Path, runs: Sequence[Path]) -> None:
        group = Group("sweep", folder)
        try:
            tuning = load(folder)
        except UserError as error:
            self.found.errors.append(str(error))
            tuning = None
        if tuning is not None:
            group.kind = "tuning job"
            if tuning.status not in ENDED:
                self.found.notes.append(
                    f"{tuning.name}, of {tuning.trials} trials, had not ended when it was last heard of: the command "
                    "that began it follows it, and trials begun since then are not counted here"
                )
        self.found.groups.append(group)
        for run in runs:
            self._take(run, group)
            self._endpoints(records(run))

    def _take(self, folder: Path, group: Group) -> None:
        if folder.resolve() in self._seen:
            return
        self._seen.add(folder.resolve())
        notes: list[str] = []
        try:
            bills = bills_of(folder, self._aws, notes)
        except BinCounterError as error:
            self.found.errors.append(str(error))
            return
        self.found.notes += notes
        for bill in bills:
            if bill.job is not None and bill.job in self._jobs:
                self.found.notes.append(f"{folder} and {self._jobs[bill.job]} hold the same job, which is counted once")
                continue
            if bill.job is not None:
                self._jobs[bill.job] = folder
            group.bills.append(bill)

    def _endpoints(self, paths: Sequence[Path]) -> None:
        for path in paths:
            if path.resolve() in self._seen:
                continue
            self._seen.add(path.resolve())
            try:
                self.found.endpoints += endpoint_bills(path, self._aws, self.found.notes)
            except BinCounterError as error:
                self.found.errors.append(str(error))


def _runs_inside(folder: Path) -> list[Path]:
    """The runs of a sweep, those with numbers first, in their order."""
    if not folder.is_dir():
        return []
    runs = [child for child in folder.iterdir() if child.is_dir() and is_run(child)]
    return sorted(
        runs, key=lambda run: (not run.name.isdecimal(), int(run.name) if run.name.isdecimal() else 0, run.name)
    )


def _nothing_in(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is no folder: name the folder of a run or of a sweep, as train.py printed it"
    return (
        f"{folder} holds no record of a run, a sweep or an endpoint: name a folder that train.py printed, or the "
        "endpoint/ folder of a run that deploy.py served"
    )
