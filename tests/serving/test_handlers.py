"""Entry point of AWS's older PyTorch image: its four functions, called by the image's toolkit."""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from archives import photo, unpacked_archive
from commands import REPOSITORY

# A process as in the image: code/ is on the path, the model server's context is what TorchServe's is, and each line
# on stdin is one request.
_SERVER = """
import base64, json, sys
from sagemaker_inference.default_handler_service import DefaultHandlerService
from sagemaker_inference.transformer import Transformer


class Request:
    def __init__(self, headers):
        self.headers, self.status, self.content_type = headers, (200, "OK"), None

    def get_request_properties(self):
        return self.headers


class Context:
    def __init__(self, model_dir):
        self.system_properties = {"model_dir": model_dir, "gpu_id": None}
        self.request_processor = [None]

    def set_response_status(self, code=200, phrase="", idx=0):
        self.request_processor[idx].status = code, phrase

    def set_response_content_type(self, idx, value):
        self.request_processor[idx].content_type = value


transformer, context = Transformer(), Context(sys.argv[1])
handler = DefaultHandlerService(transformer)
handler.initialize(context)
for line in sys.stdin:
    asked = json.loads(line)
    context.request_processor = [Request(asked["headers"])]
    [answer] = handler.handle([{"body": bytearray(base64.b64decode(asked["body"]))}], context)
    request = context.request_processor[0]
    body = answer if isinstance(answer, str) else answer.decode()
    print(json.dumps({"status": request.status, "type": request.content_type, "body": body}), flush=True)
"""

Asked = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = unpacked_archive(tmp_path_factory.mktemp("handlers") / "model", max_batch=2)
    shutil.copy(REPOSITORY / "bincounter/serving/entrypoints/pytorch_image.py", folder / "code/inference.py")
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder / "code"),
        "SAGEMAKER_PROGRAM": "inference.py",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", _SERVER, str(folder)]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin
        assert server.stdout
        reading, writing = server.stdout, server.stdin

        def ask_(body: bytes, **headers: str) -> dict[str, Any]:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            writing.write(json.dumps({"body": base64.b64encode(body).decode(), "headers": named}) + "\n")
            writing.flush()
            return json.loads(reading.readline())

        yield ask_
        writing.close()


def test_photos_are_counted(ask: Asked) -> None:
    one = ask(photo(2), Content_Type="image/jpeg", Accept="*/*")
    assert one["status"] == [200, "OK"]
    assert one["type"] == "application/json"
    instances = [{"image": base64.b64encode(photo(seed)).decode()} for seed in range(5)]
    many = ask(json.dumps({"instances": instances}).encode(), Content_Type="application/json")
    predictions = json.loads(many["body"])["predictions"]
    assert len(predictions) == 5
    assert predictions[2]["probabilities"] == pytest.approx(json.loads(one["body"])["probabilities"], abs=1e-5)
    table = ask(photo(2), Content_Type="image/jpeg", Accept="text/csv;header=present")
    assert table["type"] == "text/csv; charset=utf-8"
    assert table["body"].startswith("count,expected_count,p_0")


def test_a_recorded_count_is_judged(ask: Asked) -> None:
    plain = json.loads(ask(photo(2), Content_Type="image/jpeg")["body"])
    for headers in ({"x_bincounter_expected": "2"}, {"X_Amzn_SageMaker_Custom_Attributes": "trace=a1, expected=2"}):
        judged = json.loads(ask(photo(2), Content_Type="image/jpeg", **headers)["body"])
        assert judged.pop("direction") in ("missing", "extra") and 0 < judged.pop("record_wrong") < 1
        assert judged == plain
    instance = {"image": base64.b64encode(photo(2)).decode(), "expected": 9}
    refused = ask(json.dumps({"instances": [instance]}).encode(), Content_Type="application/json")
    assert refused["status"] == [400, "Bad Request"]
    assert "instances[0]: the model does not know the recorded count 9" in json.loads(refused["body"])["error"]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {"Content_Type": "application/json"}, [400, "Bad Request"]),
        (b"", {"Content_Type": "image/jpeg"}, [400, "Bad Request"]),
        (b'{"instances": [' + b"{}," * 999 + b"{}]}", {"Content_Type": "application/json"}, None),
        (photo(), {"Content_Type": "text/plain"}, [415, "Unsupported Media Type"]),
        (photo(), {"Content_Type": "image/jpeg", "Accept": "text/html"}, [415, "Unsupported Media Type"]),
        (photo()[:700], {"Content_Type": "image/jpeg"}, None),
        (photo()[:700], {}, None),
    ],
    ids=["json", "empty", "many", "type", "accept", "cut", "cut, of no type"],
)
def test_what_is_wrong_is_said_without_a_traceback(
    ask: Asked, body: bytes, headers: dict[str, str], status: list[Any] | None
) -> None:
    answer = ask(body, **headers)
    # The phrases of 413 and 422 have changed between versions of Python.
    assert answer["status"] == status if status else answer["status"][0] in (413, 422)
    assert answer["type"] == "application/json"
    assert json.loads(answer["body"])["error"].endswith(".")
    assert ask(photo(), Content_Type="image/jpeg")["status"] == [200, "OK"]
