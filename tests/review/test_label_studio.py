"""Label Studio's JSON: tasks out of an audited table, and annotated ones back."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import Run
from outputs import read_rows
from reviews import Audited, made_audit, write_audit

from bincounter.data.corrections import Correction, CorrectionsLog
from bincounter.review.audit_table import read_audit
from bincounter.review.label_studio import import_annotations

REVIEW = ("-m", "bincounter", "review")


def number(count: Any, **annotation: Any) -> dict[str, Any]:
    """An annotation as Label Studio exports it."""
    result = {"id": "a", "from_name": "count", "to_name": "image", "type": "number", "value": {"number": count}}
    return {"id": 1, "completed_by": 7, "was_cancelled": False, "result": [result], **annotation}


def choice(*chosen: str) -> dict[str, Any]:
    result = {"from_name": "items", "to_name": "image", "type": "choices", "value": {"choices": list(chosen)}}
    return {"completed_by": {"id": 3, "email": "ann@example.com"}, "result": [result]}


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    return made_audit(tmp_path, bins=8)


@pytest.fixture
def tasks(audit: Path, run: Run) -> list[dict[str, Any]]:
    done = run(*REVIEW, str(audit), "--export-label-studio", str(audit.parent / "tasks.json"))
    assert f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={audit.parent.parent}" in done.stdout
    return json.loads((audit.parent / "tasks.json").read_text())


def imported(run: Run, audit: Path, content: Any, code: int = 0) -> str:
    path = audit.parent / "annotated.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    done = run(*REVIEW, str(audit), "--import-label-studio", str(path), code=code)
    return done.stderr if code else done.stdout


def test_tasks_hold_the_photo_the_record_and_the_prediction(audit: Path, tasks: list[dict[str, Any]]) -> None:
    assert len(tasks) == 8
    assert tasks[0]["data"] | {"image": ""} == {
        **{"image": "", "bin": "B-0", "photo": "photos/0.jpg", "expected": 2, "record_wrong": 0.9},
        **{"direction": "missing", "reason": ""},
    }
    assert tasks[0]["data"]["image"] == f"/data/local-files/?d={audit.parent.name}/photos/0.jpg"
    (prediction,) = tasks[0]["predictions"]
    (result,) = prediction["result"]
    assert (prediction["model_version"], prediction["score"]) == ("bincounter", 0.7)
    assert {**result, "id": ""} == {
        **{"id": "", "from_name": "count", "to_name": "image", "type": "number", "value": {"number": 1}},
    }


def test_annotated_tasks_become_answers(audit: Path, tasks: list[dict[str, Any]], run: Run) -> None:
    old, new = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
    annotations: list[list[dict[str, Any]]] = [
        [number(3)],
        [choice("12")],
        [number(5, updated_at=new), number(1, updated_at=old)],
        [number(9, was_cancelled=True)],
        [number(1.5)],
        [choice("two")],
        [],
        [{"result": [number(8)["result"][0] | {"from_name": "shelf"}, number(0.0)["result"][0]]}],
    ]
    for task, given in zip(tasks, annotations, strict=True):
        task["annotations"] = given
    foreign = {"data": {"bin": "B-0", "photo": "elsewhere/0.jpg"}, "annotations": [number(1)]}
    said = imported(run, audit, [*tasks, foreign])
    assert "4 answers added" in said
    assert "0 were there already" in said and "4 tasks have no count" in said
    assert "1 tasks match no bin" in said
    rows = read_rows(audit.parent / "corrections.csv")
    assert [(row["bin"], row["expected"], row["counted"], row["reviewer"], row["time"]) for row in rows] == [
        ("B-0", "2", "3", "7", ""),
        ("B-1", "2", "12", "ann@example.com", ""),
        ("B-2", "2", "5", "7", new),
        ("B-7", "2", "0", "", ""),
    ]
    tasks[0]["annotations"] = [number(4)]
    said = imported(run, audit, tasks)
    assert "1 answers added" in said and "3 were there already" in said
    assert read_rows(audit.parent / "corrections.csv")[-1]["counted"] == "4"


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("/data/upload/3/0a1b2c3d-5.jpg", "5.jpg"),
        ("/data/local-files/?d=a/b%2F5.jpg", "5.jpg"),
        ("s3://bins/photos/5.jpg", "5.jpg"),
        ("s3://bins/photos/p%20q#x?.jpg", "p%20q#x?.jpg"),
        ("https://bins.example/photos/p%20q%23x.jpg?signed=1/2", "p q#x.jpg"),
        ("/data/upload/3/0a1b2c3d-caf%E9.jpg", "caf\udce9.jpg"),
    ],
)
def test_tasks_made_elsewhere_match_by_the_name_of_the_photo(tmp_path: Path, image: str, name: str) -> None:
    table = read_audit(
        write_audit(tmp_path / "audit.csv", [Audited("A", "photos/4.jpg"), Audited("B", f"photos/{name}")])
    )
    (tmp_path / "annotated.json").write_text(json.dumps([{"data": {"image": image}, "annotations": [number(2)]}]))
    with CorrectionsLog(tmp_path / "corrections.csv") as log:
        import_annotations(tmp_path / "annotated.json", table, log)
        assert [given.bin for given in log.corrections] == ["B"]


def test_a_name_of_two_photos_matches_neither(audit: Path, run: Run) -> None:
    write_audit(audit, [Audited("a", "1/x.jpg"), Audited("b", "2/x.jpg"), Audited("c", "y.jpg")])
    made = [{"data": {"image": f"{name}.jpg"}, "annotations": [number(2)]} for name in "xy"]
    assert "1 tasks match no bin" in imported(run, audit, made)
    assert [row["bin"] for row in read_rows(audit.parent / "corrections.csv")] == ["c"]


def test_photos_without_a_record_come_back_once(tmp_path: Path, run: Run) -> None:
    photos = ["1/x.jpg", "2/x.jpg", "y.jpg"]
    rows = [Audited("", photo, expected="", reason="the photo has no record") for photo in photos]
    rows[2] = rows[2]._replace(expected="2.5")
    audit = write_audit(tmp_path / "audit.csv", rows)
    done = run(*REVIEW, str(audit), "--export-label-studio", "/dev/stdout")
    assert "3 tasks" in done.stderr and "Label Studio shows" in done.stderr
    tasks = [{**task, "annotations": [number(1)]} for task in json.loads(done.stdout)]
    assert [task["data"]["expected"] for task in tasks] == [None, None, "2.5"]
    assert "3 answers added" in imported(run, audit, tasks)
    assert "0 answers added" in imported(run, audit, tasks)
    assert [row["photo"] for row in read_rows(tmp_path / "corrections.csv")] == photos


def test_an_older_annotation_replaces_no_newer_answer(audit: Path, run: Run) -> None:
    def task(count: int, time: str, photo: int) -> dict[str, Any]:
        data = {"bin": f"B-{photo}", "photo": f"photos/{photo}.jpg"}
        return {"data": data, "annotations": [number(count, updated_at=time)]}

    table = audit.parent / "corrections.csv"
    with CorrectionsLog(table) as log:
        for n, undone in enumerate((False, True, False)):
            log.append(Correction(f"B-{n}", f"photos/{n}.jpg", 2, 3, "anna", "2026-01-02T01:00:00+00:00", undone))
        log.append(Correction("B-3", "photos/3.jpg", 1, 3, "anna", "2026-01-02T01:00:00+00:00"))  # of another record
    before, after = "2026-01-02T02:00:00.5+02:00", "2026-01-02T01:00:00.5Z"
    tasks = [task(4, before, 0), task(4, before, 1), task(4, after, 2), task(3, after, 3)]
    said = imported(run, audit, tasks)
    assert "2 answers added" in said and "2 were there already" in said
    assert [(row["bin"], row["counted"]) for row in read_rows(table)[4:]] == [("B-2", "4"), ("B-3", "3")]
    assert "0 answers added" in imported(run, audit, tasks)


def test_names_of_any_bytes_come_back(tmp_path: Path, run: Run) -> None:
    names = ["a\nb", "caf\udce9", "=1", "back\\slash"]
    audit = write_audit(tmp_path / "audit.csv", [Audited(name, f"{name}.jpg") for name in names])
    run(*REVIEW, str(audit), "--export-label-studio", str(tmp_path / "tasks.json"))
    tasks = json.loads((tmp_path / "tasks.json").read_bytes())
    assert tasks[1]["data"]["image"].endswith("caf%E9.jpg")
    assert "4 answers" in imported(run, audit, [{**task, "annotations": [number(1)]} for task in tasks])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not JSON: export the project from Label Studio as JSON (not JSON-MIN)"),
        ([1], "holds no task of Label Studio at place 1"),
        ([{"image": "x.jpg", "count": "3"}], "holds no task of Label Studio at place 1"),  # JSON-MIN
        ([{"data": {"image": "x.jpg"}, "annotations": 3}], "holds no task"),
        ([{"data": {"image": "x.jpg"}, "annotations": [number(1)]}], "has no task of a bin in"),
        ([], "has no task of a bin in"),
    ],
)
def test_wrong_files_end_in_a_sentence(audit: Path, run: Run, content: Any, sentence: str) -> None:
    assert sentence in imported(run, audit, content, code=2)
