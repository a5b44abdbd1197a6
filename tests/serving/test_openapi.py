"""OpenAPI description of the local server: valid, and what the server does."""

import base64
import json
from typing import Any

import pytest
from archives import COUNTS, photo
from local_server import LocalServer
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from urllib3.filepost import encode_multipart_formdata

from bincounter.serving.application.answers import Limits
from bincounter.serving.local.openapi import describe_api

FORM, FORM_TYPE = encode_multipart_formdata([("photo", (f"{seed}.jpg", photo(seed))) for seed in (3, 1)])
TYPED = {"Content-Type": "image/jpeg"}
IN_JSON = {"Content-Type": "application/json"}
INSTANCES = json.dumps({"instances": [{"image": base64.b64encode(photo(seed)).decode()} for seed in (3, 1)]}).encode()
CASES: list[tuple[str, str, bytes | None, dict[str, str], str]] = [
    ("post", "/invocations", photo(3), TYPED, "200"),
    ("post", "/invocations", photo(3), {**TYPED, "Accept": "text/csv"}, "200"),
    ("post", "/invocations", photo(3), {**TYPED, "X-Bincounter-Expected": "2"}, "200"),
    ("post", "/invocations", INSTANCES, IN_JSON, "200"),
    ("post", "/invocations", FORM, {"Content-Type": FORM_TYPE}, "200"),
    ("post", "/invocations", b"{}", IN_JSON, "400"),
    ("post", "/invocations", bytes(2_000_001), TYPED, "413"),
    ("post", "/invocations", b"a photo", {"Content-Type": "text/plain"}, "415"),
    ("post", "/invocations", b"no photo", TYPED, "422"),
    ("post", "/invocations", b"a", {**TYPED, "Host": "elsewhere.example"}, "default"),
    ("post", "/explanation", photo(3), TYPED, "200"),
    ("post", "/explanation", b"", TYPED, "400"),
    ("post", "/explanation", bytes(2_000_001), TYPED, "413"),
    ("post", "/explanation", b"no photo", TYPED, "422"),
    ("post", "/explanation", b"a", {"Host": "elsewhere.example"}, "default"),
    *(("get", path, None, {}, "200") for path in ("/model", "/ping", "/metrics", "/openapi.json")),
    *(
        ("get", path, None, {"Host": "elsewhere.example"}, "default")
        for path in ("/model", "/ping", "/metrics", "/openapi.json")
    ),
]


@pytest.fixture(scope="module")
def api(served: LocalServer) -> dict[str, Any]:
    return served.ask("GET", "/openapi.json").json()


@pytest.mark.parametrize("token", [False, True])
def test_description_is_valid(token: bool) -> None:
    api = describe_api(Limits(), COUNTS, token=token)
    OpenAPIV31SpecValidator(api).validate()
    responses = {path: next(iter(methods.values()))["responses"] for path, methods in api["paths"].items()}
    assert {path for path, codes in responses.items() if "401" in codes} == (
        responses.keys() - {"/ping"} if token else set()
    )


def test_every_path_and_status_is_exercised(api: dict[str, Any]) -> None:
    documented = {
        (method, path, status)
        for path, methods in api["paths"].items()
        for method, operation in methods.items()
        for status in operation["responses"]
    }
    assert documented == {(method, path, status) for method, path, _, _, status in CASES}


@pytest.mark.parametrize(("method", "path", "body", "headers", "status"), CASES)
def test_answer_has_the_documented_status_and_form(
    served: LocalServer,
    api: dict[str, Any],
    method: str,
    path: str,
    body: bytes | None,
    headers: dict[str, str],
    status: str,
) -> None:
    answered = served.ask(method.upper(), path, body, headers)
    documented = api["paths"][path][method]["responses"]
    assert str(answered.status) == status or (status == "default" and str(answered.status) not in documented)
    kind = answered.headers["content-type"].partition(";")[0]
    schema = documented[status]["content"][kind]["schema"]
    content = answered.json() if kind == "application/json" else answered.body.decode()
    OAS31Validator({**schema, "components": api["components"]}).validate(content)


def test_a_form_is_answered_in_the_order_of_its_files(served: LocalServer) -> None:
    alone = [served.count(photo(seed)).json() for seed in (3, 1)]
    answered = served.ask("POST", "/invocations", FORM, {"Content-Type": FORM_TYPE}).json()["predictions"]
    assert [one["probabilities"] for one in answered] == [pytest.approx(one["probabilities"]) for one in alone]
    assert alone[0]["probabilities"] != pytest.approx(alone[1]["probabilities"])
    form, kind = encode_multipart_formdata({"photo": ("3.jpg", photo(3))})
    [only] = served.ask("POST", "/invocations", form, {"Content-Type": kind}).json()["predictions"]
    assert only["count"] == alone[0]["count"]
