"""Review page in a real browser at desktop and phone size: keys, buttons, progress, two reviewers, names as text."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import REPOSITORY
from made_photos import photo_bytes
from outputs import read_rows
from playwright.sync_api import Browser, Page, Route, expect
from reviews import Audited, ReviewServer, made_audit, reviewed, write_audit

pytestmark = pytest.mark.browser
expect.set_options(timeout=60_000)  # on busy cores a browser waits for its turn

RUN = REPOSITORY / "tests" / "assets" / "classification"
PHOTO = "document.getElementById('photo').src.split('/').pop()"
SIZES = [{"width": 1280, "height": 800}, {"width": 390, "height": 844}]


@contextmanager
def opened(browser: Browser, server: ReviewServer, failing: tuple[str, ...] = (), **options: Any) -> Iterator[Page]:
    """Open the page; afterwards nothing was asked of another host, and nothing failed but what is named."""
    context = browser.new_context(**options)
    page = context.new_page()
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: errors.append(dialog.message))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(server.url)
    expect(page.locator("#done")).not_to_be_empty()
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("innerWidth")
    context.close()
    assert all(url.startswith((server.url, "data:")) for url in asked)
    assert [error for error in errors if not any(known in error for known in failing)] == []


def shows(page: Page, bin_: str) -> None:
    """Wait for a bin and its photo."""
    expect(page.locator("#title")).to_have_text(f"Bin {bin_}")
    expect(page.locator("#photo")).to_be_visible()


def ends(page: Page, title: str) -> None:
    """Wait until no bin is on screen."""
    expect(page.locator("#over")).to_be_visible()
    expect(page.locator("#over-title")).to_have_text(title)


@pytest.mark.parametrize("size", SIZES)
def test_bins_are_counted_by_keys(browser: Browser, tmp_path: Path, size: dict[str, int]) -> None:
    table = tmp_path / "corrections.csv"
    with reviewed(made_audit(tmp_path)) as server, opened(browser, server, viewport=size) as page:
        shows(page, "B-0")
        assert [page.inner_text(name) for name in ("#expected", "#predicted")] == ["2", "1"]
        sentence = "Probability that the record is wrong: 90 %. Likely error: items missing, -0.4 on average."
        assert page.inner_text("#verdict") == sentence
        shares = [" ".join(row.split()) for row in page.locator("#shares tr").all_inner_texts()]
        assert shares == ["0 10 %", "1 70 %", "2 10 %", "3 10 %"]
        expect(page.locator("#photo")).to_have_js_property("naturalWidth", 60)
        page.keyboard.press("Enter")
        expect(page.locator("#message")).to_have_text("Type the count first, then press Enter.")
        for key in ("4", "1", "7", "Backspace", "2"):
            page.keyboard.press(key)
        assert page.inner_text("#counted") == "412"
        page.keyboard.press("Backspace")
        page.keyboard.press("Backspace")
        page.keyboard.press("Enter")
        shows(page, "B-1")
        assert page.locator("#message").is_hidden()
        assert page.inner_text("#counted") == ""
        assert page.inner_text("#done") == "1 of 4 bins done: 1 wrong record found, 0.9 expected"
        assert page.locator("#found td").all_inner_texts() == ["1", "0", "2"]  # wrong, missing, too many
        assert page.evaluate("document.getElementById('progress').position") == 0.25
        page.keyboard.press("s")
        shows(page, "B-2")
        page.keyboard.press("u")
        shows(page, "B-0")
        for bin_ in ("B-2", "B-3", "B-1"):
            page.keyboard.press("2")
            page.keyboard.press("Enter")
            shows(page, bin_)
        page.keyboard.press("2")
        page.keyboard.press("Enter")
        ends(page, "All bins are done")
        expect(page.locator("#over-text")).to_contain_text("0 wrong records found, 3.0 expected")
        page.keyboard.press("u")
        shows(page, "B-1")
    assert [(row["bin"], row["counted"], row["undone"]) for row in read_rows(table)] == [
        *(("B-0", "4", "no"), ("B-0", "4", "yes"), ("B-0", "2", "no"), ("B-2", "2", "no")),
        *(("B-3", "2", "no"), ("B-1", "2", "no"), ("B-1", "2", "yes")),
    ]


@pytest.mark.parametrize("size", SIZES)
def test_bins_are_counted_by_buttons(browser: Browser, tmp_path: Path, size: dict[str, int]) -> None:
    with (
        reviewed(made_audit(tmp_path)) as server,
        opened(browser, server, viewport=size, has_touch=True, color_scheme="dark") as page,
    ):
        page.fill("#reviewer", "Ann")
        for bin_, keys in (("B-0", ["1", "0", "Backspace", "2", "Enter"]), ("B-1", ["s"]), ("B-2", ["0", "Enter"])):
            shows(page, bin_)
            for key in keys:
                button = page.locator(f"#bin [data-key='{key}']")
                box = button.bounding_box()
                assert box and min(box["width"], box["height"]) >= 40  # a finger's width
                button.tap()
        shows(page, "B-3")
        page.locator("#bin [data-key='u']").tap()
        shows(page, "B-2")
        page.keyboard.press("7")  # for the count, not for the name
        assert page.inner_text("#counted") == "7"
        stage, keys_ = (page.locator(name).bounding_box() for name in ("#stage", "#others"))
        assert stage and keys_ and keys_["y"] + keys_["height"] <= size["height"]  # all on screen without scrolling
        assert stage["height"] >= 0.35 * size["height"]
        page.reload()
        shows(page, "B-2")
        assert page.input_value("#reviewer") == "Ann"
    rows = read_rows(tmp_path / "corrections.csv")
    assert [(row["bin"], row["counted"], row["reviewer"]) for row in rows] == [
        *(("B-0", "12", "Ann"), ("B-2", "0", "Ann"), ("B-2", "0", "Ann")),
    ]


def test_no_count_is_taken_before_the_photo_of_its_bin(browser: Browser, tmp_path: Path) -> None:
    with reviewed(made_audit(tmp_path)) as server, opened(browser, server, failing=("422",)) as page:
        shows(page, "B-0")
        (tmp_path / "photos" / "2.jpg").write_bytes(b"no photo")
        held: list[Route] = []

        def hold(route: Route) -> None:
            held.append(route)

        page.keyboard.press("2")
        for bin_ in ("B-1", "B-2"):
            page.route("**/photo/*", hold, times=1)
            page.keyboard.press("Enter")
            expect(page.locator("#title")).to_have_text(f"Bin {bin_}")
            assert page.locator("#photo").is_hidden()  # that of the bin before
            page.keyboard.press("1")
            page.keyboard.press("Enter")
            expect(page.locator("#message")).to_have_text("Wait for the photo of this bin, then press Enter.")
            page.click("#bin [data-key='Enter']")
            assert page.inner_text("#title") == f"Bin {bin_}"
            held.pop().continue_()
            if bin_ == "B-1":
                expect(page.locator("#photo")).to_be_visible()
        expect(page.locator("#no-photo")).to_contain_text("photos/2.jpg is not a JPEG")
        page.keyboard.press("Enter")
        shows(page, "B-3")
    assert [row["bin"] for row in read_rows(tmp_path / "corrections.csv")] == ["B-0", "B-1", "B-2"]


@pytest.mark.parametrize("size", SIZES)
def test_the_photo_is_enlarged_and_moved(browser: Browser, tmp_path: Path, size: dict[str, int]) -> None:
    with reviewed(made_audit(tmp_path)) as server, opened(browser, server, viewport=size, has_touch=True) as page:
        press = page.mouse.click if size == SIZES[0] else page.touchscreen.tap
        shows(page, "B-0")
        scale = "new DOMMatrix(getComputedStyle(document.getElementById('photo')).transform).a"
        box = page.locator("#stage").bounding_box()
        assert box
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        press(x, y)
        assert page.evaluate(scale) == 2.5
        before = page.evaluate("document.getElementById('photo').style.transform")
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x - 60, y - 40, steps=3)
        page.mouse.up()
        assert page.evaluate(scale) == 2.5
        assert page.evaluate("document.getElementById('photo').style.transform") != before
        press(x, y)
        assert page.evaluate(scale) == 1
        page.mouse.wheel(0, -200)
        expect(page.locator("#stage")).to_have_class("stage large")
        assert page.evaluate(scale) > 1.5
        page.keyboard.press("2")
        page.keyboard.press("Enter")
        shows(page, "B-1")
        assert page.evaluate(scale) == 1


def test_two_browsers_share_the_work(browser: Browser, tmp_path: Path) -> None:
    with (
        reviewed(made_audit(tmp_path, bins=2)) as server,
        opened(browser, server) as anna,
        opened(browser, server, failing=("409",)) as ben,
    ):
        anna.clock.install()
        anna.reload()
        shows(anna, "B-0")
        shows(ben, "B-1")
        with anna.expect_request("**/renew") as renewal:
            anna.clock.fast_forward(60_000)
        assert anna.evaluate(PHOTO) in (renewal.value.post_data or "")
        with anna.expect_popup() as copy:  # of the tab, with what it stores
            anna.evaluate("open(location.href)")
        ends(copy.value, "The rest is with other reviewers")
        copy.value.close()
        first = server.post("skip", "nobody", id=server.next("nobody") or "x").status
        assert first in (400, 404)  # both bins are on screens
        anna.keyboard.press("3")
        anna.keyboard.press("Enter")
        ends(anna, "The rest is with other reviewers")
        id_ = ben.evaluate("document.getElementById('photo').src").rpartition("/")[2]
        server.post("answer", "cleo", id=id_, counted=5)  # a lease may end
        ben.keyboard.press("1")
        ben.keyboard.press("Enter")
        expect(ben.locator("#message")).to_have_text("Bin B-1 is answered already, 5 by cleo: take the next.")
        ends(ben, "All bins are done")
        anna.click("#again")
        ends(anna, "All bins are done")
    assert [row["counted"] for row in read_rows(tmp_path / "corrections.csv")] == ["3", "5"]


def test_a_bin_that_went_to_somebody_else_leaves_the_screen(browser: Browser, tmp_path: Path) -> None:
    audit = made_audit(tmp_path, bins=3)
    rows = [Audited("B-0", "photos/0.jpg"), Audited("B-1", "photos/1.jpg")]
    write_audit(audit, [*rows, Audited("B-2", "photos/2.jpg", expected="a few", reason="no count")])
    with reviewed(audit) as server, opened(browser, server) as page:
        page.clock.install()
        page.reload()
        shows(page, "B-0")
        server.post("answer", "cleo", id=page.evaluate(PHOTO), counted=1)  # and gets B-1
        page.clock.fast_forward(60_000)
        expect(page.locator("#message")).to_contain_text("Bin B-0 is with somebody else by now, or counted by them")
        shows(page, "B-2")
        assert page.inner_text("#expected") == "a few"
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        ends(page, "The rest is with other reviewers")
        found = "2 wrong records found, 1 of them in judged bins, where 0.5 were expected"
        assert page.inner_text("#done") == f"2 of 3 bins done: {found}"
        assert page.locator("#found td").all_inner_texts()[0] == "2"


def test_a_server_that_is_gone_loses_no_count(browser: Browser, tmp_path: Path) -> None:
    audit = made_audit(tmp_path)
    with reviewed(audit) as server, opened(browser, server, failing=("ERR_CONNECTION",)) as page:
        shows(page, "B-0")
        server.process.kill()
        server.process.wait()
        page.keyboard.press("3")
        page.keyboard.press("Enter")
        expect(page.locator("#message")).to_contain_text("The server does not answer")
        assert page.inner_text("#counted") == "3"
        with reviewed(audit, "--port", server.url.rpartition(":")[2]):
            page.keyboard.press("Enter")
            shows(page, "B-1")
            assert page.locator("#message").is_hidden()
    assert [row["counted"] for row in read_rows(tmp_path / "corrections.csv")] == ["3"]


@pytest.mark.parametrize("size", SIZES)
def test_names_and_notes_are_text(browser: Browser, tmp_path: Path, size: dict[str, int]) -> None:
    script = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    long = "W" * 150
    (tmp_path / "0.jpg").write_bytes(photo_bytes(0))
    audit = write_audit(
        tmp_path / "audit.csv",
        [
            Audited(script, "0.jpg", note=script),
            Audited(long, f"{long}.jpg", note=long),
            Audited("c", "../c.jpg", reason=script),
        ],
    )
    with reviewed(audit) as server, opened(browser, server, failing=("404", "403"), viewport=size) as page:
        shows(page, script)
        assert page.inner_text("#notes dd") == script
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        expect(page.locator("#title")).to_have_text(f"Bin {long}")
        expect(page.locator("#no-photo")).to_contain_text("is not in the folder of photos")
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        expect(page.locator("#verdict")).to_have_text(f"Not judged: {script}.")
        expect(page.locator("#no-photo")).to_have_text("../c.jpg leads out of the folder of photos; it is not shown.")
        assert page.locator("img, script").count() == 2


@pytest.mark.parametrize("size", SIZES)
def test_where_the_model_looked_is_lit(browser: Browser, tmp_path: Path, size: dict[str, int]) -> None:
    audit = made_audit(tmp_path)
    (tmp_path / "photos" / "1.jpg").write_bytes(b"no photo")
    shade = (
        "() => { const canvas = document.getElementById('heat'), { width, height } = canvas;"
        "return [...canvas.getContext('2d').getImageData(0, 0, width, height).data].filter((_, i) => i % 4 == 3); }"
    )
    with (
        reviewed(audit, "--ckpt-path", str(RUN)) as server,
        opened(browser, server, failing=("422",), viewport=size) as page,
    ):
        answer = server.ask("GET", f"/attention/{page.evaluate(PHOTO)}").json()
        assert (answer["width"], answer["height"]) == (32, 32)
        assert page.locator("#heat").is_hidden()
        page.keyboard.press("l")
        expect(page.locator("#looked")).to_have_text(f"What is lit spoke for {answer['count']}.", timeout=60_000)
        shades = page.evaluate(shade)
        assert max(shades) > min(shades)
        photo, heat, others = (page.locator(name).bounding_box() for name in ("#photo", "#heat", "#others"))
        assert photo == heat and others and others["y"] + others["height"] <= size["height"]
        page.keyboard.press("1")
        page.keyboard.press("Enter")
        expect(page.locator("#title")).to_have_text("Bin B-1")
        expect(page.locator("#looked")).to_contain_text("The photo cannot be read (not a JPEG, PNG or WebP image)")
        assert page.locator("#heat").is_hidden()
        page.click("#attention")
        assert page.inner_text("#looked") == ""
        page.route("**/attention/*", lambda route: None)
        page.click("#attention")
        expect(page.locator("#looked")).to_have_text("Finding out …")
        with page.expect_event("requestfailed"):  # the server need not go on
            page.click("#attention")
        assert page.inner_text("#looked") == ""
