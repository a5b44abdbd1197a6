"""Server of the review page over HTTP: leases, answers on disk, undo, kills, and what it refuses."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest
from commands import Run
from made_photos import photo_bytes
from outputs import read_rows
from reviews import Audited, made_audit, reviewed, write_audit

from bincounter.data.corrections import Correction, CorrectionsLog, last_answers, read_corrections
from bincounter.review.audit_table import read_audit
from bincounter.review.review_app import Attention, create_app
from bincounter.review.review_queue import LEASE, Reviewer, ReviewQueue

pytestmark = pytest.mark.slow


def test_bins_come_in_the_order_of_the_table_with_what_it_says_of_them(tmp_path: Path) -> None:
    with reviewed(made_audit(tmp_path)) as server:
        shown = server.next("anna")
        assert (shown["bin"], shown["expected"], shown["predicted"], shown["record_wrong"]) == ("B-0", 2, 1, 0.9)
        assert shown["probabilities"] == {"0": 0.1, "1": 0.7, "2": 0.1, "3": 0.1}
        photo = server.ask("GET", f"/photo/{shown['id']}")
        assert (photo.status, photo.headers["content-type"], photo.body) == (200, "image/jpeg", photo_bytes(0))
        for n in range(4):
            reply = server.post("answer", "anna", id=shown["id"], counted=2 - n % 2).json()
            assert len(read_rows(tmp_path / "corrections.csv")) == n + 1  # before the next bin is shown
            shown = reply["bin"]
            assert (shown and shown["bin"]) == (f"B-{n + 1}" if n < 3 else None)
        progress = reply["progress"]
        assert (progress["done"], progress["wrong"], progress["missing"], progress["extra"]) == (4, 2, 2, 0)
        assert progress["wrong_expected"] == pytest.approx(0.9 + 0.8 + 0.7 + 0.6)
    rows = read_rows(tmp_path / "corrections.csv")
    assert list(rows[0]) == ["bin", "photo", "expected", "counted", "reviewer", "time", "undone"]
    assert [(row["bin"], row["counted"], row["reviewer"], row["undone"]) for row in rows] == [
        (f"B-{n}", str(2 - n % 2), "anna", "no") for n in range(4)
    ]


def test_no_bin_is_shown_to_two_reviewers(tmp_path: Path) -> None:
    with reviewed(made_audit(tmp_path, bins=3)) as server:
        first = server.next("anna")
        for name in ("anna", "nobody"):  # the second leases nothing
            assert server.post("renew", name, id=first["id"]).json() == {"held": name == "anna"}
        shown = {name: server.next(name) for name in ("anna", "ben", "cleo", "dora")}
        assert [each and each["bin"] for each in shown.values()] == ["B-0", "B-1", "B-2", None]
        assert server.next("ben") == shown["ben"]  # a page that is loaded again
        skipped = server.post("skip", "anna", id=shown["anna"]["id"]).json()["bin"]
        assert skipped["bin"] == "B-0"  # all others are on other screens
        server.post("answer", "ben", id=shown["ben"]["id"], counted=2)
        assert server.post("skip", "cleo", id=shown["anna"]["id"]).json()["bin"]["bin"] == "B-2"  # not hers to skip
        again = server.post("answer", "ben", id=shown["ben"]["id"], counted=2)  # the first reply was lost
        assert (again.status, again.json()["progress"]["done"]) == (200, 1)
        refused = server.post("answer", "anna", id=shown["ben"]["id"], counted=2)
        assert refused.status == 409
        assert refused.json()["error"] == "Bin B-1 is answered already, 2 by ben: take the next."
    assert len(read_rows(tmp_path / "corrections.csv")) == 1


def test_a_skipped_bin_comes_after_all_others(tmp_path: Path) -> None:
    with reviewed(made_audit(tmp_path, bins=3)) as server:
        shown, order = server.next("anna"), []
        shown = server.post("skip", "anna", id=shown["id"]).json()["bin"]
        while shown:
            order.append(shown["bin"])
            shown = server.post("answer", "anna", id=shown["id"], counted=1).json()["bin"]
        assert order == ["B-1", "B-2", "B-0"]


def test_an_answer_is_taken_back_by_whoever_gave_it(tmp_path: Path) -> None:
    table = tmp_path / "corrections.csv"
    with reviewed(made_audit(tmp_path)) as server:
        first, other = server.next("anna"), server.next("ben")
        server.post("answer", "anna", id=first["id"], counted=0)
        server.post("answer", "ben", id=other["id"], counted=3)
        undone = server.post("undo", "anna").json()
        assert undone["bin"]["bin"] == "B-0"
        assert undone["progress"]["done"] == 1
        assert server.next("cleo")["bin"] == "B-2"  # what anna had on screen before; B-3 is ben's
        refused = server.post("undo", "anna")
        assert (refused.status, refused.json()["error"]) == (
            409,
            "There is no answer of yours to take back; count this bin.",
        )
        server.post("answer", "anna", id=first["id"], counted=2)
    assert [(row["bin"], row["counted"], row["undone"]) for row in read_rows(table)] == [
        *(("B-0", "0", "no"), ("B-1", "3", "no"), ("B-0", "0", "yes"), ("B-0", "2", "no"))
    ]
    assert {key[0]: each.counted for key, each in last_answers(read_corrections(table, "it")).items()} == {
        "B-1": 3,
        "B-0": 2,
    }


def test_wrong_records_are_listed_by_the_answers_that_stand(tmp_path: Path, run: Run) -> None:
    audit, table, output = made_audit(tmp_path, bins=5), tmp_path / "corrections.csv", tmp_path / "wrong.csv"
    unrecorded = Audited("", "photos/0.jpg", expected="", reason="the photo has no record")
    rows = [*(Audited(f"B-{n}", f"photos/{n}.jpg") for n in range(5)), unrecorded]
    records = ["-1", "2.5", "1,000", "a few", ""]  # that no count is
    rows += [Audited(f"C-{n}", f"{n}.jpg", expected=record, reason="no") for n, record in enumerate(records)]
    rows += [Audited("B-2", "photos/2.jpg", expected=0, reason="other"), rows[2], Audited("B-4", "photos/4.jpg", 3)]
    write_audit(audit, rows)
    with CorrectionsLog(table) as log:
        for n in range(5):
            log.append(Correction(f"C-{n}", f"{n}.jpg", None, 1, "anna", "now"))
        for n, expected, counted in [(4, 2, 5), (0, 2, 3), (1, 2, 3), (1, 2, 2), (2, 2, 2), (2, 2, 0), (3, 1, 3)]:
            log.append(Correction(f"B-{n}", f"photos/{n}.jpg", expected, counted, "anna", "now"))
        log.append(Correction("B-0", "photos/0.jpg", 2, 3, "anna", "now", undone=True))
        log.append(Correction("", "photos/0.jpg", None, 3, "anna", "now"))
    done = run("-m", "bincounter", "review", str(audit), "--wrong-records", str(output))
    unknown = f"  1 answers are of bins or records that {audit} does not have\n"
    assert done.stdout == f"8 wrong records: {output}\n{unknown}"
    assert output.read_text().splitlines() == [
        "bin,photo,expected,counted,reviewer,time",
        "B-2,photos/2.jpg,2,0,anna,now",
        "B-4,photos/4.jpg,2,5,anna,now",
        "C-0,0.jpg,-1,1,anna,now",
        "C-1,1.jpg,2.5,1,anna,now",
        'C-2,2.jpg,"1,000",1,anna,now',
        "C-3,3.jpg,a few,1,anna,now",
        "B-2,photos/2.jpg,2,0,anna,now",
        "B-4,photos/4.jpg,3,5,anna,now",
    ]
    own = tmp_path / "own.csv"  # for any record of a photo
    own.write_text("photo,counted\nphotos/2.jpg,0\nphotos/3.jpg,2\nphotos/9.jpg,2\n3.jpg,4\n")
    done = run("-m", "bincounter", "review", str(audit), "--wrong-records", str(output), "--corrections", str(own))
    assert done.stdout == f"3 wrong records: {output}\n{unknown}"
    assert output.read_text().splitlines()[1:] == [
        "B-2,photos/2.jpg,2,0,,",
        "C-3,3.jpg,a few,4,,",
        "B-2,photos/2.jpg,2,0,,",
    ]
    refused = run("-m", "bincounter", "review", str(audit), "--wrong-records", str(table), code=2)
    assert "would replace a table that it is made from" in refused.stderr


def test_a_killed_server_resumes_from_the_file(tmp_path: Path) -> None:
    audit = made_audit(tmp_path)
    with reviewed(audit) as server:
        first = server.next("anna")
        second = server.post("answer", "anna", id=first["id"], counted=2).json()["bin"]
        assert server.post("answer", "anna", id=second["id"], counted=1).status == 200
        server.process.send_signal(signal.SIGKILL)
        assert server.process.wait() == -signal.SIGKILL
    whole = (tmp_path / "corrections.csv").read_bytes()
    with (tmp_path / "corrections.csv").open("ab") as file:
        file.write(b"B-2,photos/2.jpg,2,1,an")  # killed while it wrote
    with reviewed(audit) as server:
        assert (tmp_path / "corrections.csv").read_bytes() == whole
        reply = server.post("next", "other", reviewer="anna").json()
        assert (reply["bin"]["bin"], reply["progress"]["done"]) == ("B-2", 2)
        assert server.post("undo", "other", reviewer="ben").status == 409
        assert server.post("undo", "other", reviewer="anna").json()["bin"]["bin"] == "B-1"
        assert server.post("answer", "anna", id=first["id"], counted=2).status == 200  # the reply was lost in the kill
        assert server.post("answer", "ben", id=first["id"], counted=2).status == 409
    assert len(read_rows(tmp_path / "corrections.csv")) == 3


def test_answers_are_known_again_by_bin_photo_and_record(tmp_path: Path) -> None:
    audit, table = made_audit(tmp_path, bins=2), tmp_path / "corrections.csv"
    unrecorded = Audited("", "photos/1.jpg", expected="", reason="the photo has no record")
    write_audit(audit, [Audited("B-0", "photos/0.jpg", expected=2), unrecorded])
    with reviewed(audit) as server:
        shown = server.next("anna")
        while shown:
            shown = server.post("answer", "anna", id=shown["id"], counted=1).json()["bin"]
    write_audit(audit, [Audited("B-0", "photos/0.jpg", expected=1), unrecorded])  # the record was corrected
    with reviewed(audit) as server:
        assert "asks again for 1 bin whose answer is of other records" in server.process.told("asks again.*")[0]
        reply = server.post("next", "anna").json()
        assert (reply["bin"]["bin"], reply["progress"]["done"]) == ("B-0", 1)
        assert server.post("answer", "anna", id=reply["bin"]["id"], counted=1).json()["bin"] is None
    assert [(row["bin"], row["expected"]) for row in read_rows(table)] == [("B-0", "2"), ("", ""), ("B-0", "1")]


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_line_that_is_cut_anywhere_is_dropped(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "corrections.csv"
    with CorrectionsLog(path) as log:
        log.append(Correction("B-0", "é,0.jpg", 2, 12, "anna", "2026-01-02T03:04:05+00:00"))
        log.append(Correction("B-1", 'é"1\n.jpg', None, 12, "anna", "2026-01-02T03:04:05+00:00"))
    whole = path.read_bytes()
    end = whole.rstrip(b"\n").rfind(b"\n") + 1
    path.write_bytes(whole[: max(len(whole) - cut, end)])
    kept = 2 if cut == 1 else 1  # a line lacks its break, and nothing else
    assert len(read_corrections(path, "it")) == kept
    with CorrectionsLog(path) as log:
        assert len(log.corrections) == kept
        log.append(Correction("B-2", "2.jpg", 1, 3))
    assert [each.bin for each in read_corrections(path, "it")] == [*["B-0", "B-1"][:kept], "B-2"]


def test_a_lease_ends_by_itself_and_the_first_answer_counts(tmp_path: Path) -> None:
    now = [0.0]
    with CorrectionsLog(tmp_path / "corrections.csv") as log:
        queue = ReviewQueue(read_audit(made_audit(tmp_path, bins=1)), log, clock=lambda: now[0])
        anna, ben = Reviewer("1", "anna"), Reviewer("2", "ben")
        shown = queue.next(anna)
        assert shown and queue.next(ben) is None
        for now[0] in (LEASE - 1, 2 * LEASE - 2):
            assert queue.renew(anna, shown)
            assert queue.next(ben) is None
        now[0] = 3 * LEASE
        assert queue.next(ben) == shown
        assert not queue.renew(anna, shown)  # too late
        assert queue.next(anna) is None
        queue.answer(anna, shown, 3)
        with pytest.raises(Exception, match="answered already, 3 by anna"):
            queue.answer(ben, shown, 2)


def test_a_full_disk_loses_nothing_and_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CorrectionsLog(tmp_path / "corrections.csv") as log:
        queue = ReviewQueue(read_audit(made_audit(tmp_path, bins=1)), log)
        shown = queue.next(Reviewer("1", "anna"))
        assert shown

        def full(descriptor: int) -> None:
            raise OSError(28, os.strerror(28))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(Exception, match="The answer is not saved \\(No space left on device\\)"):
                queue.answer(Reviewer("1", "anna"), shown, 3)
        assert read_rows(log.path) == []
        queue.answer(Reviewer("1", "anna"), shown, 3)
        log.path.unlink()
        with pytest.raises(Exception, match="was replaced while it was in use"):
            queue.undo(Reviewer("1", "anna"))


class SlowModel(Attention):
    """A model that explains nothing until it is released."""

    def __init__(self) -> None:
        self.go, self.explained = threading.Event(), 0

    def explain(self, data: bytes) -> dict[str, object]:
        self.explained += 1
        assert self.go.wait(60)
        return {"count": 1}


def test_photos_do_not_wait_for_the_model_nor_the_model_for_those_who_left(tmp_path: Path) -> None:
    model, table = SlowModel(), read_audit(made_audit(tmp_path, bins=1))
    (id_,) = table.rows
    left: set[str] = set()

    async def ask(app: Any, path: str, client: str = "here") -> int:
        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"} if client in left else {"type": "http.request", "body": b""}

        async def reply(message: MutableMapping[str, Any]) -> None:
            status.append(message.get("status"))

        status: list[int | None] = []
        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "query_string": b"",
            "headers": [(b"host", b"127.0.0.1")],
        }
        await app(scope, receive, reply)
        assert status[0]
        return status[0]

    async def review() -> list[int]:
        with CorrectionsLog(tmp_path / "corrections.csv") as log:
            app = create_app(table, ReviewQueue(table, log), tmp_path, model)
            looks = [asyncio.create_task(ask(app, f"/attention/{id_}", str(n))) for n in range(100)]
            async with asyncio.timeout(60):
                while not model.explained:
                    await asyncio.sleep(0.01)
                assert await ask(app, f"/photo/{id_}") == 200
            left.update(map(str, range(1, 99)))
            model.go.set()
            return await asyncio.gather(*looks)

    assert asyncio.run(review()) == [200, *[499] * 98, 200]
    assert model.explained == 2


def test_only_photos_of_the_table_in_the_folder_are_served(tmp_path: Path) -> None:
    audit = made_audit(tmp_path / "stock", bins=1)
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(photo_bytes(9))
    (tmp_path / "stock" / "photos" / "linked").symlink_to(tmp_path / "other")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "0.jpg").symlink_to(secret)
    (tmp_path / "stock" / "photos" / "page.jpg").write_text("<script>alert(1)</script>")
    photos = ["photos/0.jpg", "../secret.jpg", str(secret), "photos/linked/0.jpg", "photos/gone.jpg", "photos/page.jpg"]
    photos += ["photos", "a\0b", "photos/linked/../secret.jpg"]
    write_audit(audit, [Audited(f"B-{n}", photo) for n, photo in enumerate(photos)])
    with reviewed(audit) as server:
        status, sentences = [], []
        for _ in photos:
            shown = server.next("anna")
            reply = server.ask("GET", f"/photo/{shown['id']}")
            status.append(reply.status)
            sentences.append("" if reply.status == 200 else reply.json()["error"])
            server.post("answer", "anna", id=shown["id"], counted=1)
        assert status == [200, 403, 403, 200, 404, 422, 404, 404, 403]
        assert sentences[1] == "../secret.jpg leads out of the folder of photos; it is not shown."
        assert sentences[5] == "photos/page.jpg is not a JPEG, PNG or WebP image; it is not shown."
        for path in ("/photo/audit.csv", "/photo/..%2f..%2fsecret.jpg", "/page/..%2freview_app.py", "/audit.csv", "//"):
            assert server.ask("GET", path).status == 404, path


def test_requests_of_other_sites_and_wrong_ones_are_refused(tmp_path: Path) -> None:
    with reviewed(made_audit(tmp_path)) as server:
        body = json.dumps({"session": "a", "reviewer": "a"}).encode()
        assert server.ask("POST", "/next", body, Origin="http://evil.example").status == 403
        assert server.ask("GET", "/", Host="evil.example").status == 403
        policy = server.ask("GET", "/").headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        id_ = server.next("anna")["id"]
        wrong: list[tuple[str, bytes | dict[str, object], int, str | None]] = [
            ("next", b"{", 400, "The body is not JSON; send what the page sends."),
            ("next", b"[]", 400, "The body is not a JSON object; send what the page sends."),
            ("next", b"{}", 400, "session is not a text of 1 to 100 characters; send one."),
            ("next", b"x" * 10_001, 413, None),
            ("answer", {"id": "0" * 16, "counted": 1}, 404, "The table has no such bin; reload the page."),
            ("answer", {"id": id_, "counted": -1}, 400, "counted is not a whole number from 0 to 999999; send one."),
            ("answer", {"id": id_, "counted": True}, 400, "counted is not a whole number from 0 to 999999; send one."),
            ("answer", {"id": id_, "counted": 1.5}, 400, "counted is not a whole number from 0 to 999999; send one."),
        ]
        for action, given, status, sentence in wrong:
            person = {"session": "anna", "reviewer": "anna"}
            sent = json.dumps({**person, **given}).encode() if isinstance(given, dict) else given
            reply = server.ask("POST", f"/{action}", sent)
            assert reply.status == status, reply.body
            assert sentence in (None, reply.json()["error"])
        assert server.ask("GET", "/next").status == 405
        refused = server.ask("GET", f"/attention/{id_}")
        assert (refused.status, refused.json()["error"]) == (
            404,
            "No model was given; start the review with --ckpt-path.",
        )
    assert read_rows(tmp_path / "corrections.csv") == []


def test_names_of_any_bytes_survive(tmp_path: Path) -> None:
    names = ["a\nb", "caf\udce9", "=1+1", "'x", "back\\slash", "<b>&amp;", "\u202ertl", 'q"q,']
    for n, name in enumerate(names):
        (tmp_path / f"{name}.jpg").write_bytes(photo_bytes(n))
    write_audit(tmp_path / "audit.csv", [Audited(name, f"{name}.jpg", note=name) for name in names])
    with reviewed(tmp_path / "audit.csv") as server:
        for n in range(len(names)):
            shown = server.next("anna")
            assert server.ask("GET", f"/photo/{shown['id']}").body == photo_bytes(n)
            assert "\n" not in shown["bin"] + shown["notes"]["note"]
            server.post("answer", "anna", reviewer="an\ud800na\n", id=shown["id"], counted=n)
    answers = read_corrections(tmp_path / "corrections.csv", "it")
    assert [(each.bin, each.photo, each.counted) for each in answers] == [
        (name, f"{name}.jpg", n) for n, name in enumerate(names)
    ]


def test_bins_that_were_not_judged_come_with_their_reason(tmp_path: Path) -> None:
    audit = made_audit(tmp_path, bins=1)
    rows = [
        Audited("B-0", "photos/0.jpg"),
        Audited("B-7", "photos/0.jpg", expected=9, reason="the model knows no count 9"),
        Audited("B-8", "", reason="record without a photo"),
        Audited("B-0", "photos/0.jpg"),  # listed twice
        Audited("B-9", "photos/0.jpg", expected="a few", reason="the recorded count is not a whole number"),
    ]
    write_audit(audit, rows)
    with reviewed(audit) as server:
        left_out = server.process.told("left out.*")[0]
        assert "left out 1 without a photo and 1 with the bin and photo of another line: see" in left_out
        first = server.next("anna")
        second = server.post("answer", "anna", id=first["id"], counted=1).json()["bin"]
        assert (second["bin"], second["reason"]) == ("B-7", "the model knows no count 9")
        third = server.post("answer", "anna", id=second["id"], counted=8).json()["bin"]
        assert (third["bin"], third["record"], third["expected"]) == ("B-9", "a few", None)
        done = server.post("answer", "anna", id=third["id"], counted=3).json()
        assert done["bin"] is None
        progress = done["progress"]
        assert [progress[name] for name in ("judged", "wrong", "wrong_judged", "missing")] == [1, 3, 1, 2]


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (shutil.rmtree, "audit.csv cannot be read (No such file or directory)"),
        (lambda folder: (folder / "audit.csv").unlink(), "audit.csv cannot be read (No such file or directory)"),
        (lambda folder: (folder / "audit.csv").write_text("a,b\n1,2\n"), "is not a table of `bincounter audit`"),
        (lambda folder: (folder / "audit.csv").write_bytes(b"\xff"), "is not UTF-8 text"),
        (lambda folder: write_audit(folder / "audit.csv", []), "lists no bin"),
        (lambda folder: write_audit(folder / "audit.csv", [Audited("a", "b", wrong="2")]), "damaged in line 2"),
        (lambda folder: (folder / "corrections.csv").write_text("a,b\n"), "is not a table of corrections"),
        (lambda folder: (folder / "corrections.csv").write_text("photo,counted\na.jpg,1\n"), "has other columns"),
        (lambda folder: (folder / "corrections.csv").mkdir(), "is a folder: name a file"),
        (lambda folder: [each.unlink() for each in (folder / "photos").iterdir()], "has no photo that"),
    ],
)
def test_wrong_inputs_end_in_a_sentence(tmp_path: Path, run: Run, break_it: object, sentence: str) -> None:
    audit = made_audit(tmp_path)
    assert callable(break_it)
    break_it(tmp_path)
    refused = run("-m", "bincounter", "review", str(audit), "--port", "0", code=2)
    assert sentence in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_table_of_answers_and_a_port_have_one_server(tmp_path: Path, run: Run) -> None:
    audit = made_audit(tmp_path)
    with reviewed(audit) as server:
        port = server.url.rpartition(":")[2]
        refused: subprocess.CompletedProcess[str] = run("-m", "bincounter", "review", str(audit), code=2)
        assert "corrections.csv is in use by another review" in refused.stderr
        other = ("--corrections", str(tmp_path / "other.csv"), "--port", port)
        refused = run("-m", "bincounter", "review", str(audit), *other, code=2)
        assert f"Port {port} is taken by another program" in refused.stderr
        folder = str(tmp_path / "no")
        assert "is not a folder" in run("-m", "bincounter", "review", str(audit), "--photos", folder, code=2).stderr
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0
