"""Growth: time and memory of preparation and of an epoch over the number of photos.

    python benchmarks/growth.py                            1,000, 10,000 and 100,000 photos as folders
    python benchmarks/growth.py --photos 535234 --shards   as many as ABID has, packed into tar shards first

The photos are real ones, repeated under new names: links to one file. Copies of a photo are a scene, which is the
hardest case for the search for near-copies. Training is that of a small network at 32 pixels, so that an epoch shows
what reading, batching and logging cost. Each command is a process of its own. Memory is the peak of preparation, and
after training that of the process, and that of the decoded photos it has read: pages of a file, which the system takes
back when it needs them.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from training import LOOPS, real_photos, run

_PREPARE = """
import json, sys, time
import bincounter
started = time.perf_counter()
data = bincounter.BinDataModule(sys.argv[1], image_size=32, data_dir=sys.argv[2])
data.prepare()
print(json.dumps(time.perf_counter() - started))
"""


def main() -> None:
    """Print a row per number of photos."""
    options = _options()
    if not Path("/proc/self/status").exists():
        sys.exit("growth.py needs Linux, which tells the memory of a process from that of the files it has read")
    sources = real_photos()
    head = ("photos", "prepare, s", "MB", "again, s", "epoch, s", "photos/s", "MB", "of files, MB")
    print("".join(f"{name:>14}" for name in head), flush=True)
    for number in options.photos:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            _print_row(number, sources, Path(folder), shards=options.shards)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="numbers of photos")
    parser.add_argument("--shards", action="store_true", help="pack them into tar shards, and read those")
    parser.add_argument("--folder", help="where to put them, if not in the system's folder for temporary files")
    return parser.parse_args()


def _print_row(number: int, sources: list[tuple[Path, int]], folder: Path, *, shards: bool) -> None:
    source = folder / "bins"
    for count in {count for _, count in sources}:
        (source / str(count)).mkdir(parents=True)
    for index in range(number):
        path, count = sources[index % len(sources)]
        link = source / str(count) / f"{path.stem}-{index:07d}.jpg"
        try:
            os.link(path, link)
        except OSError:  # another file system, or too many links
            link.symlink_to(path)
    if shards:
        command = [sys.executable, "-m", "bincounter", "prepare", str(folder / "shards"), "--as", "shards"]
        run(
            [
                *command,
                "data=folders",
                f"data.source={source}",
                f"paths.data_dir={folder / 'packed'}",
                "data.cache=false",
            ]
        )
        source = folder / "shards"
    prepare = [sys.executable, "-c", _PREPARE, str(source), str(folder / "data")]
    (cold, _, cold_memory), (warm, _, _) = run(prepare), run(prepare)
    seconds, trained, own, mapped = _epoch(source, folder)
    row = (f"{number:,}", f"{float(cold):.1f}", f"{cold_memory:,}", f"{float(warm):.1f}")
    trained_row = (f"{seconds:.1f}", f"{trained / seconds:,.0f}", f"{own:,}", f"{mapped:,}")
    print("".join(f"{text:>14}" for text in (*row, *trained_row)), flush=True)


def _epoch(source: Path, folder: Path) -> tuple[float, int, int, int]:
    """Seconds and photos of the second epoch of train.py, and its memory at the end in MB: its own, and of files."""
    clock = folder / "clock.json"
    overrides = {
        "data": "shards" if source.name == "shards" else "folders",
        "data.source": source,
        "data.image_size": 32,
        "data.batch_size": 256,
        "model": "cnn",
        "model.backbone.width": 4,
        "model.backbone.blocks": 3,
        "test": "false",
        "trainer": "cpu",
        "trainer.max_epochs": 2,
        "paths.output_dir": folder / "run",
        "paths.data_dir": folder / "data",
    }
    command = [sys.executable, LOOPS, str(clock), *(f"{key}={value}" for key, value in overrides.items())]
    run(command)
    began = json.loads(clock.read_text())[1]
    memory = json.loads(clock.with_suffix(".memory").read_text())
    return began[-1] - began[0], (len(began) - 1) * 256, memory["RssAnon"] // 1024, memory["RssFile"] // 1024


if __name__ == "__main__":
    main()
