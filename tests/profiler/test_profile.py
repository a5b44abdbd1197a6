"""Profiles add up, survive being stopped, stay small, and change nothing of what is computed."""

import csv
import gzip
import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from bins import square_bins
from commands import Run, Start
from test_resume import RECIPE, assert_same, kill_after

import bincounter
from bincounter.debugger.recorder import TensorRecorder
from bincounter.errors import UserError
from bincounter.profiler.phase_clock import PhaseClock
from bincounter.profiler.profile_facts import summarize
from bincounter.profiler.profile_record import (
    BETWEEN,
    PHASES,
    STEP,
    ProfileRecord,
    Row,
    Session,
    Usage,
    phase_of,
    read_record,
)
from bincounter.training.checkpoint import RunCheckpoint, StatelessRandomness

PACKAGE = Path(bincounter.__file__).parent
BATCHES, EPOCHS = 9, 2  # 77 training photos in batches of 8


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("profile")
    return [
        *RECIPE,
        f"trainer.max_epochs={EPOCHS}",
        f"data.source={square_bins(folder / 'bins')}",
        f"paths.cache_dir={folder / 'cache'}",
    ]


def profile(run: Path) -> ProfileRecord:
    record = read_record(run / "profile")
    assert record is not None
    return record


def test_measuring_changes_nothing_and_all_of_the_time_is_told(recipe: list[str], train: Run, tmp_path: Path) -> None:
    train(*recipe, f"paths.output_dir={tmp_path / 'plain'}")
    deep = ["profiler=advanced", "profiler.first_step=2", "profiler.steps=10", "profiler.functions=1000"]
    done = train(*recipe, *deep, "profiler.usage_seconds=0.1", f"paths.output_dir={tmp_path / 'run'}")
    assert_same(tmp_path / "plain", tmp_path / "run")
    assert "A step took" in done.stderr and not (tmp_path / "plain" / "profile").exists()
    record = profile(tmp_path / "run")
    steps = [row for row in record.rows if row.part == STEP]
    assert [(row.epoch, row.batch) for row in steps] == [(e, b) for e in range(EPOCHS) for b in range(BATCHES)]
    between = [row for row in record.rows if row.part == BETWEEN]
    assert len(between) == EPOCHS
    for row, following in zip(record.rows, record.rows[1:], strict=False):
        assert sum(row.ms.values()) == pytest.approx(row.wall_ms, abs=0.01)
        assert row.start_s + row.wall_ms / 1e3 == pytest.approx(following.start_s, abs=2e-4)
    every = {"data", "augmentation", "forward", "backward", "logging", "rest"}
    assert all(row.ms[phase] > 0 for row in steps for phase in every)
    assert [row.batch for row in steps if row.ms["checkpoint"]] == [1, 3, 5, 7] * EPOCHS  # every optimizer step
    assert all(row.ms["validation"] == 0 for row in steps) and all(row.ms["validation"] > 0 for row in between)
    assert all(row.ms["optimizer"] > 0 for row in steps[1::2])  # of two batches, the second steps
    assert all(row.ms[phase] == 0 for row in between for phase in ("data", "forward", "backward"))
    facts = summarize(record, {})
    assert facts is not None and facts.machine["photos"] == "kept"
    assert (facts.exact_steps, facts.slowed) == (len(steps) - 1 - 10, False)  # without those that were looked into
    assert sum(facts.fit_s.values()) == pytest.approx(sum(row.wall_ms for row in record.rows) / 1e3, rel=1e-3)
    assert all(sample.cpu_percent >= 0 and sample.rss_mb > 50 for sample in record.usage) and record.usage
    _, *parts = (tmp_path / "run" / "profile" / "functions.txt").read_text().split("Profile stats for: ")
    functions = dict(part.split("\n", 1) for part in parts)
    assert "training_step" in functions["forward"] and "fsync" in functions["checkpoint"]
    assert "fsync" not in functions["forward"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Time by phase" in page and "Waiting for data" in page
    assert " 10 others were profiled in detail" in page
    assert "Time by phase" not in (tmp_path / "plain" / "report.html").read_text()


@pytest.mark.long
def test_a_run_that_is_stopped_and_gone_on_with_has_both_parts(
    recipe: list[str], start: Start, train: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    epochs = 12  # so that some are left, however late the signal comes
    longer = [*recipe, f"trainer.max_epochs={epochs}", "profiler=simple", f"paths.output_dir={folder}"]
    begun = kill_after(start, folder, 3, *longer, how=signal.SIGTERM)
    assert begun == 143
    before = profile(folder).rows
    assert before and not (folder / "profile" / "trace.json.gz").exists()
    # How it is measured may change: it is no part of what is computed.
    done = train("ckpt_path=last", f"paths.output_dir={folder}", "profiler=pytorch", "profiler.first_step=1")
    assert not re.search(r"^(ERROR|USDT|STAGE):", done.stderr, re.MULTILINE)  # torch's own, of a GPU that is not there
    record = profile(folder)
    assert record.rows[: len(before)] == before
    later = [(row.epoch, row.batch) for row in record.rows if row.session == 1 and row.part == STEP]
    assert later[-1] == (epochs - 1, BATCHES - 1) and len(set(later)) == len(later)
    assert later[0] > max((row.epoch, row.batch) for row in before[:-1] if row.part == STEP)
    assert [session.steps for session in record.sessions] == [sum(row.part == STEP for row in before), len(later)]
    with gzip.open(folder / "profile" / "trace.json.gz") as trace:
        assert json.load(trace)["traceEvents"]
    with (folder / "profile" / "operators.csv").open(newline="") as file:
        assert "aten::mkldnn_convolution" in {row["operator"] for row in csv.DictReader(file)}


def test_what_lies_inside_another_action_is_counted_once() -> None:
    rows: list[Row] = []
    clock = PhaseClock(
        torch.device("cpu"),
        1,
        closed=rows.append,
        place=lambda: (3, 7),
        validating=lambda: False,
        callbacks={"RunCheckpoint": "rest"},
    )
    strategy = "[Strategy]SingleDeviceStrategy"
    clock.start("[Callback]TrainingLog.on_train_start")  # before the first step
    clock.stop("[Callback]TrainingLog.on_train_start")
    clock.start("run_training_epoch")
    for _ in range(2):
        with clock.profile("[_TrainingEpochLoop].train_dataloader_next"):
            pass
        with clock.profile("[LightningModule]BinCounter.optimizer_step"):
            with clock.profile(f"{strategy}.training_step"):
                pass
            with clock.profile(f"{strategy}.backward"):
                pass
        writes = (
            "[Callback]RunCheckpoint.on_train_batch_end",
            "save_checkpoint",
            "[Callback]TrainingLog.on_save_checkpoint",
        )
        with clock.profile(writes[0]), clock.profile(writes[1]), clock.profile(writes[2]):
            pass
    clock.close()
    clock.close()
    assert [(row.part, row.epoch, row.batch) for row in rows] == [(STEP, 3, 7)] * 2
    told = {"data", "optimizer", "forward", "backward", "checkpoint", "rest"}
    for row in rows:
        assert {phase for phase in PHASES if row.ms[phase] > 0} == told
        assert sum(row.ms.values()) == pytest.approx(row.wall_ms, abs=1e-6)


def test_what_it_takes_to_keep_a_profile_is_no_step_s() -> None:
    rows: list[Row] = []

    def keep(row: Row) -> None:
        rows.append(row)
        time.sleep(0.01)  # as writing a trace does

    began = time.perf_counter()
    clock = PhaseClock(torch.device("cpu"), 1, closed=keep, place=lambda: (0, 0), validating=lambda: False)
    for _ in range(3):
        with clock.profile("[_TrainingEpochLoop].train_dataloader_next"):
            pass
    clock.close()
    assert sum(row.wall_ms for row in rows) / 1e3 <= time.perf_counter() - began - 3 * 0.01
    assert rows[2].start_s == pytest.approx((rows[0].wall_ms + rows[1].wall_ms) / 1e3)


def test_a_run_of_which_all_was_looked_into_says_so() -> None:
    session = Session()
    for number in range(5):
        row = Row(0, 0, number, STEP, float(number), exact=True, wall_ms=30.0 if number > 2 else 10.0)
        row.ms["forward"] = row.wall_ms
        session.add(row, slowed=number > 2)
    facts = summarize(ProfileRecord([session]), {})
    assert facts is not None and (facts.step_ms["forward"], facts.slowed) == (10.0, False)
    session.exact_steps = 0
    facts = summarize(ProfileRecord([session]), {})
    assert facts is not None and (facts.step_ms["forward"], facts.slowed) == (30.0, True)


def test_callbacks_name_the_phase_that_their_hooks_belong_to() -> None:
    owners: dict[Any, str] = {RunCheckpoint: "rest", StatelessRandomness: "rest", TensorRecorder: "debugger"}
    for owner, phase in owners.items():
        assert owner.profiler_phase == phase and phase in PHASES
    assert 'profiler_phase = "debugger"' in (PACKAGE / "smdebug" / "hook.py").read_text()  # importing it needs smdebug
    callbacks = {owner.__qualname__: phase for owner, phase in owners.items()}
    assert phase_of("[Callback]TensorRecorder.on_before_optimizer_step", callbacks) == "debugger"
    assert phase_of("[Callback]EarlyStopping{'min_delta': 0.01}.on_validation_end", callbacks) == "logging"
    # Under DDP processes agree after each step on whether to stop; what is written then has an action of its own.
    assert phase_of("[Callback]RunCheckpoint.on_train_batch_end", callbacks) == "rest"
    assert (
        phase_of("save_checkpoint", callbacks) == phase_of("RunCheckpoint.save_checkpoint", callbacks) == "checkpoint"
    )
    assert phase_of("[Callback]TrainingLog.on_save_checkpoint", callbacks) is None


def test_files_stay_small_and_sums_stay_whole(tmp_path: Path) -> None:
    session = Session()
    record = ProfileRecord([session], [], [Usage(0, float(at), 50.0, 60.0, 700.0, 30.0) for at in range(9000)])
    for number in range(9000):
        exact = number % 20 == 0  # as on a GPU
        row = Row(0, 0, number, STEP, 0.01 * number, exact, 12.0 if exact else 10.0)
        row.ms["forward"] = row.wall_ms
        session.add(row)
        record.rows.append(row)
    record.write(tmp_path)
    read = read_record(tmp_path)
    assert read is not None and len(read.rows) == len(read.usage) == 2250
    facts = summarize(read, {})
    assert facts is not None and (facts.steps, facts.exact_steps) == (9000, 449)
    assert (facts.step_ms["forward"], facts.free_step_ms) == (12.0, 10.0)
    assert facts.fit_s["forward"] == pytest.approx(450 * 0.012 + 8550 * 0.010)
    (tmp_path / "steps.csv").write_text("session\nnone\n")
    with pytest.raises(UserError, match="corrupt"):
        read_record(tmp_path)
