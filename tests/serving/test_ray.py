"""The archive behind a Ray Serve that was started as in AWS's serving image."""

import base64
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from archives import photo
from ray_served import RayServed, free_port, ray_archive, ray_served

pytestmark = pytest.mark.long

INSTANCES, MEGABYTES = 8, 20


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayServed]:
    port = free_port()
    folder = ray_archive(
        tmp_path_factory.mktemp("ray") / "archive", port, max_queue=2 * INSTANCES, max_body_bytes=MEGABYTES * 10**6
    )
    with ray_served(folder, port) as served:
        yield served


def instances(number: int = INSTANCES) -> bytes:
    encoded = base64.b64encode(photo(1, side=1500)).decode()
    return json.dumps({"instances": [{"image": encoded}] * number}).encode()


def test_photos_are_counted_in_every_form(served: RayServed) -> None:
    one = served.post(photo(2), Content_Type="image/jpeg")
    many = served.post(instances(3), Content_Type="application/json")
    table = served.post(photo(2, "PNG", side=1500), Content_Type="image/png", Accept="text/csv; header=present")
    assert served.healthy()
    assert one.status == many.status == table.status == 200
    assert json.loads(one.body)["model"] == "bincounter-0123456789ab"
    assert len(json.loads(many.body)["predictions"]) == 3
    assert table.headers["content-type"].startswith("text/csv")
    assert table.body.decode().splitlines()[0] == "count,expected_count,p_0,p_1,p_2,p_3,model"


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (bytes(MEGABYTES * 10**6 + 1), "image/jpeg", 413),
        (b"photo", "text/plain", 415),
        (photo()[:1000], "image/jpeg", 422),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(served: RayServed, body: bytes, content_type: str, status: int) -> None:
    answer = served.post(body, Content_Type=content_type)
    assert answer.status == status
    assert json.loads(answer.body)["error"].endswith(".")


def test_too_much_at_a_time_is_refused_at_once(served: RayServed) -> None:
    body = instances()
    with ThreadPoolExecutor(12) as clients:
        answers = list(clients.map(lambda _: served.post(body, Content_Type="application/json"), range(24)))
    refused = [answer for answer in answers if answer.status == 503]
    assert {answer.status for answer in answers} == {200, 503}
    assert all("wait for the model" in json.loads(answer.body)["error"] for answer in refused)
    assert all(answer.headers["retry-after"] == "1" for answer in refused)
    assert served.post(photo()).status == 200


def test_a_killed_replica_comes_back(served: RayServed) -> None:
    [killed] = served.replicas()
    os.kill(killed, signal.SIGKILL)
    until = time.monotonic() + 60
    while not served.answers():
        assert time.monotonic() < until
        time.sleep(0.2)
    assert served.replicas() != [killed]
