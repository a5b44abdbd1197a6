"""S3 settings: profiles, credentials, endpoints and regions, read as every AWS tool reads them."""

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_bins import bins, files, put
from s3_faults import elsewhere, error
from s3_proxy import Answer, Fault, FaultyProxy, faulty_proxy
from s3_server import ACCESS_KEY, SECRET_KEY, S3Server, serve

from bincounter.data.s3.sync import fetch
from bincounter.errors import DataError, ResourceError


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "correct AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": "unknown"}, "correct AWS_ACCESS_KEY_ID"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "none were found"),
        ({"AWS_SECRET_ACCESS_KEY": None}, "Partial credentials"),
        ({"AWS_PROFILE": "nobody"}, "nobody"),
        ({"AWS_CA_BUNDLE": "/no/such/file"}, "correct AWS_CA_BUNDLE"),
        ({"AWS_ENDPOINT_URL": "nonsense"}, "AWS_ENDPOINT_URL is not an address"),
        ({"AWS_ENDPOINT_URL": "http://user:pa55@127.0.0.1:1"}, "127.0.0.1:1 cannot be reached"),
    ],
)
def test_wrong_settings_are_one_sentence(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str | None], sentence: str
) -> None:
    put(s3, bins(2))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name, value in environment.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises((DataError, ResourceError)) as caught:
        fetch("s3://shop/bins", tmp_path)
    message = str(caught.value)
    assert sentence in message and "\n" not in message and "pa55" not in message


def test_no_credential_is_logged(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put(s3, bins(2))
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-session-token")
    caplog.set_level(logging.DEBUG)
    for address in ("s3://KEY:hidden@shop/bins", "s3:/KEY:hidden@shop", "S3A://KEY:hidden@shop"):
        with pytest.raises(DataError, match="holds no credentials") as caught:
            fetch(address, tmp_path)
        assert "hidden" not in str(caught.value)
    try:
        fetch("s3://shop/bins", tmp_path)
    finally:
        assert "listing s3://shop/bins" in caplog.text
        assert not any(secret in caplog.text for secret in (SECRET_KEY, "a-session-token", "hidden"))


@pytest.fixture
def profile(s3_proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``AWS_PROFILE=shop`` and nothing else in the environment; the script that prints the profile's credentials."""
    process, config = tmp_path / "credentials.py", tmp_path / "config"
    lines = [
        f"endpoint_url = {s3_proxy.endpoint}",
        "region = eu-west-1",
        f"credential_process = {sys.executable} {process}",
    ]
    config.write_text("\n".join(["[profile shop]", *lines]))
    for name in s3_proxy.server.environment().keys() - {"AWS_EC2_METADATA_DISABLED"}:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "shop")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    return process


def printing(expiration: str = "2099-01-01T00:00:00Z", secret: str = SECRET_KEY) -> str:
    credentials = {"AccessKeyId": ACCESS_KEY, "SecretAccessKey": secret, "Expiration": expiration}
    return f"print({json.dumps({'Version': 1, **credentials})!r})"


def test_a_profile_tells_endpoint_region_and_credentials(s3_proxy: FaultyProxy, profile: Path, tmp_path: Path) -> None:
    profile.write_text(printing())
    put(s3_proxy.server, bins(3))
    s3_proxy.spoil("", elsewhere(error(400, "WrongRegion")))
    fetch("s3://shop/bins", tmp_path)
    assert files(tmp_path) == bins(3)


def test_unrenewable_credentials_in_mid_transfer_are_one_sentence(
    s3_proxy: FaultyProxy, profile: Path, tmp_path: Path
) -> None:
    calls = profile.with_name("calls")
    lines = [f"with open({str(calls)!r}, 'a') as file: file.write('x')", "import os, sys"]
    fails = f"if os.path.getsize({str(calls)!r}) > 1: sys.exit('no such login')"
    profile.write_text("\n".join([*lines, fails, printing("2026-01-01T00:00:00Z")]))
    put(s3_proxy.server, bins(3))
    with pytest.raises(DataError, match=r"the AWS credentials are not available .*: log in again") as caught:
        fetch("s3://shop/bins", tmp_path)
    assert "\n" not in str(caught.value) and SECRET_KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("raise SystemExit('expired login')", "the AWS credentials are not available .*: log in again"),
        (printing(secret="wrong"), "correct AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"),
        ("print('no JSON')", "AWS"),
    ],
)
def test_a_profile_that_fails_is_one_sentence(
    s3_proxy: FaultyProxy, profile: Path, tmp_path: Path, script: str, sentence: str
) -> None:
    profile.write_text(script)
    put(s3_proxy.server, bins(3))
    with pytest.raises(DataError, match=sentence) as caught:
        fetch("s3://shop/bins", tmp_path)
    assert "\n" not in str(caught.value)


def test_the_endpoint_for_s3_goes_before_that_for_all(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    put(s3, bins(3))
    fetch("s3://shop/bins", tmp_path)
    assert files(tmp_path) == bins(3)


@pytest.fixture
def public_server(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A server that knows no credentials, which nobody has."""
    with serve(tmp_path / "public", public=True) as server, faulty_proxy(server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        yield proxy


def test_a_public_bucket_is_read_without_credentials(public_server: FaultyProxy, tmp_path: Path) -> None:
    put(public_server.server, bins(3))
    signed: list[str] = []

    def note(answer: Answer) -> Answer:
        signed.append(answer.asked.get("authorization", ""))
        return answer

    public_server.spoil("", note)
    fetch("s3://shop/bins", tmp_path)
    assert files(tmp_path) == bins(3)
    assert signed and not any(signed)


ELSEWHERE = [
    pytest.param(error(301, "PermanentRedirect", x_amz_bucket_region="eu-west-1"), id="redirect"),
    pytest.param(error(400, "AuthorizationHeaderMalformed", x_amz_bucket_region="eu-west-1"), id="malformed"),
]


@pytest.mark.parametrize("answered", ELSEWHERE)
def test_a_bucket_in_another_region_is_found(s3_proxy: FaultyProxy, tmp_path: Path, answered: Fault) -> None:
    put(s3_proxy.server, bins(20))
    s3_proxy.spoil("", elsewhere(answered))
    fetch("s3://shop/bins", tmp_path)
    assert files(tmp_path) == bins(20)
    assert s3_proxy.objects_sent() == 20  # found before, and once for all


def test_a_region_that_nobody_tells_is_one_sentence(s3_proxy: FaultyProxy, tmp_path: Path) -> None:
    put(s3_proxy.server, bins(3))
    s3_proxy.spoil("", elsewhere(error(301, "PermanentRedirect")))
    with pytest.raises(DataError, match="without naming a region: correct AWS_ENDPOINT_URL"):
        fetch("s3://shop/bins", tmp_path)
    assert len(s3_proxy.requests) < 10
