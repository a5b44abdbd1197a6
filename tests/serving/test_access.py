"""Token of a server that other machines reach."""

import asyncio
import json
import re
import socket
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest
from archives import photo, unpacked_archive
from browser import chromium
from commands import Run
from local_server import LocalServer, local_server
from playwright.sync_api import FilePayload
from starlette.responses import PlainTextResponse
from starlette.types import Message

from bincounter.errors import BinCounterError, ConfigError
from bincounter.serving.local import client
from bincounter.serving.local.access import TOKEN_VARIABLE, Access, read_access
from bincounter.serving.local.guards import SameOrigin
from bincounter.serving.local.running_servers import Server

TOKEN = "0123456789abcdef+/="
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A server on all addresses of this machine."""
    folder = unpacked_archive(tmp_path_factory.mktemp("guarded") / "archive")
    with local_server(folder, host="0.0.0.0", token=TOKEN) as server:
        yield server


GUARDED = {
    "/invocations": "POST",
    "/explanation": "POST",
    "/metrics": "GET",
    "/model": "GET",
    "/openapi.json": "GET",
}


@pytest.mark.parametrize(("path", "method"), GUARDED.items())
@pytest.mark.parametrize(
    "given",
    [{}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": TOKEN}, {"Authorization": "Bearer \xff"}],
    ids=["none", "another", "no scheme", "no ASCII"],
)
def test_requests_without_the_token_are_refused(
    guarded: LocalServer, path: str, method: str, given: dict[str, str]
) -> None:
    refused = guarded.ask(method, path, photo(3) if method == "POST" else None, given)
    assert refused.status == 401
    assert refused.headers["www-authenticate"].startswith("Bearer ")
    assert "Authorization: Bearer" in refused.json()["error"]
    body = photo(3) if method == "POST" else None
    assert guarded.ask(method, path, body, BEARER).status == 200
    assert guarded.ask(method, path, body, {"authorization": f"bearer {TOKEN}"}).status == 200


@pytest.mark.parametrize(
    ("listens", "asked", "status"),
    [
        ("127.0.0.1", "localhost:8080", 200),
        ("127.0.0.1", "127.0.0.2:8080", 403),
        ("127.0.0.2", "127.0.0.2:8080", 200),
        ("127.0.0.2", "127.foreign.example:8080", 403),
        ("0.0.0.0", "bins.example:8080", 200),
    ],
)
def test_a_server_of_this_machine_alone_is_asked_by_its_own_address(listens: str, asked: str, status: int) -> None:
    assert guarded_status(Access(listens), Host=asked) == status


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({}, 200),
        ({"Origin": "https://bins.example"}, 403),
        ({"Origin": "https://bins.example", "Authorization": f"Bearer {TOKEN}x"}, 403),
        ({"Origin": "https://bins.example", "Authorization": f"Bearer {TOKEN}"}, 200),
    ],
)
@pytest.mark.parametrize("host", ["127.0.0.1:8080", "10.0.0.1:8080"])
def test_a_proxy_may_have_another_name_than_the_server(host: str, given: dict[str, str], status: int) -> None:
    assert guarded_status(Access("127.0.0.1", TOKEN), Host=host, **given) == status


def guarded_status(access: Access, **headers: str) -> int | None:
    """Status of a GET request to an application behind the guard."""
    statuses: list[int | None] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        statuses.append(message.get("status"))

    sent = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "GET", "headers": sent}
    asyncio.run(SameOrigin(PlainTextResponse("counted"), access)(scope, receive, send))
    return statuses[0]


def test_health_checks_and_the_page_take_no_token(guarded: LocalServer) -> None:
    assert [guarded.ask("GET", path).status for path in ("/ping", "/", "/page/page.js")] == [200, 200, 200]
    assert guarded.ask("GET", "/page/../model").status == 404
    described = guarded.ask("GET", "/openapi.json", headers=BEARER).json()
    assert described["security"] == [{"token": []}]


def test_links_of_the_page_can_be_followed(guarded: LocalServer) -> None:
    page = guarded.ask("GET", "/").body.decode()
    links = re.findall(r'<a href="(/[^"]*)"', page)
    assert [guarded.ask("GET", link).status for link in links] == [200] * len(links) == [200]
    assert "<code>/metrics</code> (with the token)" in page


def test_other_hosts_reach_the_server_but_not_other_sites_pages(guarded: LocalServer) -> None:
    own = {**BEARER, "Host": "shelf.example:8080"}
    assert guarded.ask("GET", "/model", headers=own).status == 200
    assert guarded.ask("GET", "/model", headers={**own, "Origin": "https://shelf.example:8080"}).status == 200
    assert guarded.ask("GET", "/ping", headers={"Origin": "http://elsewhere.example"}).status == 403
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # nothing is sent
        address = probe.getsockname()[0]
    connection = HTTPConnection(address, guarded.port, timeout=30)
    connection.request("GET", "/ping")
    assert connection.getresponse().status == 200
    connection.close()


def test_token_is_in_no_log_and_no_answer(guarded: LocalServer) -> None:
    assert TOKEN not in guarded.log.read_text()
    started = psutil.Process(guarded.process.pid).children(recursive=True)
    assert started and TOKEN not in str([process.cmdline() for process in started])
    assert TOKEN not in repr(Access("0.0.0.0", TOKEN))


def test_client_sends_the_token(guarded: LocalServer, tmp_path: Path) -> None:
    (file := tmp_path / "bin.jpg").write_bytes(photo(3))
    model = guarded.ask("GET", "/ping").json()["model"]
    server = Server("bincounter", guarded.port, guarded.process.pid, model, "/a.tar.gz", "0.0.0.0")
    [answer] = client.post_photos(server, [file], Access("0.0.0.0", TOKEN).headers)
    assert answer.probabilities
    with pytest.raises(BinCounterError, match=TOKEN_VARIABLE):
        list(client.post_photos(server, [file], {}))


@pytest.mark.browser
@pytest.mark.parametrize("typed", [True, False])
def test_page_asks_for_the_token_or_takes_it_from_its_address(guarded: LocalServer, typed: bool) -> None:
    with chromium() as browser:
        page = browser.new_page()
        page.goto(guarded.url if typed else f"{guarded.url}/#token={TOKEN}")
        if typed:
            page.fill("#token", "not the token")
            page.click("#login button")
            page.wait_for_selector("#wrong:not(:empty)")
            page.fill("#token", TOKEN)
            page.click("#login button")
        page.wait_for_selector("#about dd")
        assert TOKEN not in page.url
        page.set_input_files("#files", FilePayload(name="a.jpg", mimeType="image/jpeg", buffer=photo(3)))
        page.wait_for_selector("#sure:not(:empty)")
        assert page.is_hidden("#login")
        page.reload()
        page.wait_for_selector("#about dd")


@pytest.mark.parametrize(
    ("host", "token", "in_file", "named"),
    [
        ("0.0.0.0", None, None, f"set {TOKEN_VARIABLE}"),
        ("0.0.0.0", "short", None, f"${TOKEN_VARIABLE} is not a token"),
        ("127.0.0.1", "a token with spaces", None, "is not a token"),
        ("0.0.0.0", None, "", "target.token_file="),
    ],
)
def test_other_addresses_without_a_good_token_are_refused(
    host: str, token: str | None, in_file: str | None, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    if token is not None:
        monkeypatch.setenv(TOKEN_VARIABLE, token)
    if in_file is not None:
        (tmp_path / "token").write_text(in_file)
    with pytest.raises(ConfigError) as refused:
        read_access(host, None if in_file is None else str(tmp_path / "token"))
    assert named in str(refused.value)
    assert token is None or token not in str(refused.value)


def test_file_comes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "f" * 16)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_access("0.0.0.0", str(tmp_path / "token")) == Access("0.0.0.0", TOKEN)
    assert read_access("127.0.0.1", None).token == "f" * 16
    monkeypatch.delenv(TOKEN_VARIABLE)
    assert read_access("127.0.0.1", None) == Access()
    with pytest.raises(ConfigError, match="cannot be read"):
        read_access("127.0.0.1", str(tmp_path))


def test_deploy_refuses_an_open_address_before_it_packs(run: Run, tmp_path: Path) -> None:
    base = ["deploy.py", "ckpt_path=tests/assets/classification/checkpoints/best.ckpt", f"paths.cache_dir={tmp_path}"]
    assert "which takes a token" in run(*base, "target.host=0.0.0.0", code=2).stderr
    assert "is not an IPv4 address" in run(*base, "target.host=shelf.example", code=2).stderr
    done = run(*base, "target.host=0.0.0.0", "dry_run=true", **{TOKEN_VARIABLE: TOKEN})
    assert "serve it on 0.0.0.0, port 8080" in done.stdout
    assert json.dumps(TOKEN) not in done.stdout and TOKEN not in done.stdout
