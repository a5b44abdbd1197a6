"""bincounter cost of runs and sweeps: records that the product writes, read back, added up and shown."""

import json
import re
import socket
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from rehearsed import Account as Plane
from rehearsed import request
from spent import TABLE, made_here, nobody_to_ask, recorded, row, scored, shown  # noqa: F401 - a fixture for all tests

from bincounter.cli.main import main
from bincounter.cloud.account import Account
from bincounter.cloud.cost_bills import JobBill
from bincounter.cloud.cost_records import read_costs
from bincounter.cloud.job_runner import JobRunner, RunningJob
from bincounter.cloud.jobs import EARLIER_JOBS, is_recorded, move_to_earlier, read_job, submit
from bincounter.cloud.tuning_job import TuningJob
from bincounter.errors import BinCounterError

# A run as the container leaves it, after an interruption.
PROGRAM = """
import json, os, pathlib, sys, time
folder = pathlib.Path(os.environ["SAGEMAKER_BASE_DIR"]) / "checkpoints"
if not (folder / "last.ckpt").exists():
    (folder / "last.ckpt").write_text("a checkpoint")
    time.sleep(60)
side = {"accuracy": 0.75, "majority_accuracy": 0.25}
(folder / "metrics.json").write_text(json.dumps({"val": side}))
"""


