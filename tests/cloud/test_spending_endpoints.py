"""bincounter cost of endpoints: deployed, updated and deleted as users do."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from deployments import ROLE, act
from scripted_endpoints import ScriptedEndpoints
from spent import nobody_to_ask, shown  # noqa: F401 - the fixture is for all tests here

from bincounter.cli.main import main
from bincounter.cloud.cost_records import read_costs
from bincounter.cloud.endpoints.endpoint_record import read_periods

IMAGE = "target.image=123456789012.dkr.ecr.us-east-1.amazonaws.com/ray:1"


def deployed(run: Path, name: str, *overrides: str, action: str = "deploy", content: bytes = b"an archive") -> None:
    """``bincounter deploy`` with an archive in a run's folder."""
    archive = run / "endpoint" / "model.tar.gz"
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.write_bytes(content)
    target = () if any(each.startswith("target=") for each in overrides) else ("target=realtime",)
    act(*target, f"target.role={ROLE}", IMAGE, f"action={action}", f"name={name}", *overrides, archive=archive)


def aged(run: Path, **changes: Any) -> None:
    """Have an endpoint begun two hours ago, and whatever else."""
    path = run / "endpoint" / "endpoint.json"
    periods = json.loads(path.read_text())
    periods[0] |= {"begun": (datetime.now(UTC) - timedelta(hours=2)).isoformat(), **changes}
    path.write_text(json.dumps(periods))


