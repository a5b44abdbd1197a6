from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import HOSTILE, made_manifest, write_made_data_report

from bincounter.data.records import Manifest
from bincounter.report.explore import leak, write_data_report


def test_every_photo_of_the_wanted_counts_is_in_the_table(tmp_path: Path) -> None:
    manifest = made_manifest(tmp_path)
    page = write_made_data_report(tmp_path, manifest).read_text()
    counts = np.array([record.count for record in manifest.records])
    for count in range(1, 6):
        assert f"of {(counts == count).sum()} photos" in page
    assert f"{(counts == 0).sum()} with 0." in page
    assert "3 inputs were rejected" in page
    assert "0a1b2c3d4e5f6071" in page


def test_text_from_data_stays_text(tmp_path: Path) -> None:
    page = write_made_data_report(tmp_path).read_text()
    assert HOSTILE not in page
    assert "&lt;script&gt;document.title" in page


def test_same_data_makes_the_same_page(tmp_path: Path) -> None:
    manifest = made_manifest(tmp_path)
    assert (
        write_made_data_report(tmp_path, manifest).read_text() == write_made_data_report(tmp_path, manifest).read_text()
    )


def test_photos_of_one_size_need_no_plot_of_sizes(tmp_path: Path) -> None:
    page = write_made_data_report(tmp_path, made_manifest(tmp_path, varied=False)).read_text()
    assert "All photos are 224 x 224 pixels." in page


def test_photos_that_are_gone_are_said_to_be(tmp_path: Path) -> None:
    manifest = made_manifest(tmp_path)
    for record in manifest.records:
        record.file.path.unlink()
    page = write_made_data_report(tmp_path, manifest).read_text()
    assert "The photo is missing" in page
    assert "data:image" not in page


def test_one_photo_alone(tmp_path: Path) -> None:
    whole = made_manifest(tmp_path)
    alone = Manifest(tmp_path, whole.records[:1], (None,), whole.sizes[:1], whole.content[:1], (), "00")
    one = np.zeros(1, dtype=np.int64)
    page = write_data_report(tmp_path / "data.html", alone, one, one.astype(np.int8), source="bins", settings={})
    text = page.read_text()
    assert "No two photos show the same bin" in text
    assert "none was rejected" in text


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=40),
    shares=st.tuples(st.floats(0.05, 0.9), st.floats(0.05, 0.9)),
)
def test_expected_leak_is_what_random_splits_show(sizes: list[int], shares: tuple[float, float]) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    cuts = np.cumsum([shares[0] / 2, shares[1] / 2])
    assignment = np.searchsorted(cuts, np.arange(len(groups)) / len(groups), side="right").astype(np.int8)
    expected = leak(groups, assignment)
    rng = np.random.default_rng(0)
    seen = [leak(groups, rng.permutation(assignment))["now"] for _ in range(400)]
    error = max(np.std(seen) / np.sqrt(len(seen)), 0.005)
    assert expected["test"] == (assignment == 2).sum()
    assert np.mean(seen) == pytest.approx(expected["expected"], abs=5 * error)


def test_grouped_split_leaks_nothing_and_a_straddling_one_is_counted() -> None:
    groups = np.array([0, 0, 1, 1, 2, 2])
    assert leak(groups, np.array([0, 0, 0, 0, 2, 2]))["now"] == 0
    assert leak(groups, np.array([0, 2, 0, 2, 2, 1])) == pytest.approx({"test": 3, "now": 2, "expected": 3 * 2 / 5})
