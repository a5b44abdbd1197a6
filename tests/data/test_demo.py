"""Rendered demo bins: exact, reproducible, whole or absent - and only countable by counting."""

import json
import os
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from commands import Start
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from warm_python import Started

from bincounter.data.demo.layout import render
from bincounter.data.demo.scene import DemoPhoto, compose
from bincounter.errors import ConfigError, DataError


def pixels(photo: DemoPhoto) -> np.ndarray:
    return np.asarray(photo.image)


def digest(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.jpg"))}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31), index=st.integers(0, 10**6), count=st.integers(0, 5), size=st.sampled_from([32, 48, 96])
)
def test_a_photo_shows_each_of_its_items(seed: int, index: int, count: int, size: int) -> None:
    photo = compose(seed, index, count, size)
    assert photo.image.size == (size, size)
    assert photo.count == len(photo.visible) == count
    assert all(share >= 0.6 for share in photo.visible)


def test_a_photo_follows_from_its_seed_and_index() -> None:
    first = compose(3, 7, 4, 64)
    assert np.array_equal(pixels(first), pixels(compose(3, 7, 4, 64)))
    assert not np.array_equal(pixels(first), pixels(compose(3, 8, 4, 64)))
    assert not np.array_equal(pixels(first), pixels(compose(4, 7, 4, 64)))


def test_a_set_has_equal_numbers_per_count_and_no_photo_twice(tmp_path: Path) -> None:
    root = render(tmp_path / "demo", photos=26, size=48, workers=1)
    photos = digest(root)
    per_count = {count: len(list((root / str(count)).glob("*.jpg"))) for count in range(6)}
    assert per_count == {0: 5, 1: 5, 2: 4, 3: 4, 4: 4, 5: 4}
    assert len(set(photos.values())) == 26
    with Image.open(next(root.rglob("*.jpg"))) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (48, 48))


def test_a_set_is_the_same_with_any_number_of_workers_and_begins_a_larger_one(tmp_path: Path) -> None:
    one = digest(render(tmp_path / "one", photos=60, counts=(0, 3), size=32, workers=1))
    two = digest(render(tmp_path / "two", photos=60, counts=(0, 3), size=32, workers=2))
    some = digest(render(tmp_path / "some", photos=20, counts=(0, 3), size=32, workers=1))
    assert one == two
    assert len(some) == 20
    assert some.items() <= one.items()


def test_a_set_that_is_there_is_kept(tmp_path: Path) -> None:
    root = render(tmp_path / "demo", photos=12, size=32, workers=1)
    (root / "0" / "00000.jpg").write_bytes(b"mine")
    render(tmp_path / "demo", photos=12, size=32, workers=1)
    assert (root / "0" / "00000.jpg").read_bytes() == b"mine"


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    root = render(tmp_path / "demo", photos=12, size=32, workers=1)
    before = digest(root)
    with pytest.raises(DataError, match="other settings"):
        render(root, photos=13, size=32, workers=1)
    assert digest(root) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="not a set of demo bins"):
        render(tmp_path / "mine", photos=12, size=32, workers=1)
    (tmp_path / "empty").mkdir()
    assert len(digest(render(tmp_path / "empty", photos=12, size=32, workers=1))) == 12


@pytest.mark.parametrize(
    "wrong", [{"photos": 5}, {"counts": ()}, {"counts": (1, 1)}, {"counts": (6,)}, {"size": 8}, {"seed": -1}]
)
def test_settings_that_make_no_set_are_refused(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(ConfigError):
        render(tmp_path / "demo", **wrong)
    assert not (tmp_path / "demo").exists()


def rendering(start: Start, root: Path, photos: int, workers: int = 1) -> Started:
    settings = f"Path({str(root)!r}), photos={photos}, size=32, workers={workers}"
    code = f"from pathlib import Path; from bincounter.data.demo.layout import render; render({settings})"
    return start("-c", code)


def test_a_killed_rendering_passes_for_none_and_the_next_one_completes(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "demo"
    process = rendering(start, root, 3000, workers=2)
    try:
        while len(list(tmp_path.rglob("*.jpg"))) < 3:
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        drawing = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert len(drawing) >= 2 and psutil.wait_procs(drawing, timeout=60)[1] == []
    assert not root.exists()
    render(root, photos=12, size=32, workers=1)
    assert len(digest(root)) == 12
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["demo"]
    assert not (tmp_path / ".demo" / "part").exists()


def test_two_processes_that_want_one_set_share_it(start: Start, tmp_path: Path) -> None:
    processes = [rendering(start, tmp_path / "demo", 60) for _ in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert len(digest(tmp_path / "demo")) == 60
    assert json.loads((tmp_path / "demo" / ".demo.json").read_text())["photos"] == 60


def shortcuts(photo: DemoPhoto) -> np.ndarray:
    """Features of a photo that need no counting: brightness, filled area, edge density, colours."""
    image = np.asarray(photo.image, dtype=np.float32) / 255
    grey = image.mean(2)
    steps = [np.abs(np.diff(grey, axis=axis)) for axis in (0, 1)]
    edges = [value for step in steps for value in (step.mean(), (step > 0.1).mean())]
    histogram = [np.histogram(image[..., channel], 16, (0, 1))[0] / grey.size for channel in range(3)]
    return np.concatenate([image.mean((0, 1)), image.std((0, 1)), [photo.filled.mean()], edges, *histogram])


def fitted_accuracy(features: torch.Tensor, counts: torch.Tensor, train: int) -> float:
    """Accuracy of a small network on the photos after the first ``train``, which it is fitted to."""
    torch.manual_seed(0)
    features = (features - features[:train].mean(0)) / (features[:train].std(0) + 1e-6)
    layers = (torch.nn.Linear(features.shape[1], 64), torch.nn.GELU(), torch.nn.Dropout(0.3), torch.nn.Linear(64, 6))
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(model.parameters(), 6e-3, weight_decay=0.1)
    for _ in range(100):
        for batch in torch.randperm(train).split(250):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(features[batch]), counts[batch]).backward()
            optimizer.step()
    guesses = model.eval()(features[train:]).argmax(1)
    return (guesses == counts[train:]).float().mean().item()


def test_brightness_area_edges_and_colours_do_not_tell_the_count() -> None:
    photos, train = 1500, 1000
    counts = [index % 6 for index in range(photos)]
    drawn = map(partial(compose, 0, size=64), range(photos), counts)
    features = torch.tensor(np.stack([shortcuts(photo) for photo in drawn]), dtype=torch.float32)
    accuracy = fitted_accuracy(features, torch.tensor(counts), train)
    assert accuracy < 0.40, f"a model that cannot count reaches {accuracy:.2f}"
    told = torch.nn.functional.one_hot(torch.tensor(counts), 6) + torch.randn(photos, 6)
    assert fitted_accuracy(told, torch.tensor(counts), train) > 0.40, "the model would not see a tell-tale feature"