def jobs(*folders: Path) -> list[JobBill]:
    """The bills of training jobs."""
    return [bill for group in read_costs(folders).groups for bill in group.runs if isinstance(bill, JobBill)]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Of spot jobs at 3.6 USD/h, a tenth of a cent per second: one of each ending."""
    folder = tmp_path / "sweep"
    scored(folder / "0", val=(0.45, 0.25))
    recorded(folder / "0", "Completed", (1000, 300))
    recorded(folder / "1", "Failed", (40, 10))
    recorded(folder / "2", "Stopped", (500, 200), pruned=True)
    scored(folder / "3", val=(0.2, 0.25))
    recorded(folder / "3", "Stopped", (600, 250))
    scored(folder / "10", val=(0.44, 0.25), test=(0.55, 0.25))
    recorded(folder / "10", "Completed", (860, 240))
    return folder


def test_a_sweep_is_added_up_with_all_that_was_billed(sweep: Path) -> None:
    text = shown(sweep, width=200)
    assert text.startswith(f"{sweep}, a sweep of 5: 1 x ml.g5.xlarge at 3.6 USD/h\n")
    assert row(text, "0") == "0 1000 300 70.0 % 0.3000 45.0 % val 0.015"
    assert row(text, "1") == "1 40 10 75.0 % 0.0100 - no score failed"
    assert row(text, "2") == "2 500 200 60.0 % 0.2000 - no score pruned"
    assert row(text, "3") == "3 600 250 58.3 % 0.2500 20.0 % val no gain stopped"
    assert row(text, "10") == "10 860 240 72.1 % 0.2400 55.0 % test 0.008"
    assert row(text, "all") == "all 3000 1000 66.7 % 1.0000 45.0 % val 0.05"  # its best by validation accuracy
    assert [line.split()[0] for line in text.splitlines()[3:8]] == ["0", "1", "2", "3", "10"]
    assert "5 training jobs: 1.0000 USD paid for 1000 s billed, 2.0000 USD less than on demand" in text
    assert f"Prices on demand: {TABLE}." in text
    assert "USD/point: US dollars per percentage point of accuracy above the majority baseline" in text


def test_the_document_says_the_same_with_units(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "--json", str(sweep)]) == 0
    told = json.loads(capsys.readouterr().out)
    (group,) = told["groups"]
    assert group["kind"] == "sweep"
    assert [run["state"] for run in group["runs"]] == ["completed", "failed", "pruned", "stopped", "completed"]
    first = group["runs"][0]
    assert (first["training_seconds"], first["billable_seconds"]) == (1000, 300)
    assert first["cost_usd"] == pytest.approx(0.3)
    assert (first["usd_per_hour"], first["price_origin"]) == (3.6, TABLE)
    assert first["usd_per_point"] == pytest.approx(0.015)
    assert group["runs"][1]["usd_per_point_missing"] == "no score"
    assert group["runs"][3]["usd_per_point_missing"] == "not above the majority baseline"
    assert group["total"]["cost_usd"] == told["total"]["cost_usd"] == pytest.approx(1.0)
    assert group["total"]["usd_per_point"] == pytest.approx(0.05)
    assert told["errors"] == []


def test_runs_of_several_kinds_stand_in_one_table(tmp_path: Path) -> None:
    scored(tmp_path / "a", test=(0.35, 0.25))
    recorded(tmp_path / "a", "Completed", (100, 40))
    changes: dict[str, Any] = {"instance_type": "ml.p4d.24xlarge", "instance_count": 2, "usd_per_hour": 50.0}
    on_demand = {"TrainingJobStatus": "Completed", "TrainingTimeInSeconds": 36, "BillableTimeInSeconds": 36}
    recorded(tmp_path / "b", None, **changes, price_origin="launcher.usd_per_hour", description=on_demand)
    made_here(tmp_path / "c")
    for width in (80, 100):
        text = shown(tmp_path / "a", tmp_path / "b", tmp_path / "c", width=width)
        assert row(text, "a") == "a 100 40 60.0 % 0.0400 35.0 % test 0.004"
        assert row(text, "b") == "b 36 36 - 0.5000 - no score"
        assert row(text, "c") == "c 90 - - - 36.0 % test - here"
    assert "2 x ml.p4d.24xlarge at 50 USD/h" in text
    assert f"Prices on demand: {TABLE}; launcher.usd_per_hour." in text
    assert "1 run on this machine: 90 s" in text
    told = read_costs([tmp_path / "c"]).document()["groups"][0]["runs"][0]
    assert told["wall_seconds"] == 90 and "cost_usd" not in told


def test_runs_that_lie_in_one_folder_are_no_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("2026-11-01_10-00-00", "2026-11-02_10-00-00"):
        made_here(tmp_path / name)
    assert shown(tmp_path, width=200).startswith(f"{tmp_path}, 2 runs\n")
    assert main(["cost", "--json", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["groups"][0]["kind"] == "folder"


def test_a_run_here_that_did_not_end_is_marked(tmp_path: Path) -> None:
    made_here(tmp_path)
    (tmp_path / "metrics.json").unlink()
    assert shown(tmp_path).splitlines()[3].endswith("here, unfinished")


def test_a_job_that_still_runs_shows_what_is_known(tmp_path: Path) -> None:
    recorded(tmp_path / "s" / "0", "Completed", (100, 50))
    job = recorded(tmp_path / "s" / "1", "InProgress")
    recorded(tmp_path / "s" / "2", None, description={})
    begun = datetime.now(UTC) - timedelta(seconds=1000)
    job.description["TrainingStartTime"] = begun
    job.save()
    text = shown(tmp_path / "s")
    assert re.fullmatch(r"1 10\d\d - - < 1\.\d{4} - - still running", row(text, "1"))
    assert row(text, "2") == "2 - - - - - - still running"
    assert row(text, "all") == "all 100 50 50.0 % 0.0500 - -"  # what is not known is in no sum
    assert "2 of them, whose billed seconds are not known yet, are in no sum." in text
    told = " ".join(text.split())
    assert "no AWS credentials were found" in told
    assert f"bincounter attach {tmp_path / 's' / '1'}" in told
    total = read_costs([tmp_path / "s"]).document()["groups"][0]["total"]
    assert (total["jobs_of_unknown_cost"], total["usd_per_point_missing"]) == (2, "its cost is not known yet")


def test_a_job_that_never_had_an_instance_cost_nothing(tmp_path: Path) -> None:
    recorded(tmp_path / "none", None, description={"TrainingJobStatus": "Failed"})
    recorded(tmp_path / "untold", "Failed")  # it had one, and SageMaker told no seconds
    none, untold = jobs(tmp_path / "none", tmp_path / "untold")
    assert (none.usd, untold.usd) == (0.0, None)


def test_rehearsed_jobs_cost_nothing_and_count_interruptions(
    account: Plane, plane: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in plane.items():
        monkeypatch.setenv(name, value)
    limits = {"MaxRuntimeInSeconds": 300, "MaxWaitTimeInSeconds": 600}
    spot = {
        "EnableManagedSpotTraining": True,
        "StoppingCondition": limits,
        "Environment": {"REHEARSAL_INTERRUPTIONS": "0"},
    }
    tasks = []
    for number, (name, program) in enumerate({"spent-0": PROGRAM, "spent-1": "raise SystemExit(3)"}.items()):
        account.ship(name, program)
        asked = request(name, **spot)
        job = recorded(tmp_path / str(number), None, name=name, description={})
        (job.folder / "job.json").unlink()
        tasks.append(RunningJob(replace(job, checkpoint_uri=asked["CheckpointConfig"]["S3Uri"]), asked))
    JobRunner(Account("us-east-1"), tasks, at_once=2, rehearsed=True).run_all()
    assert [task.error is None for task in tasks] == [True, False]

    done, failed = jobs(tmp_path)
    told = tasks[0].job.description
    assert (done.training_seconds, done.billable_seconds) == (
        told["TrainingTimeInSeconds"],
        told["BillableTimeInSeconds"],
    )
    saving = 100 * (1 - told["BillableTimeInSeconds"] / told["TrainingTimeInSeconds"])
    assert done.spot_saving_percent == pytest.approx(saving)
    assert (done.rehearsed, done.state, failed.state) == (True, "completed", "failed")
    assert done.rehearsed_usd_per_point == pytest.approx((done.usd or 0) / 50)
    text = shown(tmp_path)
    assert f"({done.usd:.4f})" in row(text, "0") and row(text, "0").endswith("rehearsed")
    assert row(text, "1").endswith("no score failed, rehearsed")
    assert "Rehearsed, nothing was paid" in text
    total = read_costs([tmp_path]).document()["total"]
    assert (total["cost_usd"], total["rehearsed_cost_usd"]) == (
        0.0,
        pytest.approx(sum(bill.usd or 0 for bill in jobs(tmp_path))),
    )

    job = replace(tasks[0].job, description={})  # as launcher.wait=false leaves it
    job.save()
    found = read_costs([tmp_path / "0"])
    assert jobs(tmp_path / "0")[0].billable_seconds == told["BillableTimeInSeconds"]
    assert found.notes == [f"{job.name} has ended; fetch its results with: bincounter attach {job.folder}"]
    assert read_job(job.folder / "job.json").description == {}  # looking changes nothing

    replace(job, name="spent-never").save()
    assert jobs(tmp_path / "0")[0].state == "cut off"  # of another rehearsal
    replace(job, rehearsed=False).save()
    assert "is the address of a rehearsal" in read_costs([tmp_path / "0"]).notes[0]
    with monkeypatch.context() as patch:
        patch.setattr("bincounter.cloud.cost_records.is_local_endpoint", lambda account: False)
        replace(job, name="spent-never", rehearsed=False).save()
        assert jobs(tmp_path / "0")[0].state == "unknown"
    job.save()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # a rehearsal that was, or none
        for endpoint in (
            f"http://127.0.0.1:{nobody.getsockname()[1]}",
            "https://api.sagemaker.us-east-1.amazonaws.com",
        ):
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
            assert jobs(tmp_path / "0")[0].state == "cut off"


def test_an_error_of_a_job_names_the_settings_of_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise ClientError({"Error": {"Code": "New", "Message": "new"}}, "DescribeTrainingJob")

    client = SimpleNamespace(meta=_Sagemaker.meta, describe_training_job=refuse)
    monkeypatch.setattr("bincounter.cloud.cost_records._connect", lambda region: SimpleNamespace(sagemaker=client))
    recorded(tmp_path / "0", None)
    (note,) = read_costs([tmp_path / "0"]).notes
    assert "set AWS_PROFILE or launcher.region to another" in note


class _Sagemaker:
    """Takes or refuses a job."""

    meta = SimpleNamespace(endpoint_url="https://api.sagemaker.us-east-1.amazonaws.com")

    def __init__(self, *, refuses: bool) -> None:
        self._refuses = refuses

    def create_training_job(self, **_: Any) -> None:
        if self._refuses:
            answer = {"Error": {"Code": "ResourceLimitExceeded", "Message": "no quota"}}
            raise ClientError(answer, "CreateTrainingJob")


def test_the_jobs_that_a_run_had_before_are_billed_too(tmp_path: Path) -> None:
    before = recorded(tmp_path, "Stopped", (100, 100))
    after = replace(before, name="after", description={})
    refusing: Any = SimpleNamespace(sagemaker=_Sagemaker(refuses=True))
    with pytest.raises(BinCounterError):
        submit(refusing, after, {})
    assert read_job(tmp_path / "job.json").name == before.name
    assert is_recorded(before) and not is_recorded(after)

    taking: Any = SimpleNamespace(sagemaker=_Sagemaker(refuses=False))
    submit(taking, after, {})
    after.description = {**before.description, "TrainingJobStatus": "Completed", "BillableTimeInSeconds": 300}
    after.save()
    scored(tmp_path, val=(0.65, 0.25))
    first, last = jobs(tmp_path)
    assert (first.state, first.cost_usd, first.points) == ("stopped", pytest.approx(0.1), None)
    assert (last.state, last.cost_usd, last.usd_per_point) == ("completed", pytest.approx(0.3), pytest.approx(0.01))
    assert f"{tmp_path.name}, before " in shown(tmp_path, width=200)

    assert move_to_earlier(tmp_path) == tmp_path / EARLIER_JOBS / "after.json"
    assert [bill.job for bill in jobs(tmp_path)] == ["after", before.name]
    assert move_to_earlier(tmp_path) is None


def test_a_point_costs_what_all_paid_jobs_of_its_run_did(tmp_path: Path) -> None:
    recorded(tmp_path, "Completed", (300, 300))
    scored(tmp_path, val=(0.65, 0.25))

    def last_bill(**before: Any) -> JobBill:
        (tmp_path / EARLIER_JOBS).mkdir(exist_ok=True)
        job = recorded(tmp_path / EARLIER_JOBS / "job", "Stopped", name="before", **before)
        (job.folder / "job.json").replace(tmp_path / EARLIER_JOBS / "before.json")
        return jobs(tmp_path)[-1]

    assert last_bill(seconds=(100, 100)).usd_per_point == pytest.approx(0.4 / 40)
    assert last_bill(seconds=(100, 100), rehearsed=True).usd_per_point == pytest.approx(0.3 / 40)
    assert last_bill().usd_per_point_missing == "its cost is not known yet"


def test_more_billed_than_trained_is_no_saving(tmp_path: Path) -> None:
    recorded(tmp_path / "run", "Completed", (100, 110))
    assert "0.1100 USD paid for 110 s billed, 0.0100 USD more than on demand" in shown(tmp_path / "run", width=200)


def test_nothing_is_counted_twice(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(sweep)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "job.json").write_bytes((sweep / "0" / "job.json").read_bytes())
    found = read_costs([sweep / "0", sweep, tmp_path / "link", tmp_path / "copy"])
    assert found.total["cost_usd"] == pytest.approx(1.0)
    assert found.notes == [f"{tmp_path / 'copy'} and {sweep / '0'} hold the same job, which is counted once"]


def test_a_tuning_job_says_what_is_not_known(sweep: Path) -> None:
    tuning = TuningJob("bincounter-bins", "bins", "us-east-1", 12, 3.6, {}, status="Completed")
    tuning.save(sweep)
    assert shown(sweep, width=200).startswith(f"{sweep}, a tuning job of 5: ")
    replace(tuning, status="InProgress").save(sweep)
    assert "bincounter-bins, of 12 trials, had not ended" in read_costs([sweep]).notes[0]


def test_records_of_earlier_versions_are_read(tmp_path: Path) -> None:
    recorded(tmp_path, "Completed", (100, 50))
    path = tmp_path / "job.json"
    told = json.loads(path.read_text())
    for name in ("instance_type", "instance_count", "price_origin", "rehearsed"):
        del told[name]
    path.write_text(json.dumps(told))
    text = shown(tmp_path)
    assert "Runs: unknown instances at 3.6 USD/h" in text and "0.0500" in text
    assert "Prices on demand: as it was recorded." in text
