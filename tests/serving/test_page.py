"""Page of the local server in a real browser: photos in, counts, bars and heat map out, and no foreign request."""

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from archives import COUNTS, photo
from local_server import LocalServer
from playwright.sync_api import Browser, FilePayload, Page, Route, expect

pytestmark = pytest.mark.browser

_DROP = """([name, type, bytes]) => {
    const files = new DataTransfer();
    files.items.add(new File([new Uint8Array(bytes)], name, { type }));
    document.dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true }));
}"""
_PASTE = """bytes => {
    const files = new DataTransfer();
    files.items.add(new File([new Uint8Array(bytes)], "image.png", { type: "image/png" }));
    document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: files, bubbles: true }));
}"""


@contextmanager
def opened(browser: Browser, served: LocalServer, **options: Any) -> Iterator[Page]:
    """Open the page; afterwards nothing was asked of another host, and nothing failed but what the server refused."""
    served.wait_until_ready()
    context = browser.new_context(**options)
    page = context.new_page()
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(served.url)
    page.wait_for_selector("#about dd")
    yield page
    context.close()
    assert all(url.startswith((served.url, "blob:", "data:")) for url in asked)
    assert [error for error in errors if "422" not in error] == []


def payload(name: str, content: bytes) -> FilePayload:
    """A file as a person picks it."""
    return {"name": name, "mimeType": "image/jpeg", "buffer": content}


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_dropped_photo_is_counted_and_explained(
    browser: Browser, served: LocalServer, width: int, scheme: str
) -> None:
    answer = served.count(photo(3)).json()
    with opened(browser, served, viewport={"width": width, "height": 900}, color_scheme=scheme) as page:
        page.evaluate(_DROP, ["bin.jpg", "image/jpeg", list(photo(3))])
        page.wait_for_selector("#slider:visible", timeout=60_000)
        assert page.inner_text("#count").split()[0] == str(answer["count"])
        assert page.inner_text("#expected") == f"Expected count {answer['expected_count']:.2f}"
        rows = page.locator("#probabilities tbody tr")
        shares = [answer["probabilities"][str(count)] for count in COUNTS]
        assert [row.split() for row in rows.all_inner_texts()] == [
            [str(count), f"{100 * share:.1f}", "%"] for count, share in zip(COUNTS, shares, strict=True)
        ]
        widths = page.locator("#probabilities .meter i").evaluate_all(
            "bars => bars.map(bar => bar.offsetWidth / bar.parentElement.offsetWidth)"
        )
        assert widths == pytest.approx(shares, abs=0.02)
        assert page.locator("tr.likely th").inner_text() == str(answer["count"])
        assert re.fullmatch(r"Answered in \d+ ms\.", page.inner_text("#took"))
        shade = page.evaluate(
            "() => { const canvas = document.getElementById('heat'), { width, height } = canvas;"
            "return [...canvas.getContext('2d').getImageData(0, 0, width, height).data].filter((_, i) => i % 4 == 3); }"
        )
        assert max(shade) > min(shade)
        page.fill("#strength", "0")
        expect(page.locator("#heat")).to_have_css("opacity", "0")
        assert page.locator("#photo").evaluate("image => image.naturalWidth") == 96
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_several_photos_are_listed_with_a_count_each(browser: Browser, served: LocalServer) -> None:
    counts = [served.count(photo(seed)).json()["count"] for seed in range(5)]
    with opened(browser, served) as page:
        page.set_input_files("#files", [payload(f"{seed}.jpg", photo(seed)) for seed in range(5)])
        expect(page.locator("#list strong")).to_have_text([str(count) for count in counts])
        page.locator("#list button").nth(3).focus()
        page.keyboard.press("Enter")
        assert page.inner_text("#of") == "3.jpg"
        assert page.locator("#list button[aria-current=true]").count() == 1
        assert page.inner_text("#count").split()[0] == str(counts[3])


RANGES = [  # probabilities of 0, 1, 2, ...; the sentence, the row of the table, and the columns of the CSV
    (
        [0.02, 0.05, 0.1, 0.17, 0.2, 0.24, 0.22],
        "24 % sure; 83 % likely between 3 and 6.",
        "24 % 3 to 6",
        "3,6,0.830000",
    ),
    ([0.05, 0.93, 0.02], "93 % sure.", "93 % 1", "1,1,0.930000"),
    ([0.26, 0.25, 0.25, 0.24], "26 % sure; any count from 0 to 3 is possible.", "26 % 0 to 3", "0,3,1.000000"),
    ([0.1, 0.5, 0.3, 0.1], "50 % sure; 80 % likely between 1 and 2.", "50 % 1 to 2", "1,2,0.800000"),
]


