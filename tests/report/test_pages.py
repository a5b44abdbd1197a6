"""Both pages, looked at in a real browser: nothing is fetched, nothing overflows, everything asked for is on screen."""

import json
from pathlib import Path

import pytest
from browser import Visit, visit
from made_data import write_made_data_report
from made_runs import make_run, write_run_report
from playwright.sync_api import Browser

from bincounter.report.compare import compare
from bincounter.report.compare_page import write_comparison

pytestmark = pytest.mark.browser
WIDTHS = (390, 1280)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("runs") / "2026-11-20_10-00-00")
    return write_run_report(run, explained=True)


@pytest.fixture(scope="module")
def data_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_made_data_report(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    runs = [make_run(folder / f"2026-11-20_10-00-0{number}", lr=0.1 * number, seed=number) for number in range(5)]
    return write_comparison(folder / "compare.html", compare(runs))


def check_layout(seen: Visit, width: int) -> None:
    """Nothing was fetched, nothing failed, every image decoded, nothing wider than the window."""
    assert seen.requests == []
    assert seen.errors == []
    sizes = seen.page.evaluate("[...document.images].map(image => [image.complete, image.naturalWidth])")
    assert sizes
    assert all(complete and pixels > 0 for complete, pixels in sizes)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", WIDTHS)
def test_report_shows_all_sections(browser: Browser, report: Path, width: int) -> None:
    with visit(browser, report, width=width) as seen:
        check_layout(seen, width)
        headings = seen.page.locator("h2:visible").all_inner_texts()
        plots = seen.page.locator("svg.plot")
        boxes = [plots.nth(i).bounding_box() for i in range(plots.count())]
        mistakes = seen.page.locator(".mistakes figure").count()
        attention = seen.page.locator(".looked img").count()
        links = seen.page.locator("nav a").evaluate_all("all => all.every(a => document.querySelector(a.hash))")
    expected = ["Scores", "Learning", "Where it errs", "Predictions", "Worst mistakes", "Where it looked", "Data"]
    assert headings == [*expected, "Settings"]
    assert len(boxes) == 6  # loss, accuracy, learning rate, reliability, photos kept, count by count
    assert all(box and box["width"] > 200 and box["height"] > 100 for box in boxes)
    assert mistakes == 8
    assert attention == 12  # six photos, each beside its attention
    assert links


@pytest.mark.parametrize("width", WIDTHS)
def test_comparison_shows_all_runs_side_by_side(browser: Browser, comparison: Path, width: int) -> None:
    with visit(browser, comparison, width=width) as seen:
        assert (seen.requests, seen.errors) == ([], [])
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
        headings = seen.page.locator("h2:visible").all_inner_texts()
        boxes = [each.bounding_box() for each in seen.page.locator("table.confusion").all()]
        seen.page.locator("#scores .scroll").evaluate("box => box.scrollLeft = 1000")
        label = seen.page.locator("#scores tbody th").first.bounding_box()
    assert headings == ["Runs", "Scores", "Settings that differ", "Count by count", "Where they err"]
    assert len(boxes) == 5
    assert label and label["x"] >= 0  # it stays where the numbers are scrolled


@pytest.mark.parametrize("width", WIDTHS)
def test_report_of_many_counts_fits_too(browser: Browser, tmp_path: Path, width: int) -> None:
    run = make_run(tmp_path / "run", support=range(31))
    with visit(browser, write_run_report(run), width=width) as seen:
        check_layout(seen, width)
        cells = seen.page.locator("table.confusion td").count()
    assert cells == 31 * 31


@pytest.mark.parametrize("counts", [5, 12, 16])
def test_the_confusion_matrix_is_whole_and_readable_on_a_phone(browser: Browser, tmp_path: Path, counts: int) -> None:
    run = make_run(tmp_path / "run", support=range(counts))
    with visit(browser, write_run_report(run), width=390) as seen:
        cells = seen.page.locator("table.confusion td.right")
        numbers = [text.split()[0] for text in cells.all_inner_texts()]
        size = cells.first.evaluate("cell => parseFloat(getComputedStyle(cell).fontSize)")
        hidden = seen.page.evaluate(
            """() => { const box = document.querySelector('table.confusion').parentElement;
            const cut = [...box.querySelectorAll('td')].filter(cell => cell.scrollWidth > cell.clientWidth + 1);
            return [box.scrollWidth - box.clientWidth, cut.length]; }"""
        )
    confusion = json.loads((run / "metrics.json").read_text())["test"]["confusion"]
    assert numbers == [f"{100 * row[count] / sum(row):.0f}" for count, row in enumerate(confusion)]
    assert size >= 11
    assert hidden == [0, 0]


def test_wrong_predictions_have_the_colour_of_errors_and_a_mark(browser: Browser, report: Path) -> None:
    with visit(browser, report) as seen:
        style = seen.page.locator(".grid .wrong img").first.evaluate(
            "image => [getComputedStyle(image).outlineColor, getComputedStyle(image).outlineStyle]"
        )
        captions = seen.page.locator(".grid .wrong").all_inner_texts()
        right = seen.page.locator(".grid figure:not(.wrong)").all_inner_texts()
        accent = seen.page.evaluate("getComputedStyle(document.querySelector('.kicker')).color")
    assert captions and all("✗" in caption for caption in captions)
    assert right and not any("✗" in caption for caption in right)
    assert style[1] == "dashed" and style[0] != accent


@pytest.mark.parametrize("width", WIDTHS)
def test_data_report_shows_all_sections(browser: Browser, data_report: Path, width: int) -> None:
    with visit(browser, data_report, width=width) as seen:
        check_layout(seen, width)
        headings = seen.page.locator("h2:visible").all_inner_texts()
        rows = seen.page.locator(".strip-row .count").all_inner_texts()
        links = seen.page.locator("nav a").evaluate_all("all => all.every(a => document.querySelector(a.hash))")
    assert headings == ["Counts and splits", "Photos of each count", "Near-copies", "Sizes", "Quarantine", "Source"]
    assert [row.split()[0] for row in rows] == ["1", "2", "3", "4", "5"]
    assert links


def test_pages_follow_the_readers_colour_scheme(
    browser: Browser, report: Path, data_report: Path, comparison: Path
) -> None:
    """On both schemes text, in and outside plots, stands out from its background (WCAG AA asks for 4.5)."""
    contrast = """() => {
        const luminance = colour => {
            const [r, g, b] = colour.match(/[0-9.]+/g).slice(0, 3).map(v => v / 255)
                .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const paper = luminance(getComputedStyle(document.body).backgroundColor);
        const texts = [...document.querySelectorAll('h1, .lead, .kicker, p.note, svg.plot text')];
        return [paper, ...texts.map(text => {
            const style = getComputedStyle(text);
            const ink = luminance(text instanceof SVGElement ? style.fill : style.color);
            return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
        })];
    }"""
    for path in (report, data_report, comparison):
        for dark in (False, True):
            with visit(browser, path, dark=dark) as seen:
                paper, *contrasts = seen.page.evaluate(contrast)
            assert (paper < 0.05) if dark else (paper > 0.8)
            assert min(contrasts) >= 4.5
