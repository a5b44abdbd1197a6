"""The ``DemoBins`` layout and the rendering of a set of demo photos."""

import json
import logging
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from bincounter.data.demo.scene import compose
from bincounter.data.layouts.base import InputFile
from bincounter.data.layouts.folders import Folders
from bincounter.data.records import Listing
from bincounter.errors import ConfigError, DataError
from bincounter.files import lock_folder, write_json
from bincounter.parallel import count_cpus, hidden_script
from bincounter.progress import track

log = logging.getLogger(__name__)

MARKER = ".demo.json"
RENDER_VERSION = 3  # increased when a seed gives other photos, so that old sets are not reused
_JOB = 25  # photos per task of a worker process


@dataclass(frozen=True)
class DemoBins:
    """Rendered bins in bin folders; a layout with a ``make`` method needs no ``data.source``.

    Args:
        photos: number of photos.
        size: width and height in pixels.
        seed: of all scenes.
    """

    photos: int = 3000
    size: int = 128
    seed: int = 0

    def make(self, data_dir: Path) -> Path:
        """Render the photos, unless they exist; returns their folder."""
        return render(self.folder(data_dir), photos=self.photos, size=self.size, seed=self.seed)

    def folder(self, data_dir: Path) -> Path:
        """Folder of the photos, rendered or not."""
        return data_dir / f"demo-{self.photos}-{self.size}-{self.seed}"

    def walk(self, root: Path) -> Iterator[InputFile]:
        """Yield every file, as :class:`Folders`."""
        return Folders().walk(root)

    def list(self, root: Path) -> Listing:
        """List the photos, as :class:`Folders`."""
        return Folders().list(root)


def render(
    root: Path,
    *,
    photos: int = 3000,
    counts: Sequence[int] = (0, 1, 2, 3, 4, 5),
    size: int = 128,
    seed: int = 0,
    workers: int | None = None,
) -> Path:
    """Render a set of demo bins as ``<root>/<count>/<index>.jpg``, unless it exists.

    The folder appears complete or not at all; a second process waits for the first one. The photo of an index does not
    depend on the number of photos: a smaller set is the beginning of a larger one.

    Args:
        root: folder of the set; its settings are kept in ``.demo.json`` inside.
        photos: number of photos, spread evenly over the counts.
        counts: numbers of items, each from 0 to 5.
        size: width and height of a photo in pixels.
        seed: of all scenes.
        workers: processes that draw; ``None`` for all cores, 1 for this process.

    Returns:
        ``root``.

    Raises:
        ConfigError: invalid settings.
        DataError: the folder holds other files.
    """
    root = Path(root)
    _check(photos, counts, size, seed)
    settings = {"drawing": RENDER_VERSION, "photos": photos, "counts": sorted(counts), "size": size, "seed": seed}
    if _is_rendered(root, settings):
        return root
    workspace = root.with_name(f".{root.name}")
    with lock_folder(workspace):
        if _is_rendered(root, settings):
            return root
        aside = workspace / "part"
        shutil.rmtree(aside, ignore_errors=True)  # of a killed rendering: we hold the lock
        _draw_all(aside, settings, workers)
        write_json(aside / MARKER, settings)
        os.sync()  # one flush for thousands of small files
        aside.rename(root)
    log.info("Rendered %d demo bins into %s", photos, root)
    return root


def _check(photos: int, counts: Sequence[int], size: int, seed: int) -> None:
    if not counts or len(set(counts)) != len(counts) or not set(counts) <= set(range(6)):
        raise ConfigError(f"Demo bins hold 0 to 5 items, not {list(counts)}: use distinct counts from 0 to 5.")
    if photos < len(counts):
        raise ConfigError(f"{photos} demo photos are fewer than the {len(counts)} counts: render at least one of each.")
    if not 32 <= size <= 1024:
        raise ConfigError(f"Demo photos of {size} pixels cannot be rendered: use 32 to 1024.")
    if seed < 0:
        raise ConfigError(f"The demo seed {seed} is negative: use 0 or more.")


def _is_rendered(root: Path, settings: dict[str, object]) -> bool:
    """Return True if the folder holds exactly this set, False if it is missing or empty; raises for other contents."""
    try:
        found = json.loads((root / MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if root.exists() and not (root.is_dir() and next(root.iterdir(), None) is None):
            raise DataError(f"{root} exists and is not a set of demo bins: use another folder.") from None
        return False
    except ValueError:
        found = None
    if found != settings:
        raise DataError(f"{root} holds demo bins with other settings: delete that folder or use another one.")
    return True


def _draw_all(folder: Path, settings: dict, workers: int | None) -> None:
    counts, photos = settings["counts"], settings["photos"]
    for count in counts:
        (folder / str(count)).mkdir(parents=True)
    draw = partial(_draw_some, folder, settings)
    jobs = [range(start, min(start + _JOB, photos)) for start in range(0, photos, _JOB)]
    workers = min(workers or count_cpus(), len(jobs))
    if workers == 1:
        for job in track(jobs, "Rendering demo bins", len(jobs)):
            draw(job)
        return
    # spawn: a fork of a process in which torch has started its threads can hang
    spawn = multiprocessing.get_context("spawn")
    with hidden_script(), ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_with_parent) as pool:
        for _ in track(pool.map(draw, jobs), "Rendering demo bins", len(jobs)):
            pass


def _end_with_parent() -> None:
    """End this process when its parent is killed: a pool's processes would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _draw_some(folder: Path, settings: dict, indices: range) -> None:
    counts, seed = settings["counts"], settings["seed"]
    for index in indices:
        count = counts[index % len(counts)]
        image = compose(seed, index, count, settings["size"]).image
        quality = int(np.random.default_rng((seed, index)).integers(70, 93))
        image.save(folder / str(count) / f"{index:05d}.jpg", quality=quality)
