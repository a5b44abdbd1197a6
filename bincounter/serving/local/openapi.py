"""OpenAPI 3.1 description of the local server, for ``/openapi.json``."""

from collections.abc import Sequence
from typing import Any

import bincounter
from bincounter.audit.posterior import EXTRA, MISSING
from bincounter.serving.application.answers import CSV, JSON, Limits
from bincounter.serving.application.photo_requests import EXPECTED, FORM

_NUMBER, _INTEGER, _TEXT = {"type": "number"}, {"type": "integer"}, {"type": "string"}
_BASE64 = {"type": "string", "contentEncoding": "base64"}
_BINARY = {"type": "string", "format": "binary"}


def describe_api(limits: Limits, counts: Sequence[int], *, token: bool) -> dict[str, Any]:
    """Describe the paths of a server.

    Args:
        limits: of the archive.
        counts: that the model can answer.
        token: requests take a token.
    """
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "bincounter",
            "summary": "Count the items in a warehouse bin from one photo.",
            "version": bincounter.__version__,
        },
        "paths": {
            "/invocations": {"post": _invocations(limits, counts)},
            "/explanation": {"post": _explanation()},
            "/model": {"get": _get("describe", "The model, its limits and its scores.", JSON, {"type": "object"})},
            "/ping": {"get": _get("ping", "200 while the model answers.", JSON, _reference("Identity"))},
            "/metrics": {"get": _get("metrics", "Metrics for Prometheus.", "text/plain", _TEXT)},
            "/openapi.json": {"get": _get("openapi", "This description.", JSON, {"type": "object"})},
        },
        "components": {"schemas": _schemas(limits, counts)},
    }
    if token:
        described["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"token": []}]
        described["paths"]["/ping"]["get"]["security"] = []
        for path in described["paths"].keys() - {"/ping"}:
            [operation] = described["paths"][path].values()
            operation["responses"]["401"] = _problem("The token is missing or wrong.")
    return described


def _invocations(limits: Limits, counts: Sequence[int]) -> dict[str, Any]:
    form = {"type": "object", "additionalProperties": {"anyOf": [_BINARY, {"type": "array", "items": _BINARY}]}}
    answers = {"oneOf": [_reference("Answer"), _reference("Answers")]}
    return {
        "operationId": "count",
        "summary": "Count the items in a photo, or in several.",
        "description": "A form, and JSON with instances, are answered by a list in their order.",
        "parameters": [
            {
                "name": EXPECTED,
                "in": "header",
                "description": "Recorded count of the bin, for a body that is a photo.",
                "schema": {"type": "integer", "enum": list(counts)},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                **{f"image/{kind}": {"schema": _BINARY} for kind in ("jpeg", "png", "webp")},
                "application/octet-stream": {"schema": _BINARY},
                JSON: {"schema": {"oneOf": [_reference("Photo"), _reference("Photos")]}},
                FORM: {"schema": form},
            },
        },
        "responses": {
            "200": {"description": "The counts.", "content": {JSON: {"schema": answers}, CSV: {"schema": _TEXT}}},
            "400": _problem("The request is malformed."),
            "413": _problem(f"Over {limits.max_body_bytes} bytes, {limits.max_instances} photos or 100 megapixels."),
            "415": _problem("The type of the request, its encoding or that of the answer is not supported."),
            "422": _problem("A photo cannot be read."),
            "default": _problem("403 of another site; 408 too slow; 500 failed; 503 overloaded; 504 timed out."),
        },
    }


def _explanation() -> dict[str, Any]:
    return {
        "operationId": "explain",
        "summary": "Grad-CAM of one photo.",
        "requestBody": {"required": True, "content": {"application/octet-stream": {"schema": _BINARY}}},
        "responses": {
            "200": _response("How much each place spoke for the count.", JSON, _reference("Explanation")),
            "400": _problem("The body is empty."),
            "413": _problem("The photo is too large."),
            "422": _problem("The photo cannot be read."),
            "default": _problem("As for /invocations; 501 a model that cannot be explained."),
        },
    }


def _schemas(limits: Limits, counts: Sequence[int]) -> dict[str, Any]:
    share = {"type": "number", "minimum": 0, "maximum": 1}
    count = {"type": "integer", "enum": list(counts)}
    photo = {
        "type": "object",
        "properties": {"image": _BASE64, "url": {"type": "string", "format": "uri"}, "expected": count},
        "oneOf": [{"required": ["image"]}, {"required": ["url"]}],
        "additionalProperties": False,
    }
    listed = {"type": "array", "items": _reference("Photo"), "minItems": 1, "maxItems": limits.max_instances}
    probabilities = _object(**{str(each): share for each in counts})
    answer = _object(count=count, probabilities=probabilities, expected_count=_NUMBER, model=_TEXT)
    answer["properties"]["needs_person"] = {"type": "boolean"}  # of archives packed with coverage=
    # Of requests with the recorded count.
    answer["properties"] |= {"record_wrong": share, "direction": {"type": "string", "enum": [MISSING, EXTRA]}}
    return {
        "Photo": photo,
        "Photos": _object(instances=listed),
        "Answer": answer,
        "Answers": _object(predictions={"type": "array", "items": _reference("Answer")}),
        "Explanation": _object(count=count, width=_INTEGER, height=_INTEGER, heat=_BASE64),
        "Identity": _object(model=_TEXT, name=_TEXT, process=_INTEGER),
        "Problem": _object(error=_TEXT),
    }


def _object(**properties: Any) -> dict[str, Any]:
    """Schema of an object with these properties alone, all of them required."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _get(name: str, summary: str, kind: str, schema: Any) -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": _response(summary, kind, schema), "default": _problem("The server does not answer.")},
    }


def _response(description: str, kind: str, schema: Any) -> dict[str, Any]:
    return {"description": description, "content": {kind: {"schema": schema}}}


def _problem(description: str) -> dict[str, Any]:
    return _response(description, JSON, _reference("Problem"))
