"""``data.corrections``: counts of people in place of those of the source, in every layout and through training."""

import csv
import json
import logging
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from commands import Run
from hypothesis import given
from hypothesis import strategies as st
from made_photos import abid_bin, bin_folders, photo_bytes, write

from bincounter.data.corrections import HEADER, Correction, CorrectionsLog, last_answers, read_corrections
from bincounter.data.datamodule import BinDataModule
from bincounter.data.layouts.base import LARGEST_COUNT
from bincounter.errors import DataError

RUN = ("experiment=demo", "data.layout.photos=60", "data.image_size=32", "trainer.max_epochs=1", "logger=csv")


def corrections(path: Path, counts: dict[str, int], undone: tuple[str, ...] = ()) -> Path:
    with CorrectionsLog(path) as log:
        for photo, count in counts.items():
            log.append(Correction(f"bin of {photo}", photo, None, count))
        for photo in undone:
            log.append(Correction(f"bin of {photo}", photo, None, counts[photo], undone=True))
    return path


def labels(source: Path, tmp_path: Path, table: Path | None, **options: Any) -> dict[str, int]:
    data = BinDataModule(source, data_dir=tmp_path / "data", image_size=16, corrections=table, **options)
    data.prepare()
    return {record.id: record.count for record in data.records}


def test_the_last_answer_counts_and_one_that_was_taken_back_does_not(tmp_path: Path) -> None:
    source = bin_folders(tmp_path / "bins", photos=30)
    before = labels(source, tmp_path, None)
    given_ = {"0/0.jpg": 2, "1/1.jpg": 0, "2/2.jpg": 2}
    table = corrections(tmp_path / "corrections.csv", given_, undone=("1/1.jpg",))
    corrections(table, {"0/0.jpg": 1})
    assert labels(source, tmp_path, table) == before | {"0/0.jpg": 1}
    data = BinDataModule(source, data_dir=tmp_path / "data", corrections=table, image_size=16)
    data.prepare()
    assert data.manifest.corrected == 1
    assert labels(source, tmp_path, None) == before  # caches hold what the source says


def test_groups_pixels_and_caches_are_those_of_the_photos(tmp_path: Path) -> None:
    source = bin_folders(tmp_path / "bins", photos=30)
    write(source / "2" / "copy.jpg", photo_bytes(0))  # a copy of 0/0.jpg
    table = corrections(tmp_path / "corrections.csv", {"0/0.jpg": 2})
    plain, corrected = (
        BinDataModule(source, data_dir=tmp_path / "data", image_size=16, corrections=each) for each in (None, table)
    )
    plain.prepare()
    stored = sorted((tmp_path / "data" / "cache" / "photos").iterdir())
    corrected.prepare()
    assert sorted((tmp_path / "data" / "cache" / "photos").iterdir()) == stored  # nothing is decoded twice
    assert [r.group for r in plain.records] == [r.group for r in corrected.records]
    assert plain.manifest.digest != corrected.manifest.digest
    sides = dict(zip([r.id for r in corrected.records], corrected.assignment.tolist(), strict=True))
    assert sides["0/0.jpg"] == sides["2/copy.jpg"]
    assert (corrected.store.batch([0, 3]) == plain.store.batch([0, 3])).all()


@pytest.mark.parametrize("method", ["grouped", "random"])
def test_corrected_photos_stay_on_their_sides(tmp_path: Path, method: str) -> None:
    source = bin_folders(tmp_path / "bins", photos=60)
    split = {"method": method, "fractions": [0.5, 0.25, 0.25]}
    options: dict[str, Any] = {"image_size": 16, "counts": [0, 1], "split": split, "data_dir": tmp_path / "data"}

    def sides(table: Path | None) -> dict[str, int]:
        data = BinDataModule(source, corrections=table, **options)
        data.prepare()
        return dict(zip([r.id for r in data.records], data.assignment.tolist(), strict=True))

    before = sides(None)
    changed = {name: 1 - int(name[0]) for name in list(before)[::7]}
    outside = {"2/2.jpg": 0, "2/5.jpg": 1}  # into the support
    left = {next(name for name in before if name not in changed): 2}  # out of it
    now = sides(corrections(tmp_path / "some.csv", {**changed, **outside, **left}))
    assert now.keys() == before.keys() - left.keys() | outside.keys()
    assert {name: now[name] for name in before.keys() - left.keys()} == {
        name: before[name] for name in before.keys() - left.keys()
    }
    # Where most labels come from the table, it decides on the split, too.
    options["counts"] = [7]
    assert set(sides(corrections(tmp_path / "all.csv", dict.fromkeys(before, 7))).values()) == {0, 1, 2}


