"""Names of files as text: reversible in tables, one line on screen, no error where an output lacks a character."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bincounter.files import atomic_write
from bincounter.names import UNENCODABLE, TableWriter, escape_name, one_line, read_cell, unescape_name

NAMES = st.text(st.characters(exclude_categories=()) | st.sampled_from("\\'=+-@\t\r\nnrtxu0e9"))


def table(*row: object) -> str:
    file = io.StringIO(newline="")
    TableWriter(file).writerow(row)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("3/Café 包.jpg", "3/Café 包.jpg"),
        ("caf\udce9.jpg", r"caf\xe9.jpg"),
        ("caf\\xe9.jpg", r"caf\\xe9.jpg"),
        ("a\nb\rc\td\x1b[2Je\x85", r"a\nb\rc\td\u001b[2Je\u0085"),
        ("a\u2028b\u202egpj.exe", r"a\u2028b\u202egpj.exe"),
    ],
)
def test_a_name_is_one_line_and_tells_bytes_from_letters(name: str, shown: str) -> None:
    assert escape_name(name) == shown
    assert unescape_name(shown) == name
    assert one_line(shown) == shown


@given(NAMES)
def test_any_name_is_read_back(name: str) -> None:
    assert unescape_name(escape_name(name)) == name
    assert escape_name(name).isprintable() or len(escape_name(name).splitlines()) <= 1
    line = table(name, 1)
    assert len(line.splitlines()) == 1
    ((cell, number),) = csv.reader([line])
    assert (read_cell(cell), number) == (name, "1")


FORMULAS = ["=1+1", "+1+1", "-cmd|' /C calc'!A0", "@SUM(1)", "\t=1", "\r=1", "\uff1d1", "'=1", "'x"]


@pytest.mark.parametrize("start", FORMULAS)
def test_no_text_is_a_formula_in_a_spreadsheet(start: str) -> None:
    ((cell,),) = csv.reader([table(start)])
    assert cell[0] not in "=+-@\t\r\uff1d"
    assert read_cell(cell) == start


def test_numbers_and_texts_of_earlier_versions_stay() -> None:
    assert table(-1.5, "-0.25", "-1e-07", 3, "") == "-1.5,-0.25,-1e-07,3,\n"
    for cell in ("1/a.jpg", "'quoted'.jpg", "1/a\nb.jpg", "=x.jpg"):
        assert read_cell(cell) == cell


def test_what_an_encoding_lacks_is_escaped_as_json_reads_it(tmp_path) -> None:
    name = "é😀"
    assert json.loads(f'"{name}"'.encode("ascii", UNENCODABLE)) == name
    with atomic_write(tmp_path / ("x" * 250)) as file:  # the temporary file's name is no longer than a name may be
        file.write("caf\udce9")
    assert (tmp_path / ("x" * 250)).read_text() == r"caf\udce9"
