"""Records as files: damaged ones are told with what to do, and files of different ages give what they have."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from bincounter.debugger.tensor_records import (
    FILES,
    VALUES,
    EpochRecord,
    Record,
    RecordFiles,
    StepRecord,
    Table,
    read_records,
)
from bincounter.errors import UserError
from bincounter.training.resume import expand_resume_overrides


def step(number: int) -> StepRecord:
    values = np.full((2, len(VALUES)), number, np.float32)
    return StepRecord(0, number, 1.0, 1.5, {"gradient": Table(["first", "second"], ["", ""], values)})


def epoch(number: int) -> EpochRecord:
    five = np.full(2, 5)
    return EpochRecord(0, number, 1.5, 1.25, np.array([1, 2]), np.ones(2, np.float32), five, five, five)


def recorded(folder: Path) -> list[Record]:
    files = RecordFiles(folder)
    files.begin()
    records: list[Record] = [*map(step, (0, 10, 20)), epoch(24), step(30), epoch(49)]
    for record in records:
        files.add(record)
    return records


def lines_without(path: Path, *left_out: str) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith(left_out)))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "losses.csv does not begin with the names": lambda folder: (folder / "losses.csv").write_text(""),
    "tensors.csv does not begin with the names": lambda folder: lines_without(folder / "tensors.csv", "epoch"),
    "tensors.csv'": lambda folder: (folder / "tensors.csv").unlink(),
    "counts.csv'": lambda folder: (folder / "counts.csv").unlink(),
    "line 10 of tensors.csv has 3 cells": lambda folder: (folder / "tensors.csv").open("a").write("0,40,weight\n"),
    "could not convert": lambda folder: (folder / "losses.csv").open("a").write("0,40,some,1.5,,\n"),
    "codec can't decode": lambda folder: (folder / "counts.csv").write_bytes(b"\xff\xfe\n"),
}


@pytest.mark.parametrize("said", DAMAGE)
def test_damage_is_told_with_what_to_do(said: str, tmp_path: Path) -> None:
    recorded(tmp_path)
    DAMAGE[said](tmp_path)
    with pytest.raises(UserError, match=r"corrupt file .*: restore it from a copy, or train again") as answer:
        list(read_records(tmp_path))
    assert said in str(answer.value)


@pytest.mark.parametrize(
    ("name", "left_out"), [("losses.csv", "0,10,"), ("tensors.csv", "0,10,"), ("counts.csv", "0,24")]
)
def test_what_one_file_lacks_costs_no_other_step_s_record(name: str, left_out: str, tmp_path: Path) -> None:
    whole = recorded(tmp_path)
    lines_without(tmp_path / name, left_out)
    read = list(read_records(tmp_path))
    assert len(read) == len(whole) - (name == "losses.csv")
    with_tables = [record.step for record in read if isinstance(record, StepRecord) and record.tables]
    assert with_tables == ([0, 10, 20, 30] if name == "counts.csv" else [0, 20, 30])
    with_counts = [record.step for record in read if isinstance(record, EpochRecord) and len(record.counts)]
    assert with_counts == ([49] if name == "counts.csv" else [24, 49])


def test_lost_files_are_restored_from_the_checkpoint(tmp_path: Path) -> None:
    recorded(tmp_path / "first")
    size = (tmp_path / "first" / "tensors.csv").stat().st_size
    files = RecordFiles(tmp_path / "second")
    tail = "0,30,gradient,first,,1,1,1,1,1,1,0,0,,\n"
    files.load_state_dict({name: {"before": size if name == "tensors.csv" else 0, "tail": ""} for name in FILES})
    files._tails["tensors.csv"] = tail
    files.begin()
    assert (tmp_path / "second" / "tensors.csv").read_text().endswith(f"inactive\n{tail}")
    assert list(read_records(tmp_path / "second")) == []


def test_a_run_that_recorded_nothing_for_a_time_keeps_what_it_had(tmp_path: Path) -> None:
    """Its checkpoint knows nothing of the files; what came after it is repeated."""
    whole = recorded(tmp_path)
    (tmp_path / "tensors.csv").open("a").write("0,2")  # cut short
    files = RecordFiles(tmp_path)
    files.begin(25)
    assert [record.step for record in read_records(tmp_path)] == [0, 10, 20, 24]
    files.add(step(30))
    read = list(read_records(tmp_path))
    assert [record.rows() for record in read] == [record.rows() for record in whole[:5]]
    RecordFiles(tmp_path).begin()  # a new run
    assert list(read_records(tmp_path)) == []


def test_a_run_goes_on_with_another_debugger_and_profiler(tmp_path: Path) -> None:
    stored = ["trainer=cpu", "trainer.max_epochs=3", "debugger=tensors", "debugger.layers=[head]", "profiler=advanced"]
    (tmp_path / "overrides.txt").write_text("\n".join([*stored, "profiler.functions=7"]))

    def expanded(*given: str) -> list[str]:
        overrides = ["ckpt_path=last", f"paths.output_dir={tmp_path}", *given]
        return expand_resume_overrides(overrides, lambda _: OmegaConf.create())[:-2]

    assert expanded() == [*stored, "profiler.functions=7"]
    named = [f"ckpt_path={tmp_path}"]  # the run's folder does, too
    assert expand_resume_overrides(named, lambda _: OmegaConf.create())[:-2] == expanded()
    assert expanded("debugger=none", "profiler=simple") == [*stored[:2], "debugger=none", "profiler=simple"]
    assert "debugger.layers=[head]" in expanded("debugger=tensors")
    assert "trainer.max_epochs=3" in expanded("trainer=gpu")
