"""``bincounter audit`` as users run it: tables of any content, names of any bytes, kills, and the page."""

import csv
import errno
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bins import square_bins
from browser import visit
from commands import Run, Start
from hypothesis import given, settings
from hypothesis import strategies as st
from outputs import read_rows
from playwright.sync_api import Browser
from s3_server import S3Server
from served_runs import checkpoint_alone
from warm_python import Started

from bincounter.audit import stock_records
from bincounter.audit.audit_page import write_audit_page
from bincounter.audit.audit_run import Audit, Counting, run_audit
from bincounter.audit.expected_yield import Costs
from bincounter.audit.posterior import RecordJudge, training_shares
from bincounter.audit.stock_records import PhotoFinder, Stock, StockRecord, read_stock
from bincounter.errors import BinCounterError, Interrupted, ResourceError, UserError
from bincounter.names import read_cell
from bincounter.training.predictor import Prediction

NAMES = (
    "a.jpg",
    "=1+1.jpg",
    "two\nlines\x1b[2J.jpg",
    "<img src=x onerror=alert(1)>.jpg",
    os.fsdecode(b"caf\xe9.jpg"),
    "b\\n.jpg",
)
COUNTS = (0, 1, 2, 3)
JUDGE = RecordJudge(COUNTS, training_shares({}, COUNTS))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_alone(tmp_path_factory.mktemp("model"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight photos: bins/<count>/<name>.png, and one that is broken."""
    square_bins(tmp_path / "bins", photos=8)
    (tmp_path / "bins/0/broken.png").write_bytes(b"no photo")
    return tmp_path / "bins"


def table(path: Path, rows: list[list[Any]], header: str = "bin,photo,expected") -> Path:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


def names_of(photos: Path) -> list[str]:
    return sorted(each.relative_to(photos).as_posix() for each in photos.rglob("*.png") if each.name != "broken.png")


def rows_of(photos: Path) -> list[list[Any]]:
    """A right record for each photo, by the name of its folder."""
    return [[f"A-{n}", name, int(name[0])] for n, name in enumerate(names_of(photos))]


def test_every_record_and_every_photo_is_in_the_table(run: Run, photos: Path, checkpoint: Path, tmp_path: Path) -> None:
    names = names_of(photos)
    rows: list[list[Any]] = [
        ["A-0", names[0], 0, "left"],
        ["A-1", Path(names[1]).name, "3.0", "=right, or not", "", " "],  # by its name alone; as pandas and Excel write
        ["A-2", names[2], 7, ""],
        ["A-3", names[3], "two", ""],
        ["A-4", names[4], 1.5, ""],
        ["A-5", names[5], 2, ""],
        ["A-5", names[5], 2, "again"],
        ["A-6", names[6], 2, ""],
        ["A-7", names[6], 2, ""],
        ["A-8", "nowhere.png", 2, ""],
        ["A-9", "", 2, ""],
        ["B-0", "0/broken.png", 2, ""],
        ["B-1", names[0], 2, "x", "a comma too many"],
    ]
    stock = table(tmp_path / "stock.csv", rows, "bin,photo,expected,shelf,,")
    output = tmp_path / "new" / "audit.csv"
    arguments = ["--record", str(stock), f"ckpt_path={checkpoint}", "--output", str(output)]
    done = run(
        "-m", "bincounter", "audit", str(photos), *arguments, "--cost-of-check=1", "--cost-of-error=1000", "--checks=1"
    )
    audited = read_rows(output)
    assert list(audited[0]) == [
        *("bin", "photo", "expected", "predicted", "expected_count", "p_0", "p_1", "p_2", "p_3"),
        *("record_wrong", "direction", "units_off", "reason", "shelf"),
    ]
    judged = [row for row in audited if row["record_wrong"]]
    assert audited[: len(judged)] == judged
    assert sorted(row["bin"] for row in judged) == ["A-1", "A-5"]
    wrong = [float(row["record_wrong"]) for row in judged]
    assert wrong == sorted(wrong, reverse=True)
    assert {row["direction"] for row in judged} <= {"missing", "extra"}
    assert all((photos / row["photo"]).is_file() and not row["reason"] for row in judged)
    reasons = [(row["bin"], row["reason"]) for row in audited[len(judged) :]]
    assert reasons == [
        ("A-0", "line 14 has another record of this photo"),
        ("A-2", "the model does not know the count 7, only 0, 1, 2, 3"),
        ("A-3", "the recorded count is not a whole number from 0 to 999999"),
        ("A-4", "the recorded count is not a whole number from 0 to 999999"),
        ("A-5", "the same record as in line 7"),
        ("A-6", "line 10 has another record of this photo"),
        ("A-7", "line 9 has another record of this photo"),
        ("A-8", "no such photo"),
        ("A-9", "the record names no photo"),
        ("B-0", "not a JPEG, PNG or WebP image"),
        ("B-1", "the line has 5 cells, and the first line 4"),
        ("", "the photo has no record"),
    ]
    by_bin = {row["bin"]: row for row in audited}
    assert by_bin["A-2"]["predicted"] and not by_bin["A-2"]["record_wrong"]  # the prediction is of use nevertheless
    assert (by_bin["A-3"]["expected"], by_bin["A-0"]["shelf"]) == ("two", "left")
    assert read_cell(by_bin["A-1"]["shelf"]) == "=right, or not" and by_bin["A-1"]["shelf"].startswith("'")
    assert (
        "of 2 records are expected to be wrong, 2 of 13 judged" in done.stdout
        and "11 records not judged, 1 photo without a record" in done.stdout
    )
    assert "Stop after 2 checks: a check costs 1 and an unfound error 1000." in done.stdout
    found = re.search(r"^first 1 check: (\d\.\d) wrong records \(95 % interval 0 to 1\)$", done.stdout, re.MULTILINE)
    assert found and f"{float(judged[0]['record_wrong']):.1f}" == found[1]
    assert '<div class="name">first 1 check</div>' in output.with_suffix(".html").read_text(encoding="utf-8")
    assert f"Next: bincounter review {output} --photos={photos} --ckpt-path={checkpoint}\n" in done.stdout
    assert sorted(path.name for path in output.parent.iterdir()) == ["audit.csv", "audit.html"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "stock.csv is empty"),
        (b"\n \n", "stock.csv is empty"),
        (b"bin,photo,expected\n", "stock.csv has no records"),
        (b"bin,photo\nA,a.jpg\n", "has no column 'expected' in its first line"),
        (
            b"bin,photo,expectd\nA,a.jpg,1\n",
            "has no column 'expected' in its first line (is it 'expectd'?): write it as CSV in UTF-8",
        ),
        (b"bin;photo;expected\nA;a.jpg;1\n", "with commas between the columns"),
        (b"bin,photo,expected,photo\nA,a.jpg,1,b.jpg\n", "has the column 'photo' twice"),
        (b"bin,photo,expected,p_3\nA,a.jpg,1,1\n", "has a column 'p_3', which the audit writes itself"),
        (b"bin,photo,expected\nA,a.jpg,1\nB,caf\xe9.jpg,1\n", "is not UTF-8 in line 3: save it as CSV UTF-8"),
        ("bin,photo,expected\nA,a.jpg,1\n".encode("utf-16"), "is not UTF-8 in line 1"),
        (b'bin,photo,expected\n"A,a.jpg,1\n', "is not a CSV table"),
        (None, "cannot be read (no such file or directory)"),
    ],
)
def test_a_table_that_is_none_is_refused_in_a_sentence(content: bytes | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "stock.csv").write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_stock(tmp_path / "stock.csv")
    assert said in str(refused.value) and "\n" not in str(refused.value)


@settings(max_examples=200)
@given(st.binary(max_size=120) | st.text("bin,photoexpected\n\r\"';0 1", max_size=120).map(str.encode))
def test_any_bytes_are_records_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    for start in (b"", b"bin,photo,expected,note\n", b"\xef\xbb\xbfexpected,bin,photo\n"):
        path.write_bytes(start + content)
        try:
            stock = read_stock(path)
        except UserError:
            continue
        assert all(isinstance(record.expected, int) or record.reason for record in stock.records)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--error-rate=0"], "--error-rate=0 is out of range: it must be above 0 and at most 0.99"),
        (["--error-rate=nan"], "--error-rate=nan is out of range"),
        (["--spread=0"], "--spread=0 is out of range: it must be above 0 and at most 1"),
        (["--checks=0"], "--checks=0 is out of range: it must be at least 1"),
        (["--cost-of-check=1"], "add --cost-of-error, or remove the other"),
        (["--cost-of-check=1", "--cost-of-error=-1"], "--cost-of-error=-1 is out of range"),
        (["--endpoint=${oc.env:HOME}"], "--endpoint=${oc.env:HOME} cannot name an endpoint"),
        (["--output=audit.html"], "is not a name for the table: let it end in .csv"),
        (["--output={stock}"], "is the table of records, which would be replaced: name another file"),
        (["--output=/dev/stdout"], "is not a name for the table"),
        (["--ckpt-path=nowhere.ckpt"], "Checkpoint nowhere.ckpt does not exist"),
        (["nowhere"], "nowhere is neither a photo nor a folder"),
    ],
)
def test_options_that_cannot_be_used_are_refused(
    arguments: list[str], said: str, run: Run, photos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    stock = table(tmp_path / "stock.csv", rows_of(photos))
    given_ = [
        f"--record={stock}",
        f"--ckpt-path={checkpoint}",
        f"--output={tmp_path / 'out' / 'audit.csv'}",
        *(each.replace("{stock}", str(stock)) for each in arguments),
    ]
    done = run("-m", "bincounter", "audit", str(photos), *given_, code=2)
    assert said in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_metadata_of_abid_are_records(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "abid"
    (folder / "metadata").mkdir(parents=True)
    (folder / "bin-images").mkdir()
    for number, text in enumerate(('{"EXPECTED_QUANTITY": 2}', '{"EXPECTED_QUANTITY": "2"}', "{"), start=1):
        suffix = "jpeg" if number == 1 else "jpg"
        shutil.copy(photos / names_of(photos)[number], folder / f"bin-images/{number}.{suffix}")
        (folder / f"metadata/{number}.{'JSON' if number == 1 else 'json'}").write_text(text)
    stock = read_stock(folder)
    PhotoFinder([str(folder / "bin-images")], tmp_path).match(stock)
    assert [(record.bin, record.expected) for record in stock.records] == [("1", 2), ("2", ""), ("3", "")]
    assert [record.reason for record in stock.records] == [
        "",
        "EXPECTED_QUANTITY is not an integer from 0 to 999999",
        "metadata is not JSON",
    ]
    assert all(Path(record.file).is_file() for record in stock.records)
    with pytest.raises(UserError, match=r"has no metadata/<id>\.json"):
        read_stock(photos)


def counting(answer: Callable[[str], Prediction] | None = None) -> Counting:
    """A model that knows the count of a square bin by the name of its folder, or answers as asked."""

    def known(photo: str) -> Prediction:
        truth = int(Path(photo).parent.name)
        return Prediction.of(photo, {count: 0.85 if count == truth else 0.05 for count in COUNTS}, truth)

    return Counting("model", JUDGE, lambda given_: map(answer or known, given_))


def matched(path: Path, photos: Path) -> Any:
    stock = read_stock(path)
    PhotoFinder([str(photos)], path.parent).match(stock)
    return stock


def test_photos_are_found_by_path_or_by_an_unambiguous_name(photos: Path, tmp_path: Path) -> None:
    for place in ("top.png", "x/top.png", "x/twice.png", "y/twice.png"):
        (photos / place).parent.mkdir(exist_ok=True)
        shutil.copy(photos / names_of(photos)[0], photos / place)
    named = ["top.png", "x/top.png", "./x/twice.png", "twice.png", str(photos / "y/twice.png")]
    stock = matched(table(tmp_path / "s.csv", [[name, f" {name} ", 1] for name in named]), photos)
    found = [record.photo if record.file else record.reason for record in stock.records[: len(named)]]
    places = ["top.png", "x/top.png", "x/twice.png", "2 photos have this name: give its path", "y/twice.png"]
    assert found == places
    (photos / "x/top.png").rename(photos / "x/cafe\u0301 1.png")  # as macOS writes it
    others = ["x\\caf\u00e9 1.png", "caf\u00e9 1", "x/twice"]
    other = matched(table(tmp_path / "s.csv", [[name, name, 1] for name in others]), photos)
    assert [record.photo for record in other.records[:3]] == ["x/cafe\u0301 1.png"] * 2 + ["x/twice.png"]
    assert {"x/twice.png", "y/twice.png"} <= {record.photo for record in stock.records}
    ambiguous = matched(table(tmp_path / "s.csv", [["A", "twice.png", 1]]), photos)
    assert {"x/twice.png", "y/twice.png"} <= {record.photo for record in ambiguous.records}  # none is lost


@pytest.mark.timeout(100)  # a hang: comparing all with all takes minutes, else it is seconds
def test_many_photos_of_one_name_are_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    many = [tmp_path / f"{number}/photo.jpg" for number in range(100_000)]
    monkeypatch.setattr(stock_records, "find_photos", lambda root: many)
    stock = Stock([StockRecord(f"{number}", f"{number}/photo.jpg", 1) for number in range(len(many))])
    PhotoFinder([str(tmp_path)], tmp_path).match(stock)
    assert [record.file for record in stock.records] == list(map(str, many))


def test_folders_named_by_a_way_upwards_lie_in_one_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("work/here/a.png", "there/b.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path / "work")
    finder, stock = PhotoFinder(["here", "../there"], tmp_path), Stock([StockRecord("A", "b.png", 1)])
    finder.match(stock)
    assert finder.folder == tmp_path
    assert [record.photo for record in stock.records] == ["there/b.png", "work/here/a.png"]
    for source in ("there", "there/b.png"):
        upwards = str(tmp_path / "there" / ".." / source)
        finder, stock = PhotoFinder([upwards], tmp_path), Stock([StockRecord("A", "b", 1)])
        finder.match(stock)
        assert [record.photo for record in stock.records] == ["b.png"]


def test_photos_of_a_bucket_and_those_that_the_model_was_trained_on(
    run: Run, s3: S3Server, photos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    content = (photos / names_of(photos)[0]).read_bytes()
    s3.put("shop", {"named/3.png": content, "named/other.png": content})  # 3 is the id of a training photo
    stock = table(tmp_path / "stock.csv", [["A", "3.png", 1], ["B", "s3://shop/named/other.png", 1]])
    arguments = ["--record", str(stock), f"ckpt_path={checkpoint}", f"--output={tmp_path / 'audit.csv'}"]
    data = tmp_path / "data"
    done = run("-m", "bincounter", "audit", "s3://shop/named", *arguments, f"--data-dir={data}", **s3.environment())
    judged = {row["bin"]: row["photo"] for row in read_rows(tmp_path / "audit.csv") if row["record_wrong"]}
    assert judged == {"A": "3.png", "B": "other.png"}
    assert f"--photos={data / 's3/shop/named'} " in done.stdout
    assert "The model was trained on 1 of these photos, by their names" in done.stderr
    assert "photos trained on" in (tmp_path / "audit.html").read_text(encoding="utf-8")


def test_names_of_any_bytes_survive(run: Run, photos: Path, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "named"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(photos / names_of(photos)[0], folder / name)
    cells = [r"caf\xe9.jpg" if "\udce9" in name else name for name in NAMES]
    stock = table(tmp_path / "stock.csv", [[f"bin {cell}", cell, 1] for cell in cells])
    output = tmp_path / "audit.csv"
    run(
        "-m",
        "bincounter",
        "audit",
        str(folder),
        "--record",
        str(stock),
        f"ckpt_path={checkpoint}",
        "--output",
        str(output),
    )
    audited = read_rows(output)
    assert len(output.read_text(encoding="utf-8").splitlines()) == len(NAMES) + 1
    assert sorted(read_cell(row["photo"]) for row in audited) == sorted(NAMES)
    assert sorted(read_cell(row["bin"]) for row in audited) == sorted(f"bin {cell}" for cell in cells)
    assert "<img src=x" not in output.with_suffix(".html").read_text(encoding="utf-8")


@pytest.mark.long
def test_a_killed_audit_resumes_to_the_same_table(checkpoint: Path, start: Start, tmp_path: Path) -> None:
    square_bins(tmp_path / "bins", photos=200)
    stock = table(tmp_path / "stock.csv", rows_of(tmp_path / "bins"))
    whole, killed = tmp_path / "whole.csv", tmp_path / "killed.csv"
    slow = (  # a batch at a time, so that the kill comes midway
        "import sys, time; from bincounter.training.predictor import Predictor; answer = Predictor._batch\n"
        "def slowly(*given):\n    time.sleep(float(sys.argv.pop()))\n    sys.argv.append('0.3')\n"
        "    yield from answer(*given)\n"
        "Predictor._batch = slowly\nfrom bincounter.cli.main import main; sys.exit(main(sys.argv[1:-1]))"
    )
    arguments = ["audit", str(tmp_path / "bins"), f"--record={stock}", f"--ckpt-path={checkpoint}"]

    def audit(output: Path) -> Started:
        return start("-c", slow, *arguments, f"--output={output}", "0.3")

    running = audit(killed)
    work = killed.with_name("killed.csv.part")
    while not work.exists() or work.read_bytes().count(b"\n") < 70:
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert running.returncode == -signal.SIGKILL and work.exists() and not killed.exists()
    with work.open("ab") as file:
        file.write(b'["half a li')
    resumed = audit(killed)
    said = resumed.communicate(timeout=120)[1]
    assert resumed.returncode == 0, said
    assert "of 200 photos were counted before" in said
    undisturbed = audit(whole)
    assert undisturbed.communicate(timeout=120)[1].count("counted before") == 0
    assert killed.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.part"))


def test_work_of_another_audit_is_not_used(photos: Path, tmp_path: Path) -> None:
    stock, output = tmp_path / "stock.csv", tmp_path / "audit.csv"
    for n in range(40):
        shutil.copy(photos / names_of(photos)[0], photos / f"0/{n}.png")
    rows = [[f"A-{n}", f"0/{n}.png", 0] for n in range(40)]

    def interrupted(number: int) -> Counting:
        def answer(photo: str) -> Prediction:
            seen.append(photo)
            if len(seen) > number:
                raise KeyboardInterrupt
            return Prediction.of(photo, {0: 0.7, 1: 0.1, 2: 0.1, 3: 0.1}, 0)

        return counting(answer)

    def asked(later: list[list[Any]], key: str = "model") -> int:
        """Photos that an audit counts after one was interrupted at its 36th."""
        seen.clear()
        table(stock, rows)
        with pytest.raises(Interrupted, match="run the same command again"):
            run_audit(matched(stock, photos), interrupted(36), output)
        seen.clear()
        model = interrupted(1000)
        run_audit(matched(table(stock, later), photos), Counting(key, JUDGE, model.answers), output)
        return len(seen)

    seen: list[str] = []
    assert asked(rows) == 8  # all but the whole batch of 32
    assert asked(rows, key="another model") == 40
    assert asked([*rows[:-1], ["A-39", "0/39.png", 1]]) == 8  # another record, not another photo
    shutil.copy(photos / names_of(photos)[0], photos / "0/00.png")
    assert asked([["A-00", "0/00.png", 0], *rows]) == 9

    seen.clear()
    table(stock, rows)
    with pytest.raises(Interrupted):
        run_audit(matched(stock, photos), interrupted(36), output)
    os.utime(photos / "0/5.png", (1, 1))  # another photo by the same name
    seen.clear()
    run_audit(matched(stock, photos), interrupted(1000), output)
    assert len(seen) == 9


def test_photos_that_could_not_be_read_for_now_are_read_again(photos: Path, tmp_path: Path) -> None:
    for n in range(40):
        shutil.copy(photos / names_of(photos)[0], photos / f"0/{n}.png")
    stock = table(tmp_path / "stock.csv", [[f"A-{n}", f"0/{n}.png", 0] for n in range(40)])
    seen: list[str] = []

    def lacking(photo: str) -> Prediction:
        seen.append(photo)
        lacks = len(seen) == 3
        return (
            Prediction(photo, error="too many open files", passing=True)
            if lacks
            else Prediction.of(photo, dict.fromkeys(COUNTS, 0.25), COUNTS[0])
        )

    output = tmp_path / "audit.csv"
    assert run_audit(matched(stock, photos), counting(lacking), output).uncounted == 1
    assert [row["reason"] for row in read_rows(output) if row["bin"] == "A-2"] == ["too many open files"]

    def full(audit: Audit) -> None:
        raise OSError(errno.ENOSPC, "full")

    seen[:] = ["", "", ""]
    with pytest.raises(ResourceError, match="space"):  # what was counted is kept until the page is written
        run_audit(matched(stock, photos), counting(lacking), output, full)
    assert len(seen) - 3 == 9 and seen[-1].endswith("0/2.png")  # those behind the whole batch, then the failed one
    seen[:] = ["", "", ""]
    work = output.with_name("audit.csv.part")
    audit = run_audit(matched(stock, photos), counting(lacking), output, lambda audit: work.unlink())
    assert len(seen) - 3 == 9 and len(audit.judged) == 40 and not work.exists()


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that even root cannot read")
def test_a_photo_that_cannot_be_read_withholds_nothing(
    run: Run, photos: Path, checkpoint: Path, tmp_path: Path
) -> None:
    stock, output = table(tmp_path / "stock.csv", [*rows_of(photos), ["B", "0/lost.png", 1]]), tmp_path / "audit.csv"
    (photos / "0/lost.png").symlink_to("/proc/self/mem")
    for _ in range(2):
        arguments = [f"--record={stock}", f"--ckpt-path={checkpoint}", f"--output={output}"]
        done = run("-m", "bincounter", "audit", str(photos), *arguments, code=1)
        assert "Next: bincounter review" in done.stdout
        assert "1 of 10 photos were not counted for a reason outside of them" in done.stderr
        assert [row["reason"] for row in read_rows(output) if row["bin"] == "B"] == [
            "cannot be read (input/output error)"
        ]
        output.with_suffix(".html").unlink()
    (photos / "0/lost.png").unlink()
    shutil.copy(photos / names_of(photos)[0], photos / "0/lost.png")
    run("-m", "bincounter", "audit", str(photos), *arguments)
    assert not list(tmp_path.glob("*.part"))


def test_two_audits_do_not_write_one_table(photos: Path, tmp_path: Path) -> None:
    stock, output = table(tmp_path / "stock.csv", rows_of(photos)), tmp_path / "audit.csv"
    raised: list[BinCounterError] = []

    def second(photo: str) -> Prediction:
        with pytest.raises(UserError, match="is in use by another audit") as refused:
            run_audit(matched(stock, photos), counting(), output)
        raised.append(refused.value)
        return Prediction.of(photo, dict.fromkeys(COUNTS, 0.25), COUNTS[0])

    run_audit(matched(stock, photos), counting(second), output)
    assert len(raised) == 8 and len(read_rows(output)) == 9


def test_wrong_records_come_first(photos: Path, tmp_path: Path) -> None:
    rows = rows_of(photos)
    rows[1][2], rows[6][2] = 3, 0
    audit = run_audit(matched(table(tmp_path / "s.csv", rows), photos), counting(), tmp_path / "audit.csv")
    first = read_rows(tmp_path / "audit.csv")[:2]
    assert {(row["bin"], row["direction"]) for row in first} == {("A-1", "missing"), ("A-6", "extra")}
    assert audit.judged[2] < audit.judged[1] < audit.judged[0]
    assert float(next(row for row in first if row["bin"] == "A-1")["units_off"]) < 0


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_shows_the_first_bins_and_what_was_not_judged(
    browser: Browser, photos: Path, tmp_path: Path, width: int
) -> None:
    rows = [[f"<b>{name}</b>" * 9, path, count] for name, path, count in rows_of(photos)]
    rows[1][2] = 3
    stock = matched(table(tmp_path / "s.csv", [*rows, ["none", "nowhere.png", 1]]), photos)
    audit = run_audit(stock, counting(), tmp_path / "audit.csv")
    about = {"model": "m" * 300, "temperature": "1.10"}
    page = write_audit_page(tmp_path / "audit.html", audit, JUDGE, Costs(check=1, error=100), about)
    with visit(browser, page, width=width) as seen:
        assert (seen.requests, seen.errors) == ([], [])
        sizes = seen.page.evaluate("[...document.images].map(image => image.naturalWidth)")
        assert len(sizes) == 8 and all(sizes)
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
        assert seen.page.locator("h2").all_inner_texts() == [
            *("Expected errors", "Bins to check first", "Not judged", "Model and settings"),
        ]
        assert seen.page.locator("#bins tbody tr").first.inner_text().strip().startswith("<b>A-1</b>")
        assert "no such photo (1)" in seen.page.locator("#refused").inner_text()
        assert "Stop after" in seen.page.locator("#found").inner_text()
        box = seen.page.locator("svg.plot").bounding_box()
        assert box and box["width"] > 200
    for costs in (None, Costs(check=1000, error=1)):
        text = write_audit_page(tmp_path / "audit.html", audit, JUDGE, costs, about).read_text(encoding="utf-8")
        assert ("No check is worth its cost" in text) == (costs is not None)


def test_a_page_without_judged_records(photos: Path, tmp_path: Path) -> None:
    stock = matched(table(tmp_path / "s.csv", [["A", "nowhere.png", 1]]), photos)
    audit = run_audit(stock, counting(), tmp_path / "audit.csv")
    text = write_audit_page(tmp_path / "audit.html", audit, JUDGE, None, {}).read_text(encoding="utf-8")
    assert "No record could be judged" in text and len(read_rows(tmp_path / "audit.csv")) == 10
    assert np.isnan(audit.record_wrong).all()
