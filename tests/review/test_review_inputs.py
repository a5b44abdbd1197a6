"""Any bytes in place of the tables and files of a review: read, or refused in a sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reviews import Audited, made_audit, write_audit

from bincounter.data.corrections import CorrectionsLog, read_corrections
from bincounter.errors import BinCounterError
from bincounter.review.audit_table import read_audit
from bincounter.review.label_studio import import_annotations

PIECES = st.sampled_from(
    [b",", b"\n", b"\r", b'"', b"'", b"\0", b"\xff", b"-1", b"nan", b"1e999", b"9" * 5000, b"p_0", b"\xef\xbb\xbf", b""]
)


def spoilt(data: bytes, draw: st.DataObject) -> bytes:
    """Bytes with a few of them replaced."""
    for _ in range(draw.draw(st.integers(1, 3))):
        start = draw.draw(st.integers(0, len(data)))
        end = draw.draw(st.integers(start, min(start + 40, len(data))))
        data = data[:start] + draw.draw(PIECES) + data[end:]
    return data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inputs")


@given(st.data())
def test_a_spoilt_audit_is_read_or_refused(folder: Path, data: st.DataObject) -> None:
    path = write_audit(folder / "audit.csv", [Audited("a", "a.jpg", note="n"), Audited("b", "b.jpg", reason="no")])
    path.write_bytes(spoilt(path.read_bytes(), data))
    try:
        table = read_audit(path)
    except BinCounterError as error:
        assert "\n" not in str(error) and ": " in str(error)
    else:
        assert all(row.record_wrong is None or 0 <= row.record_wrong <= 1 for row in table.rows.values())


@given(st.data())
def test_a_spoilt_table_of_answers_is_read_or_refused(folder: Path, data: st.DataObject) -> None:
    path = folder / "corrections.csv"
    whole = b"bin,photo,expected,counted,reviewer,time,undone\na,a.jpg,1,2,me,now,no\nb,b.jpg,,3,me,now,yes\n"
    path.write_bytes(spoilt(whole, data))
    try:
        read = read_corrections(path, "data.corrections")
        with CorrectionsLog(path) as log:
            assert log.corrections == read
    except BinCounterError as error:
        assert "\n" not in str(error) and ": " in str(error)


KEYS = "data annotations result value number choices bin photo image completed_by updated_at was_cancelled from_name"
JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["3", "B-0", "photos/0.jpg", "[", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS.split()), inner, max_size=5),
    max_leaves=30,
)
TASK = st.fixed_dictionaries(
    {"data": st.just({"bin": "B-0", "photo": "photos/0.jpg"}) | st.fixed_dictionaries({"image": JSON})},
    optional={"annotations": st.lists(st.fixed_dictionaries({"result": JSON}) | JSON, max_size=2) | JSON},
)


@given(st.lists(TASK, max_size=3) | JSON)
def test_any_json_is_imported_or_refused(folder: Path, content: Any) -> None:
    table = read_audit(made_audit(folder, bins=2))
    (folder / "annotated.json").write_text(json.dumps(content))
    (folder / "imported.csv").unlink(missing_ok=True)
    with CorrectionsLog(folder / "imported.csv") as log:
        try:
            done = import_annotations(folder / "annotated.json", table, log)
        except BinCounterError as error:
            assert "annotated.json" in str(error)
        else:
            assert done.written == len(read_corrections(folder / "imported.csv", "it"))
