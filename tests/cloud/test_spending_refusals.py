"""bincounter cost of what is damaged, missing or no number: named, and the others are shown."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from spent import made_here, nobody_to_ask, recorded  # noqa: F401 - the fixture is for all tests here

from bincounter.cli.main import main
from bincounter.cloud.cost_records import read_costs


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("job.json", "{", "job.json is damaged: bring it back"),
        ("job.json", "[]", "job.json is damaged: bring it back"),
        ("job.json", '{"name": "x"}', "job.json is damaged: bring it back"),
        ("metrics.json", "[1]", "metrics.json is corrupt (TypeError): bring it back"),
        ("metrics.json", "", "metrics.json is corrupt (JSONDecodeError): bring it back"),
        ("provenance.json", '{"started": 5}', "provenance.json is damaged (started)"),
        ("../sweep/tuning.json", "{}", "tuning.json is corrupt (TypeError): bring it back"),
        ("endpoint/endpoint.json", "[]", "endpoint.json is corrupt (ValueError): bring it back"),
        ("endpoint/endpoint.json", '[{"name": "x"}]', "endpoint.json is corrupt (TypeError): bring it back"),
    ],
)
def test_what_is_damaged_is_named_and_the_others_are_shown(
    name: str, content: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(tmp_path / "sweep" / "0", "Completed", (1000, 300))
    made_here(tmp_path / "bad")
    (tmp_path / "bad" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "bad" / name).write_text(content)
    assert main(["cost", str(tmp_path / "bad"), str(tmp_path / "sweep")]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("Error: ") and sentence in err and err.count("\n") == 1
    assert "1 training job: 0.3000 USD paid" in out


@pytest.mark.parametrize("seconds", ["5", -1, math.inf, math.nan, True, [3]])
def test_seconds_that_are_none_are_refused(seconds: Any, tmp_path: Path) -> None:
    job = recorded(tmp_path, "Completed", (100, 50))
    job.description["BillableTimeInSeconds"] = seconds
    job.save()
    assert "job.json is damaged (its seconds)" in read_costs([tmp_path]).errors[0]


def test_what_holds_no_record_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["cost", str(tmp_path / "missing"), str(tmp_path / "empty")]) == 2
    out, err = capsys.readouterr()
    missing, empty = err.splitlines()
    assert out.strip() == ""
    assert missing.startswith(f"Error: {tmp_path / 'missing'} is not a folder: name the folder of a run")
    assert empty.startswith(f"Error: {tmp_path / 'empty'} holds no record of a run, a sweep or an endpoint: name")


def test_scores_that_are_none_are_no_scores(tmp_path: Path) -> None:
    recorded(tmp_path, "Completed", (100, 50))
    for side in ({}, {"accuracy": None}, {"accuracy": 0.5}, {"accuracy": math.nan, "majority_accuracy": 0.2}, 7):
        (tmp_path / "metrics.json").write_text(json.dumps({"val": side}))
        assert read_costs([tmp_path]).document()["groups"][0]["runs"][0]["usd_per_point_missing"] == "no score"