def test_a_count_outside_of_the_support_excludes_the_photo(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = bin_folders(tmp_path / "bins", photos=30)
    table = corrections(tmp_path / "corrections.csv", {"0/0.jpg": 17, "1/1.jpg": 2})
    with caplog.at_level(logging.INFO):
        found = labels(source, tmp_path, table, counts=[0, 1, 2])
    assert "0/0.jpg" not in found and len(found) == 29 and found["1/1.jpg"] == 2
    assert "2 labels corrected" in caplog.text
    assert "1 photos excluded" in caplog.text


def test_photos_are_matched_in_any_layout(tmp_path: Path, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    abid = tmp_path / "abid"
    for number in range(30):
        abid_bin(abid, f"{number:05}", number % 3)
    folders = bin_folders(tmp_path / "bins", photos=30)
    run("-m", "bincounter", "prepare", str(tmp_path / "shards"), f"data.source={folders}", "--as", "shards")
    for source, names in [
        (abid, ("00001", "bin-images/00002.jpg", "elsewhere/00003.jpg", "00004.jpeg")),
        (folders, ("1/1.jpg", "2.jpg", "elsewhere/3.jpg", "4")),
        (tmp_path / "shards", ("1/1.jpg", "2.jpg", "elsewhere/3.jpg", "4")),
    ]:
        wanted = {name: 2 - (number + 1) % 3 for number, name in enumerate(names)}
        after = labels(source, tmp_path, corrections(tmp_path / f"{source.name}.csv", wanted))
        by_number = {int(Path(id_).stem): count for id_, count in after.items()}
        assert [by_number[number] for number in range(1, 5)] == list(wanted.values())
        assert all(count == number % 3 for number, count in by_number.items() if not 1 <= number <= 4)
    assert "match no photo" not in caplog.text


def test_corrections_of_no_certain_photo_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = bin_folders(tmp_path / "bins", photos=30)
    write(source / "0" / "same.jpg", photo_bytes(100))
    write(source / "1" / "same.jpg", photo_bytes(101))
    before = labels(source, tmp_path, None)
    given_ = {"0/same.jpg": 1, "same.jpg": 2, "gone\n.jpg": 1, "0/0.jpg": 0}
    given_ |= {"aisle-a/2.jpg": 0, "aisle-b/2.jpg": 0}  # two photos of one name: is one of them 2/2.jpg?
    given_ |= {"1/1.jpg": 0, "aisle-a/1.jpg": 2, "1.png": 2}  # the first is exact
    found = labels(source, tmp_path, corrections(tmp_path / "corrections.csv", given_))
    assert found == before | {"0/same.jpg": 1, "1/1.jpg": 0}
    assert "6 of 9 corrections are left out, same.jpg first: they match no photo, or their names fit" in caplog.text


def test_an_answer_to_a_photo_that_is_gone_corrects_no_other_of_its_name(tmp_path: Path) -> None:
    source = bin_folders(tmp_path / "bins", photos=30)
    gone = {
        "2/a.jpg": "1/a.jpg",
        "17/b.jpg": "1/b.jpg",
        "1/c.png": "1/c.jpg",
        "train/1/d.jpg": "test/1/d.jpg",
        "2/e": "1/e.jpg",
    }
    for number, name in enumerate((*gone.values(), "1/f.jpg", "train/1/g.jpg")):
        write(source / name, photo_bytes(100 + number))
    before = labels(source, tmp_path, None)
    assert labels(source, tmp_path, corrections(tmp_path / "gone.csv", dict.fromkeys(gone, 5))) == before
    elsewhere = {"originals/a.png": 3, "/photos/2024/05/17/b.jpg": 4, "1/c.jpg": 2, "1/c.jpg ": 3}
    found = labels(source, tmp_path, corrections(tmp_path / "elsewhere.csv", elsewhere))
    assert found == before | {"1/a.jpg": 3, "1/b.jpg": 4, "1/c.jpg": 2}
    # The record of an audit is the stock's: it may differ from the label of the photo.
    with CorrectionsLog(tmp_path / "audit.csv") as log:
        log.append(Correction("b", "aisle-a/f.jpg", 4, 2))
    assert labels(source, tmp_path, tmp_path / "audit.csv") == before | {"1/f.jpg": 2}


def test_names_of_other_systems_are_matched(tmp_path: Path) -> None:
    source = bin_folders(tmp_path / "bins", photos=30)
    wanted = {"1/new.jpg": 0, "2/table.jpg": 1, "2/\N{LATIN SMALL LETTER E WITH ACUTE}.jpg": 0}
    for number, name in enumerate(wanted):
        write(source / unicodedata.normalize("NFD", name), photo_bytes(100 + number))
    rows = [f"{name},{count}\n".replace("/", "\\") for name, count in wanted.items()]
    table = write(tmp_path / "mine.csv", "photo,counted\n" + "".join(rows))
    found = labels(source, tmp_path, table)
    assert {name: found[unicodedata.normalize("NFD", name)] for name in wanted} == wanted


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=())),
            st.text(st.characters(exclude_categories=())),
            st.none() | st.integers(0, LARGEST_COUNT),
            st.integers(0, LARGEST_COUNT),
            st.booleans(),
        )
    )
)
def test_rows_of_any_text_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, int | None, int, bool]]
) -> None:
    path = tmp_path_factory.mktemp("log") / "corrections.csv"
    written = [
        Correction(bin_, photo, expected, counted, reviewer=photo, time="t", undone=undone)
        for bin_, photo, expected, counted, undone in rows
    ]
    with CorrectionsLog(path) as log:
        for correction in written:
            log.append(correction)
    assert read_corrections(path, "it") == written
    assert len(path.read_bytes().splitlines()) == len(written) + 1