def test_an_endpoint_bills_until_it_is_deleted(
    script: ScriptedEndpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed(tmp_path / "run", "cost-kept", "target.instance_count=2")
    deployed(tmp_path / "run", "cost-kept", "target.instance_count=2")  # it is there already: one period
    aged(tmp_path / "run")
    (bill,) = read_costs([tmp_path / "run"]).endpoints
    assert (bill.state, bill.capacity, bill.rehearsed) == ("InService", "2 x ml.m5.xlarge", True)
    assert (bill.usd_per_hour, bill.cost_usd) == (0.0, 0.0)
    assert bill.rehearsed_cost_usd == pytest.approx(0.92, abs=0.01) and not bill.cost_is_at_most
    text = shown(tmp_path / "run" / "endpoint")
    assert "2 x ml.m5.xlarge" in text and "(0.92" in text and "Endpoints:" not in text
    with monkeypatch.context() as patch:
        patch.setattr("bincounter.cloud.cost_records.is_local_endpoint", lambda account: False)
        aged(tmp_path / "run", rehearsed=False)
        assert re.search(r"Endpoints: 0\.92\d\d USD so far, 0\.46 USD/h now\.", shown(tmp_path / "run"))
    aged(tmp_path / "run", rehearsed=True)

    act("target=realtime", "action=delete", "name=cost-kept", f"paths.log_dir={tmp_path}")
    (bill,) = read_costs([tmp_path / "run"]).endpoints
    assert (bill.state, bill.usd_per_hour) == ("deleted", 0.0)
    assert bill.until is not None and bill.rehearsed_cost_usd == pytest.approx(0.92, abs=0.01)


def test_an_update_ends_the_bill_of_the_run_that_was_served_before(script: ScriptedEndpoints, tmp_path: Path) -> None:
    cache = f"paths.cache_dir={tmp_path / 'cache'}"
    deployed(tmp_path / "old", "cost-moved", cache)
    script.course = [{"EndpointStatus": status} for status in ("InService", "Updating", "InService")]
    deployed(tmp_path / "new", "cost-moved", cache, action="update", content=b"another")  # neither is below log_dir
    (old,), (new,) = (read_costs([tmp_path / name]).endpoints for name in ("old", "new"))
    assert (old.state, old.usd_per_hour) == ("replaced", 0.0)
    assert (new.state, new.until) == ("InService", None)
    act("target=realtime", "action=delete", "name=cost-moved", cache)
    assert [bill.state for bill in read_costs([tmp_path / "new"]).endpoints] == ["deleted"]


def test_what_scales_or_serves_without_instances_says_so(
    script: ScriptedEndpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scaled = (
        "target.request.ScalableTarget={MinCapacity:1,MaxCapacity:4}",
        "target.request.ScalingPolicy.TargetTrackingScalingPolicyConfiguration={TargetValue:600,"
        "PredefinedMetricSpecification:{PredefinedMetricType:SageMakerVariantInvocationsPerInstance}}",
    )
    for _ in range(2):
        deployed(tmp_path / "late", "cost-late")
    for step in ("only its autoscaling changes", "nothing to do"):
        with caplog.at_level("INFO"):
            deployed(tmp_path / "late", "cost-late", *scaled)
        assert caplog.messages[-4] == f"The endpoint cost-late has this checkpoint and these settings: {step}."
    before, after = read_periods(tmp_path / "late" / "endpoint" / "endpoint.json")
    assert (before.ending, before.ended, before.usd_per_hour_most) == ("replaced", after.begun, 0.23)
    assert (after.ended, after.usd_per_hour_most) == (None, 0.92)
    deployed(tmp_path / "run", "cost-scaled", *scaled)
    deployed(tmp_path / "idle", "cost-idle", "target=serverless")
    aged(tmp_path / "run")
    script.course = [
        {
            "EndpointStatus": "InService",
            "ProductionVariants": [{"VariantName": "AllTraffic", "CurrentInstanceCount": 3}],
        }
    ]
    (bill,) = read_costs([tmp_path / "run"]).endpoints
    assert bill.cost_is_at_most and bill.rehearsed_cost_usd == pytest.approx(2 * 4 * 0.23, abs=0.01)
    with monkeypatch.context() as patch:
        patch.setattr("bincounter.cloud.cost_records.is_local_endpoint", lambda account: False)
        aged(tmp_path / "run", rehearsed=False)
        (bill,) = read_costs([tmp_path / "run"]).endpoints
        assert bill.usd_per_hour == pytest.approx(0.69)
    script.course = []
    text = shown(tmp_path / "idle")
    assert "4096 MB" in text and "(0.0000 + requests)" in text


def test_an_endpoint_that_nobody_can_be_asked_about(
    script: ScriptedEndpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed(tmp_path / "run", "cost-lost")
    aged(tmp_path / "run", rehearsed=False)
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    capsys.readouterr()
    assert main(["cost", str(tmp_path / "run")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "not known" in told and "< 0.46" in told
    assert "AWS could not be asked whether the endpoint cost-lost still exists (no AWS credentials were found)" in told
    see = "see bincounter deploy target=realtime name=cost-lost action=status target.region=us-east-1"
    assert f"if it does, it bills 0.23 USD/h; {see}" in told
    assert re.search(r"Endpoints: at most [\d.]+ USD so far, 0 USD/h or more now\.", told)


def test_an_endpoint_that_was_deleted_or_changed_elsewhere(script: ScriptedEndpoints, tmp_path: Path) -> None:
    deployed(tmp_path / "run", "cost-gone")
    script.course = [{"EndpointStatus": "InService", "EndpointConfigName": "somebody-elses"}]
    assert [bill.state for bill in read_costs([tmp_path / "run"]).endpoints] == ["replaced"]
    script.course = []
    elsewhere = [f"paths.{name}_dir={tmp_path / 'elsewhere'}" for name in ("log", "cache")]
    act("target=realtime", "action=delete", "name=cost-gone", *elsewhere)
    found = read_costs([tmp_path / "run"])
    assert [(bill.state, bill.cost_is_at_most) for bill in found.endpoints] == [("gone", True)]
    assert "the time of its end is not known" in found.notes[0]


def test_a_record_that_cannot_be_written_is_no_error(
    script: ScriptedEndpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run" / "endpoint").mkdir(parents=True)
    (tmp_path / "run" / "endpoint" / "endpoint.json").write_text("{")
    deployed(tmp_path / "run", "cost-unwritten")
    assert "The costs of the endpoint are not recorded" in caplog.text
    assert "endpoint.json is corrupt" in read_costs([tmp_path / "run"]).errors[0]
