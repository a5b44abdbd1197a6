"""Recorded counts in requests: judged as the audit judges them, in JSON and CSV, and refused in a sentence."""

import base64
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from archives import COUNTS, Running, photo, unpacked_archive
from hypothesis import given
from hypothesis import strategies as st
from served_runs import checkpoint_alone

from bincounter.audit.posterior import RecordJudge, training_shares
from bincounter.serving.application.answers import Limits, Problem
from bincounter.serving.application.photo_requests import expected_of, parse_request
from bincounter.serving.application.served_model import ArchiveError, ServedModel
from bincounter.serving.application.service import Reply
from bincounter.serving.packing.archive import PackageSettings, package
from bincounter.serving.packing.tarball import read_member

JSON = "application/json"
JUDGE = RecordJudge(COUNTS, (0.1, 0.2, 0.3, 0.4), error_rate=0.1, spread=0.25)  # of unpacked_archive


class Asking(Running):
    """Requests with recorded counts in their headers."""

    def __call__(self, body: bytes | dict[str, Any], accept: str | None = None, **headers: str) -> Reply:
        kind = JSON if isinstance(body, dict) else "image/jpeg"
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        expected = expected_of({name.replace("_", "-"): value for name, value in headers.items()})
        return self.ask(content, kind, accept, expected)


@pytest.fixture(scope="module")
def asking(unpacked: Path) -> Iterator[Asking]:
    asking = Asking(unpacked)
    yield asking
    asking.close()


def instance(seed: int = 1, **more: Any) -> dict[str, Any]:
    return {"image": base64.b64encode(photo(seed)).decode(), **more}


def test_a_record_is_judged_by_the_formula_of_the_audit(asking: Asking) -> None:
    plain = json.loads(asking(instance()).body)
    for count in COUNTS:
        judged = json.loads(asking(instance(expected=count)).body)
        verdict = JUDGE.judge([list(plain["probabilities"].values())], [count])
        assert judged.pop("record_wrong") == pytest.approx(verdict.record_wrong[0])
        assert judged.pop("direction") == verdict.direction[0]
        assert judged == plain
        for headers in (
            {"X_Bincounter_Expected": f" {count} "},
            {"x_amzn_sagemaker_custom_attributes": f"trace=7;Expected={count}"},
        ):
            by_header = json.loads(asking(photo(1), **headers).body)
            assert by_header["record_wrong"] == pytest.approx(verdict.record_wrong[0])
    assert asking(photo(1), x_amzn_sagemaker_custom_attributes="trace=7, expected").body == asking(photo(1)).body


def test_each_instance_has_its_own_record(asking: Asking) -> None:
    body = {"instances": [instance(1, expected=0), instance(2), instance(3, expected=None), instance(3, expected=3)]}
    answers = json.loads(asking(body).body)["predictions"]
    assert ["record_wrong" in answer for answer in answers] == [True, False, False, True]
    table = asking(body, "text/csv;header=present").body.decode()
    rows = list(csv.DictReader(io.StringIO(table)))
    assert list(rows[0])[-3:] == ["model", "record_wrong", "direction"]
    assert [row["direction"] for row in rows] == [answer.get("direction", "") for answer in answers]
    # How the photos of a request fall into batches is the batcher's, and with it the last digit.
    assert float(rows[3]["record_wrong"]) == pytest.approx(answers[3]["record_wrong"], abs=1e-6)
    assert rows[1]["record_wrong"] == ""
    plain = asking({"instances": [instance(1)]}, "text/csv;header=present").body.decode()
    assert plain.splitlines()[0].endswith(",model")


@pytest.mark.parametrize(
    ("body", "headers", "said"),
    [
        (instance(expected=7), {}, "The model does not know the recorded count 7, only 0, 1, 2, 3; send one of them."),
        (instance(expected=-1), {}, '"expected" is not a whole number of items'),
        (instance(expected=1.5), {}, '"expected" is not a whole number of items'),
        (instance(expected="3"), {}, '"expected" is not a whole number of items'),
        (instance(expected=True), {}, '"expected" is not a whole number of items'),
        ({"expected": 3}, {}, 'A photo has none of "image" and "url"'),
        ({"instances": [instance(), instance(expected=9)]}, {}, "instances[1]: the model does not know"),
        ({"instances": [instance(expected="many")]}, {}, 'instances[0]: "expected" is not a whole number'),
        (instance(), {"X_Bincounter_Expected": "3"}, 'put "expected" beside "image" in JSON'),
        (photo(1), {"X_Bincounter_Expected": "three"}, "The recorded count 'three' is not a whole number"),
        (photo(1), {"X_Bincounter_Expected": "-3"}, "The recorded count '-3' is not a whole number"),
        (photo(1), {"X_Bincounter_Expected": ""}, "The recorded count '' is not a whole number"),
        (photo(1), {"X_Bincounter_Expected": "9" * 5000}, "is not a whole number"),
        (photo(1), {"X_Amzn_SageMaker_Custom_Attributes": "expected=9"}, "does not know the recorded count 9"),
    ],
)
def test_what_cannot_be_judged_is_refused(asking: Asking, body: Any, headers: dict[str, str], said: str) -> None:
    reply = asking(body, **headers)
    assert reply.status == 400
    assert said in json.loads(reply.body)["error"] and len(reply.body) < 300


@given(st.text() | st.integers().map(str))
def test_any_header_is_a_count_or_refused(text: str) -> None:
    try:
        [expected] = parse_request(b"a photo", "image/jpeg", Limits(), text).expected
    except Problem as problem:
        assert problem.status == 400
    else:
        assert expected == int(text) >= 0


def test_an_archive_of_an_earlier_version_answers_as_before(tmp_path: Path) -> None:
    folder = unpacked_archive(tmp_path / "archive")
    described = json.loads((folder / "model.json").read_text())
    settings = described.pop("audit")
    (folder / "model.json").write_text(json.dumps(described))
    asking = Asking(folder)
    assert asking(photo(1)).status == 200
    assert "package the checkpoint again" in json.loads(asking(instance(expected=1)).body)["error"]
    asking.close()
    assert "stock_shares" not in settings and ServedModel.load(unpacked_archive(tmp_path / "old")).judge == JUDGE
    wrongs: tuple[Any, ...] = ({**settings, "spread": 0}, {**settings, "training_shares": [1.0]}, {}, [])
    for wrong in wrongs:
        (folder / "model.json").write_text(json.dumps({**described, "audit": wrong}))
        with pytest.raises(ArchiveError, match="package it again"):
            ServedModel.load(folder)


def test_the_error_rate_is_packed(tmp_path: Path) -> None:
    checkpoint = checkpoint_alone(tmp_path)
    default = package(checkpoint, PackageSettings(tmp_path / "a.tar.gz"))
    settings = PackageSettings(tmp_path / "b.tar.gz", error_rate=0.2, spread=0.5)
    assert package(checkpoint, settings).model == default.model  # the counts do not depend on it
    stored = json.loads(read_member(settings.path, "model.json"))["audit"]
    shares = training_shares(dict.fromkeys(COUNTS, 2), COUNTS)
    assert RecordJudge.of(stored, COUNTS) == RecordJudge(COUNTS, shares, 0.2, 0.5, shares)
    stored = json.loads(read_member(default.path, "model.json"))["audit"]
    assert (stored["error_rate"], stored["spread"]) == (0.03, 0.25)
