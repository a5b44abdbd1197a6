"""Check docs/deploy.md against the code: its policy and its examples of requests."""

import json
import re

import botocore.session
from commands import REPOSITORY
from test_endpoint_requests import EXAMPLES

PAGE = (REPOSITORY / "docs/deploy.md").read_text(encoding="utf-8")
SERVICES = {"InvokeEndpoint": "sagemaker-runtime", "InvokeEndpointAsync": "sagemaker-runtime"}
SOURCE = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "bincounter/cloud/endpoints").glob("*.py"))


def actions() -> set[str]:
    [policy] = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL))
    return {action for statement in policy["Statement"] for action in statement["Action"]}


def test_every_action_exists() -> None:
    session = botocore.session.get_session()
    for action in actions():
        service, _, name = action.partition(":")
        model = session.get_service_model(SERVICES.get(name, service))
        assert name in model.operation_names, action


def test_what_is_asked_for_is_allowed() -> None:
    session = botocore.session.get_session()
    allowed = {action.partition(":")[2] for action in actions()}
    for service in ("sagemaker", "application-autoscaling"):
        for name in session.get_service_model(service).operation_names:
            method = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
            if "_" in method and re.search(rf'\.{method}\(|"{method}"|"{name}"', SOURCE):
                assert name in allowed, name


def test_examples_of_requests_are_tested_ones() -> None:
    tested = {
        override.removeprefix("target.request.")
        for _, _, overrides, _, _ in EXAMPLES.values()
        for override in overrides
    }
    table = PAGE[PAGE.index("### Everything else") : PAGE.index("## Rehearse")]
    shown = [code for code in re.findall(r"`([^`]+)`", table) if re.match(r"[A-Z]\w+[.=]", code) and "=" in code]
    assert len(shown) >= 10
    assert set(shown) <= tested
