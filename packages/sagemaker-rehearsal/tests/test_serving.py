"""An endpoint and a transform job with a real Ray Serve behind them, driven with boto3 alone."""

import io
import json
import tarfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from rehearsed import ROLE, Account

from sagemaker_rehearsal import BUCKET

FILES = {
    "config.yaml": "applications: [{name: default, route_prefix: /, import_path: 'deployment:app'}]",
    "deployment.py": """
import os
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

@serve.deployment
class Length:
    async def __call__(self, request: Request) -> JSONResponse:
        body = await request.body()
        if body == b"bad":
            return JSONResponse({"error": "a bad body"}, status_code=400)
        return JSONResponse({"bytes": len(body), "type": request.headers["content-type"], "by": os.environ["BY"]})

app = Length.bind()
""",
}
BAD = {"error": "a bad body"}
LENGTH = {"bytes": 5, "type": "text/csv", "by": "tests"}


def until(what: Callable[[], Any], seconds: float = 150) -> Any:
    """The first true value of ``what``."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


@pytest.fixture
def model(account: Account) -> Iterator[str]:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as packed:
        for name, text in FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            packed.addfile(member, io.BytesIO(text.encode()))
    account.put("models/length.tar.gz", archive.getvalue())
    uri = f"s3://{BUCKET}/models/length.tar.gz"
    container = {"Image": "ray:serve", "ModelDataUrl": uri, "Environment": {"BY": "tests"}}
    account.sagemaker.create_model(ModelName="length", ExecutionRoleArn=ROLE, PrimaryContainer=container)
    yield "length"
    account.sagemaker.delete_model(ModelName="length")


def test_an_endpoint_answers_and_an_update_makes_it_asynchronous(account: Account, model: str) -> None:
    variant = {"VariantName": "All", "ModelName": model, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    capture = {
        "EnableCapture": True,
        "InitialSamplingPercentage": 100,
        "DestinationS3Uri": f"s3://{BUCKET}/captured",
        "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
    }
    account.sagemaker.create_endpoint_config(
        EndpointConfigName="realtime", ProductionVariants=[variant], DataCaptureConfig=capture
    )
    output = {"S3OutputPath": f"s3://{BUCKET}/answers", "S3FailurePath": f"s3://{BUCKET}/failures"}
    account.sagemaker.create_endpoint_config(
        EndpointConfigName="later", ProductionVariants=[variant], AsyncInferenceConfig={"OutputConfig": output}
    )

    def settled() -> Any:
        described = account.sagemaker.describe_endpoint(EndpointName="length")
        return described if described["EndpointStatus"] not in ("Creating", "Updating") else None

    account.sagemaker.create_endpoint(EndpointName="length", EndpointConfigName="realtime")
    assert until(settled)["EndpointStatus"] == "InService"
    runtime = boto3.client("sagemaker-runtime")
    answered = runtime.invoke_endpoint(EndpointName="length", ContentType="text/csv", Body=b"1,2,3")
    assert json.loads(answered["Body"].read()) == LENGTH
    assert answered["InvokedProductionVariant"] == "All"
    with pytest.raises(ClientError, match=r"client error \(400\) from primary.*a bad body") as refused:
        runtime.invoke_endpoint(EndpointName="length", Body=b"bad")
    assert refused.value.response["Error"]["Code"] == "ModelError"
    captured = [json.loads(account.get(f"captured/length/All/{key}")) for key in account.keys("captured/length/All/")]
    inputs = sorted(line["captureData"]["endpointInput"]["data"] for line in captured)
    assert inputs == ["1,2,3", "YmFk"]  # what is neither JSON nor CSV is written as base64
    streams = account.logs.describe_log_streams(logGroupName="/aws/sagemaker/Endpoints/length")["logStreams"]
    assert [stream["logStreamName"].rpartition("/")[0] for stream in streams] == ["All"]

    account.sagemaker.update_endpoint(EndpointName="length", EndpointConfigName="later")
    assert until(settled)["EndpointConfigName"] == "later"
    account.put("asked/good", b"1,2,3")
    account.put("asked/bad", b"bad")
    for name, place, expected in (("good", "OutputLocation", LENGTH), ("bad", "FailureLocation", BAD)):
        sent = runtime.invoke_endpoint_async(
            EndpointName="length", ContentType="text/csv", InputLocation=f"s3://{BUCKET}/asked/{name}"
        )
        prefix = sent[place].removeprefix(f"s3://{BUCKET}/")
        account.wait_for_object(prefix)
        assert json.loads(account.get(prefix)) == expected
    account.sagemaker.delete_endpoint(EndpointName="length")


def test_a_transform_job_continues_after_a_bad_object_and_fails(account: Account, model: str) -> None:
    for name, body in {"a": b"1,2,3", "b": b"bad", "c": b"1"}.items():
        account.put(f"texts/{name}", body)
    account.sagemaker.create_transform_job(
        TransformJobName="lengths",
        ModelName=model,
        TransformInput={
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/texts/"}},
            "ContentType": "text/csv",
        },
        TransformOutput={"S3OutputPath": f"s3://{BUCKET}/lengths"},
        TransformResources={"InstanceType": "ml.m5.large", "InstanceCount": 1},
    )

    def ended() -> Any:
        described = account.sagemaker.describe_transform_job(TransformJobName="lengths")
        return described if described["TransformJobStatus"] != "InProgress" else None

    described = until(ended)
    assert described["TransformJobStatus"] == "Failed"
    assert described["FailureReason"].startswith(
        "AlgorithmError: texts/b: Bad HTTP status received from algorithm: 400"
    )
    assert account.keys("lengths/") == {"a.out", "c.out"}
    assert json.loads(account.get("lengths/a.out")) == LENGTH