def test_how_sure_it_is_and_the_range_are_shown_and_saved(
    browser: Browser, served: LocalServer, tmp_path: Path
) -> None:
    names = ["=1+1.jpg", 'a, "b".jpg', "c.jpg", "d.jpg", "@no.txt"]
    with opened(browser, served, viewport={"width": 390, "height": 900}) as page:

        def answer(route: Route) -> None:
            number = int.from_bytes(route.request.post_data_buffer or b"", "big")
            if number == len(RANGES):
                route.fulfill(status=422, json={"error": "No photo."})
                return
            shares = RANGES[number][0]
            expected = sum(count * share for count, share in enumerate(shares))
            count = max(range(len(shares)), key=shares.__getitem__)
            told = {"count": count, "probabilities": dict(enumerate(shares)), "expected_count": expected}
            route.fulfill(json=told)

        page.route("**/invocations", answer)
        page.set_input_files("#files", payload(names[0], bytes([0])))
        expect(page.locator("#sure")).to_have_text(RANGES[0][1])
        assert page.locator("#table").is_hidden()
        page.set_input_files("#files", [payload(names[number], bytes([number])) for number in range(1, 5)])
        expect(page.locator("#counts tbody")).not_to_contain_text("…")
        rows = [" ".join(row.split()) for row in page.locator("#counts tbody tr").all_inner_texts()]
        assert rows[-1] == "@no.txt No photo."
        for number, (shares, sentence, row, _) in enumerate(RANGES):
            page.locator("#list button").nth(number).click()
            assert page.inner_text("#sure") == sentence
            assert ("unsure" in (page.get_attribute("#count", "class") or "")) == (max(shares) < 0.5)
            assert f"{names[number]} {shares.index(max(shares))} {row} " in rows[number]
        with page.expect_download() as saving:
            page.click("#save")
        saving.value.save_as(tmp_path / saving.value.suggested_filename)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    with (tmp_path / "counts.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["photo"] for line in table] == ["'=1+1.jpg", *names[1:4], "'@no.txt"]
    for line, (shares, _, _, columns) in zip(table, RANGES, strict=False):
        assert ",".join((line["low"], line["high"], line["probability_of_range"])) == columns
        assert float(line["probability"]) == max(shares)
    assert table[-1]["problem"] == "No photo."


@pytest.mark.parametrize(("width", "side"), [(1280, 20), (390, 20), (1280, 1000)])
def test_photos_of_any_size_are_shown_at_a_readable_one(
    browser: Browser, served: LocalServer, width: int, side: int
) -> None:
    with opened(browser, served, viewport={"width": width, "height": 900}) as page:
        page.set_input_files("#files", payload("bin.jpg", photo(3, side=side)))
        page.wait_for_function("document.getElementById('photo').naturalWidth > 0")
        shown, heat = (page.locator(name).bounding_box() for name in ("#photo", "#heat"))
        assert shown
        assert min(shown["width"], shown["height"]) >= 250
        assert shown["height"] <= 34 * 16
        assert heat == shown


def test_what_is_no_photo_gets_the_servers_sentence(browser: Browser, served: LocalServer) -> None:
    sentence = served.count(b"no photo").json()["error"]
    with opened(browser, served) as page:
        page.evaluate(_DROP, ["<b>notes</b>.txt", "text/plain", list(b"no photo")])
        expect(page.locator("#count")).to_have_text(sentence)
        assert page.inner_text("#of") == "<b>notes</b>.txt"
        assert page.locator("#probabilities").is_hidden()
        page.evaluate(_PASTE, list(photo(2, "PNG")))
        page.wait_for_selector("#probabilities:visible")
        assert page.inner_text("#of") == "image.png"


def test_page_describes_the_model_and_works_by_keyboard(browser: Browser, served: LocalServer) -> None:
    with opened(browser, served) as page:
        assert page.inner_text("#model") == served.ask("GET", "/ping").json()["model"]
        facts = dict(zip(page.locator("dt").all_inner_texts(), page.locator("dd").all_inner_texts(), strict=True))
        assert facts["Counts it can answer"] == "0 to 3"
        assert facts["Accuracy"] == "87.5 % on test photos of squares"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "files"
    policy = served.ask("GET", "/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
