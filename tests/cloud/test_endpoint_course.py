"""Endpoints that fail, are rolled back or are busy, and containers that refuse a photo."""

import json
import re
import time
from pathlib import Path
from typing import Any

import boto3
import pytest
from deployments import ROLE, act
from scripted_endpoints import ScriptedEndpoints

from bincounter.cli.audit_command import _endpoint
from bincounter.cloud.endpoints import endpoint_state, invoke
from bincounter.errors import ConfigError, Interrupted, ResourceError, UserError

IMAGE = "target.image=123456789012.dkr.ecr.us-east-1.amazonaws.com/ray:1"
REALTIME = ("target=realtime", f"target.role={ROLE}", IMAGE)
SCALED = (
    "target.request.ScalableTarget={MinCapacity:1,MaxCapacity:4}",
    "target.request.ScalingPolicy.TargetTrackingScalingPolicyConfiguration={TargetValue:600,"
    "PredefinedMetricSpecification:{PredefinedMetricType:SageMakerVariantInvocationsPerInstance}}",
)
PING = (
    "The primary container for production variant AllTraffic did not pass the ping health check. Please check "
    "CloudWatch logs for this endpoint."
)
ANSWER = json.dumps(
    {
        "count": 3,
        "probabilities": {"2": 0.25, "3": 0.75},
        "expected_count": 2.75,
        "model": "bincounter-0",
        "needs_person": True,
    }
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("1.jpg", "2.png"):
        (folder / name).write_bytes(name.encode())
    return folder


def configs(name: str) -> list[str]:
    client = boto3.client("sagemaker", "us-east-1")
    listed = client.list_endpoint_configs(NameContains=name)["EndpointConfigs"]
    return [config["EndpointConfigName"] for config in listed]


def test_a_failed_deployment_is_taken_away(
    script: ScriptedEndpoints, archive: Path, caplog: pytest.LogCaptureFixture
) -> None:
    group = "/aws/sagemaker/Endpoints/failing"
    logs = boto3.client("logs", "us-east-1")
    logs.create_log_group(logGroupName=group)
    logs.create_log_stream(logGroupName=group, logStreamName="AllTraffic/i-1")
    said = ["starting", "\x1b[36mModuleNotFoundError: No module named 'timm'\x1b[0m", "shutting down"]
    events = [{"timestamp": int(time.time() * 1000) + number, "message": line} for number, line in enumerate(said)]
    logs.put_log_events(logGroupName=group, logStreamName="AllTraffic/i-1", logEvents=events)
    script.course = [{"EndpointStatus": "Creating"}, {"EndpointStatus": "Failed", "FailureReason": PING}]
    script.asked = []
    with caplog.at_level("INFO"), pytest.raises(ResourceError) as failed:
        act(*REALTIME, "action=deploy", "name=failing", archive=archive)
    assert str(failed.value) == (
        "the endpoint failing did not come into service (the container never answered its health check; its log ends "
        "with \"ModuleNotFoundError: No module named 'timm'\"); it was deleted, and nothing is billed: correct the "
        "cause, and run the same command again"
    )
    assert script.asked == [
        *("CreateModel", "CreateEndpointConfig", "CreateEndpoint"),
        *("DeleteEndpoint", "DeleteEndpointConfig", "DeleteModel"),
    ]
    assert re.search(r"failing: Creating \(\d+ s\)\n", caplog.text)


def test_ctrl_c_names_the_command_that_shows_the_endpoint(
    script: ScriptedEndpoints, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(endpoint_state, "wait_until", press)
    see = "check it with bincounter deploy target=realtime name=left action=status target.region=us-east-1, and delete"
    with pytest.raises(Interrupted, match=see):
        act(*REALTIME, "action=deploy", "name=left", archive=archive)


UPDATING = [{"EndpointStatus": "InService"}, {"EndpointStatus": "Updating"}, {"EndpointStatus": "InService"}]


def test_an_update_leaves_nothing_of_what_was_before(script: ScriptedEndpoints, archive: Path) -> None:
    act(*REALTIME, "action=deploy", "name=updated", *SCALED, archive=archive)
    before = configs("updated")
    archive.write_bytes(b"another archive")
    script.course, script.asked = [*UPDATING], []
    assert act(*REALTIME, "action=update", "name=updated", *SCALED, archive=archive) == 0
    assert script.asked == [
        *("CreateModel", "CreateEndpointConfig", "UpdateEndpoint"),
        *("RegisterScalableTarget", "DeleteEndpointConfig", "DeleteModel"),
    ]
    assert len(configs("updated")) == 1 and configs("updated") != before
    script.asked = []
    assert act(*REALTIME, "action=update", "name=updated", *SCALED, archive=archive) == 0
    assert script.asked == ["RegisterScalableTarget"]


def test_an_update_without_autoscaling_ends_it(script: ScriptedEndpoints, archive: Path) -> None:
    act(*REALTIME, "action=deploy", "name=unscaled", *SCALED, archive=archive)
    script.asked = []
    with pytest.raises(
        ConfigError, match=r"has autoscaling, which target\.request lacks, .*: use action=update to end"
    ):
        act(*REALTIME, "action=deploy", "name=unscaled", archive=archive)
    archive.write_bytes(b"another archive")
    with pytest.raises(ConfigError, match=r"has autoscaling, .*: remove target\.wait=false, so that the update"):
        act(*REALTIME, "action=update", "name=unscaled", "target.wait=false", archive=archive)
    assert not script.asked
    act(*REALTIME, "action=update", "name=unscaled", archive=archive)
    assert "DeregisterScalableTarget" in script.asked


def test_a_failed_update_is_rolled_back(script: ScriptedEndpoints, archive: Path) -> None:
    act(*REALTIME, "action=deploy", "name=kept", *SCALED, archive=archive)
    before = configs("kept")
    script.course, script.asked = [*UPDATING[:2], {"EndpointStatus": "RollingBack"}, UPDATING[2]], []
    script.rolls_back = True
    with pytest.raises(ResourceError, match=rf"the update failed .* kept serves {before[0]} as before"):
        act(*REALTIME, "action=update", "name=kept", "target.instance_type=ml.c5.xlarge", *SCALED, archive=archive)
    # AWS refuses another instance type while autoscaling is registered.
    assert script.asked == [
        *("CreateEndpointConfig", "DeregisterScalableTarget", "UpdateEndpoint"),
        *("RegisterScalableTarget", "DeleteEndpointConfig"),
    ]
    assert configs("kept") == before


@pytest.mark.parametrize("state", ["Updating", "Failed"])
def test_what_cannot_be_updated(state: str, script: ScriptedEndpoints, archive: Path) -> None:
    act(*REALTIME, "action=deploy", "name=stuck", archive=archive)
    script.course, script.asked = [{"EndpointStatus": state}], []
    with pytest.raises(ConfigError, match=f"name=stuck is {state}, and cannot be updated: (wait|use)"):
        act(*REALTIME, "action=update", "name=stuck", "target.instance_count=2", archive=archive)
    assert not script.asked


def test_a_busy_endpoint_is_deleted_when_it_may_be(
    script: ScriptedEndpoints, archive: Path, caplog: pytest.LogCaptureFixture
) -> None:
    act(*REALTIME, "action=deploy", "name=busy", archive=archive)
    script.course = [{"EndpointStatus": "Updating"}]
    with pytest.raises(ConfigError, match="is Updating, and cannot be deleted until that has ended"):
        act("target=realtime", "action=delete", "name=busy", "target.wait=false")
    script.course = [{"EndpointStatus": "Updating"}] * 3 + [{"EndpointStatus": "InService"}]
    with caplog.at_level("INFO"):
        assert act("target=realtime", "action=delete", "name=busy") == 0
    assert "The endpoint is Updating, and will be deleted when that has ended." in caplog.text


def test_answers_and_refusals_of_the_container(
    script: ScriptedEndpoints,
    archive: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    act(*REALTIME, "action=deploy", "name=asked", archive=archive)
    capsys.readouterr()
    asked = ("target=realtime", "action=invoke", "name=asked")

    def counting_by(model: str) -> Any:
        return _endpoint("asked", tmp_path, Path("best.ckpt"), {model})

    script.containers = [(503, '{"error": "too much to do"}'), (200, ANSWER)]  # one that is busy is asked again
    assert act(*asked, f"input={photos / '1.jpg'}") == 0
    assert capsys.readouterr().out == f"{photos / '1.jpg'}\t3\t(75% sure, 2.75 expected)\tneeds a person\n"
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    script.containers = [(429, ""), (200, ANSWER)]
    assert act(*asked, f"input={photos / '1.jpg'}") == 0
    capsys.readouterr()
    script.containers = [(200, ANSWER), (422, '{"error": "no photo"}')]  # as bincounter audit --endpoint asks
    answers = list(counting_by("bincounter-0")(str(photos / name) for name in ("1.jpg", "2.png")))
    assert sorted((answer.count, answer.error) for answer in answers if answer.count) == [(3, "")]
    assert [answer.photo for answer in answers] == [str(photos / name) for name in ("1.jpg", "2.png")]
    script.containers = [(200, ANSWER)]
    with pytest.raises(
        UserError, match=r"--endpoint=asked serves bincounter-0, which is another model than best\.ckpt"
    ):
        list(counting_by("bincounter-1")([str(photos / "1.jpg")]))
    monkeypatch.setattr(invoke, "_TRIES", 2)
    script.containers = [(500, '{"error": "broken"}'), (504, '{"error": "late"}'), (500, ""), (200, ANSWER)]
    late, counted = (next(counting_by("bincounter-0")([str(photos / "1.jpg")])) for _ in range(2))
    assert (late.error, late.passing, counted.count) == ("late", True, 3)
    script.containers = [(504, '{"error": "late"}'), (504, '{"error": "late"}')]  # not the photo's fault
    assert act(*asked, f"input={photos / '1.jpg'}") == 1
    assert capsys.readouterr().err == f"{photos / '1.jpg'}: late\n"
    script.containers = [(422, '{"error": "no photo: send a JPEG"}')] * 2
    assert act(*asked, f"input={photos}") == 2
    assert capsys.readouterr().err == "".join(
        f"{photos / name}: no photo: send a JPEG\n" for name in ("1.jpg", "2.png")
    )


def test_photos_that_cannot_be_sent_are_named_and_the_others_sent(
    script: ScriptedEndpoints,
    archive: Path,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = ("target=async", "name=later")
    act(*given, f"target.role={ROLE}", IMAGE, "action=deploy", archive=archive)
    capsys.readouterr()
    (photos / "1.jpg").write_bytes(bytes(2000))
    monkeypatch.setitem(invoke._LARGEST_MB, "async", 0.001)
    for asked, code in ((photos, 0), (photos / "1.jpg", 2)):
        assert act(*given, "action=invoke", "target.wait=false", f"input={asked}") == code
        printed = capsys.readouterr()
        assert printed.err.startswith(f"{photos / '1.jpg'}: 0.0 MB are above the limit of SageMaker")
        assert printed.out.startswith(f"{photos / '2.png'}\ts3://" if code == 0 else "")
        assert len(printed.out.splitlines()) == int(code == 0)


def test_a_serverless_endpoint_gets_as_many_requests_as_it_takes(
    script: ScriptedEndpoints, archive: Path, photos: Path
) -> None:
    kind, name = "target=serverless", "name=takes-one"
    given = (f"target.role={ROLE}", IMAGE, "target.max_concurrency=1")
    act(kind, name, *given, "action=deploy", archive=archive)
    script.containers, script.most = [(200, ANSWER)] * 2, 0
    assert act(kind, name, "action=invoke", f"input={photos}") == 0
    assert script.most == 1
