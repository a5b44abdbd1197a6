"""Endpoints at the control plane, where they really serve: deploy.py from the first request to the last."""

import base64
import json
import re
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
from archives import photo
from deployments import ROLE, act
from rehearsed import Account
from served_runs import checkpoint_alone

from bincounter.errors import ResourceError
from bincounter.serving.packing.archive import PackageSettings, package
from sagemaker_rehearsal import BUCKET

GIVEN = (f"target.role={ROLE}", "target.image=123456789012.dkr.ecr.us-east-1.amazonaws.com/ray:serve")


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Two models, and an archive that no container can serve."""
    folder = tmp_path_factory.mktemp("archives")
    good = [folder / "first.tar.gz", folder / "second.tar.gz"]
    for seed, path in enumerate(good):
        package(checkpoint_alone(folder / str(seed), seed=seed), PackageSettings(path))
    broken = folder / "broken.tar.gz"
    with tarfile.open(good[0]) as whole, tarfile.open(broken, "w:gz") as part:
        for member in whole.getmembers():
            if member.name != "weights.pt":
                part.addfile(member, whole.extractfile(member))
    return good[0], good[1], broken


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photos, and something that is none."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "1.jpg").write_bytes(photo(1))
    (folder / "2.png").write_bytes(photo(2, "PNG"))
    (folder / "3.jpg").write_bytes(b"no photo")
    return folder


def processes(plane: dict[str, str]) -> list[str]:
    """The command lines of what a plane's containers have started and left; each has the plane's address."""
    found, mark = [], f"\0AWS_ENDPOINT_URL={plane['AWS_ENDPOINT_URL']}\0".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = b"\0" + (process / "environ").read_bytes()
            if mark in environment and b"\0RAY_TMPDIR=" in environment:
                found.append((process / "cmdline").read_text())
        except OSError:  # it has ended
            continue
    return found


@contextmanager
def asked_all_the_time(endpoint: str) -> Iterator[list[bytes]]:
    """Invoke an endpoint again and again, with one photo; the list grows by the answers, and an error raises."""
    runtime, answers, errors = boto3.client("sagemaker-runtime"), list[bytes](), list[Exception]()
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.5):
            try:
                body = runtime.invoke_endpoint(EndpointName=endpoint, Body=photo(), ContentType="image/jpeg")["Body"]
                answers.append(body.read())
            except Exception as error:
                errors.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield answers
    finally:
        over.set()
        asking.join()
    assert not errors


def test_an_endpoint_from_its_deployment_to_its_end(
    account: Account,
    plane: dict[str, str],
    archives: tuple[Path, Path, Path],
    photos: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second, _ = archives
    story = ("target=realtime", "name=story", *GIVEN)

    assert act(*story, "action=deploy", archive=first) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("/endpoints/story/invocations")
    assert act(*story, "action=invoke", f"input={photos / '1.jpg'}") == 0
    assert re.fullmatch(r"\d\t\(\d+% sure, \d\.\d\d expected\)\n", capsys.readouterr().out.partition("1.jpg\t")[2])
    assert act(*story, "action=invoke", f"input={photos / '3.jpg'}") == 2
    assert re.search(r"3\.jpg: .*photo", capsys.readouterr().err)
    assert processes(plane)

    with asked_all_the_time("story") as answers:
        assert act(*story, "action=update", archive=second) == 0
        time.sleep(1.5)
    assert len(set(answers)) == 2

    capsys.readouterr()
    act("target=realtime", "action=list")
    listed = capsys.readouterr().out
    assert "story\tInService\t1 x ml.m5.xlarge\t0.23 USD/h" in listed and "Left over" not in listed
    assert act(*story, "action=delete") == 0
    act("target=realtime", "action=list")
    assert capsys.readouterr().out.startswith("No endpoint of bincounter in us-east-1")
    assert not account.sagemaker.list_models(NameContains="story")["Models"]
    assert not processes(plane)


def test_an_update_that_cannot_serve_is_rolled_back(
    plane: dict[str, str], archives: tuple[Path, Path, Path], account: Account
) -> None:
    first, _, broken = archives
    story = ("target=realtime", "name=back", *GIVEN)
    assert act(*story, "action=deploy", archive=first) == 0
    with asked_all_the_time("back") as answers:
        with pytest.raises(ResourceError, match="was rolled back: back serves back-"):
            act(*story, "action=update", archive=broken)
        assert len(set(answers)) == 1
    assert act(*story, "action=delete") == 0
    assert not account.sagemaker.list_models(NameContains="back")["Models"]
    assert not processes(plane)


def test_an_asynchronous_endpoint_answers_in_s3(
    account: Account,
    plane: dict[str, str],
    archives: tuple[Path, Path, Path],
    photos: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    later = ("target=async", "name=later", *GIVEN)
    assert act(*later, "action=deploy", archive=archives[0]) == 0
    act(*later, "action=invoke", f"input={photos}")
    said = capsys.readouterr()
    assert "1.jpg\t" in said.out and "3.jpg: " in said.err
    assert account.keys("bincounter/later/output/") and account.keys("bincounter/later/failure/")
    assert not account.keys("bincounter/later/input/")
    assert act(*later, "action=delete") == 0
    assert not processes(plane)


def test_transform_job_continues_after_a_bad_photo_and_judges_records(
    account: Account, plane: dict[str, str], archives: tuple[Path, Path, Path]
) -> None:
    for number in range(3):
        account.put(f"batch/{number}.jpg", b"no photo" if number == 1 else photo(number))
    places = (f"input=s3://{BUCKET}/batch", f"output=s3://{BUCKET}/batch-answers")
    with pytest.raises(ResourceError, match="2 of 3 photos have an answer"):
        act("target=realtime", "name=batch", *GIVEN, "action=transform", *places, archive=archives[0])
    assert account.keys("batch-answers/") == {"0.jpg.out", "2.jpg.out"}
    request = {"image": base64.b64encode(photo(1)).decode(), "expected": 3}  # by which a stock is audited in the cloud
    account.put("stock/A-17.json", json.dumps(request).encode())
    places = (f"input=s3://{BUCKET}/stock", f"output=s3://{BUCKET}/stock-answers")
    assert act("target=realtime", "name=batch", *GIVEN, "action=transform", *places, archive=archives[0]) == 0
    answer = json.loads(account.get(f"s3://{BUCKET}/stock-answers/A-17.json.out"))
    assert 0 < answer["record_wrong"] < 1 and answer["direction"] in ("missing", "extra")
    assert act("target=realtime", "name=batch", "action=delete") == 0
    assert not account.sagemaker.list_models(NameContains="batch")["Models"]
    assert not processes(plane)