def test_a_table_from_elsewhere_needs_two_columns(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes("\ufeffphoto,counted,why\r\na.jpg,3,\r\nb.jpg,12,seen".encode())
    assert [(each.bin, each.counted) for each in last_answers(read_corrections(path, "it")).values()] == [
        ("a.jpg", 3),
        ("b.jpg", 12),
    ]


def test_a_last_row_without_its_line_break_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "corrections.csv", ",".join(HEADER) + "\nb,a.jpg,1,2,me,now,NO")
    with CorrectionsLog(path) as log:
        assert [each.counted for each in log.corrections] == [2]
    assert path.read_text().endswith("NO\n")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is not a table of corrections"),
        ("photo,count\na,1\n", "is not a table of corrections"),
        ("photo,counted\na,one\n", "is damaged in line 2: correct or remove that line"),
        ("photo,counted\na,1\nb,-1\n", "is damaged in line 3"),
        ("photo,counted\na\n", "is damaged in line 2"),
        (",".join(HEADER) + "\nb,a,1,1,me,now,no\nb,a,1,1\nb,a,1,1,me,now,no\n", "is damaged in line 3"),
        (b"photo,counted\n\xe9,1\nb,1\n", "is damaged in line 2"),
        (",".join(HEADER).encode() + b"\nb,\xe9,1,1,me,now,no", "is damaged in line 2"),
    ],
)
def test_a_damaged_table_is_refused_before_anything_starts(
    tmp_path: Path, train: Run, content: str | bytes, sentence: str
) -> None:
    path = write(tmp_path / "corrections.csv", content)
    with pytest.raises(DataError, match=r"corrections\.csv"):
        read_corrections(path, "data.corrections")
    refused = train(*RUN, f"data.corrections={path}", code=2)
    assert sentence in refused.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.long
def test_a_run_reports_its_corrections_and_resumes_with_the_same_alone(tmp_path: Path, train: Run, run: Run) -> None:
    output = f"paths.output_dir={tmp_path / 'run'}"
    train("experiment=demo", "data.layout.photos=60", "data.image_size=32", "trainer.max_epochs=1", "test=false")
    names = sorted(
        path.relative_to(root).as_posix() for root in (tmp_path / "data").glob("demo-*") for path in root.rglob("*.jpg")
    )
    wrong = {name: (int(name[0]) + 1) % 6 for name in names[:3]} | {names[3]: int(names[3][0])}
    table = corrections(tmp_path / "corrections.csv", wrong)
    done = train(*RUN, f"data.corrections={table}", output)
    assert f"3 labels corrected by {table}, 1 confirmed" in done.stdout + done.stderr
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["corrected_photos"] == 3
    with (tmp_path / "run" / "split.csv").open(newline="") as file:
        split = {row["id"]: int(row["count"]) for row in csv.DictReader(file)}
    assert {name: split[name] for name in wrong} == wrong
    assert (
        "3 photos of the source have another count by data.corrections."
        in (tmp_path / "run" / "report.html").read_text()
    )

    other = corrections(tmp_path / "other.csv", {})
    refused = train("ckpt_path=last", output, f"data.corrections={other}", code=2)
    assert f"data.corrections is {other} here and {table} in" in refused.stderr
    corrections(table, {names[5]: (int(names[5][0]) + 1) % 6})  # the review went on
    refused = train("ckpt_path=last", output, code=2)
    assert "the photos or their split differ from" in refused.stderr
    corrections(table, {names[5]: int(names[5][0])})
    train("ckpt_path=last", output)

    page = tmp_path / "data.html"
    paths = [f"paths.{name}_dir={tmp_path / name}" for name in ("data", "cache", "log")]
    run("-m", "bincounter", "explore", *RUN[:3], *paths, f"data.corrections={table}", "--output", str(page))
    assert "3 of the source have another count by data.corrections." in page.read_text()


def test_the_setting_is_a_path(tmp_path: Path, run: Run) -> None:
    refused = run("train.py", "data.corrections=~/no such file.csv", f"paths.log_dir={tmp_path}", "data=demo", code=2)
    assert "cannot be read (No such file or directory)" in refused.stderr
    assert "~" not in refused.stderr
