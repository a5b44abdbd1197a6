"""Worth of each part of a recipe: bincounter runs that differ in one setting, on the same photos and split.

    python benchmarks/ablations.py --folder runs                   every row below, one seed
    python benchmarks/ablations.py --folder runs --seeds 0 1 2     three seeds
    python benchmarks/ablations.py --folder runs --rows base lite2
    python benchmarks/ablations.py --folder runs --at-once 8     on a GPU, which one run of this size does not fill
    python benchmarks/ablations.py --folder runs --quick --at-once 2    of a quicker form, a sixth of the time

A row is `experiment=abid_small` with the settings in ROWS, which are also its command. A run that has ended is not run
again, and one that was killed is resumed: the study can be stopped at any time. `--tables` prints what there is. Runs
side by side have a share of the cores each (on Linux), which on CPUs takes 15 % less time than one after the other.

Scores are of the test photos, whose near-copies were on no other side: means over the seeds, and in brackets the
lowest and the highest. Differences are from the row `base` on the same photos and seeds, with a 95 % interval of the
paired bootstrap over the photos. A fifth of the photos is the test side here, twice the default, so that a point can
be told from noise.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from bincounter.training.results import read_results

REPOSITORY = Path(__file__).resolve().parents[1]
PHOTOS = REPOSITORY.parent / "shared" / "abid" / "resized-224"
ROWS: dict[str, tuple[str, ...]] = {
    "base": (),
    "counts above not learnt": ("data.learn_above=0",),
    "counts above as one class": ("data.learn_above=1",),
    "counts above as five classes": ("data.learn_above=5",),
    "adamw alone": ("model/optimizer=adamw",),
    "no squared error": ("objective=classification",),
    "no mirror images": ("model.average_flips=false",),
    "most likely answered": ("model.answer=mode",),
    "no averaged weights": ("~callbacks.ema",),
    "from scratch": ("model.weights=null",),
    "frozen": ("model.trained=frozen", "model.average_flips=false", "~callbacks.ema"),
    "last four stages": ("model.trained=last_stages", "model.stages=4"),
    "96 pixels": ("data.image_size=96",),
    "128 pixels": ("data.image_size=128",),
    "160 pixels": ("data.image_size=160",),
    "224 pixels": ("data.image_size=224",),
    "lite2": ("model=efficientnet_lite2",),
    "cutmix": ("data.augmentation.cutmix=1",),
    "cutmix, twice the epochs": ("data.augmentation.cutmix=1", "trainer.max_epochs={twice_the_epochs}"),
    "mixup": ("data.augmentation.mixup=0.2",),
    "twice the epochs": ("trainer.max_epochs={twice_the_epochs}",),
    "half the learning rate": ("model.optimizer.lr={half_the_lr}",),
    "twice the learning rate": ("model.optimizer.lr={twice_the_lr}",),
    "all layers": ("model.trained=all", "model.optimizer.lr=6e-4"),
    "neighbours softened": ("objective=neighbour",),
    "corn": ("objective=corn",),
    "label smoothing": ("objective.label_smoothing=0.1",),
    "light augmentation": ("data.augmentation={rotation:0,scale:0,brightness:0,contrast:0,saturation:0}",),
    "small, then large": ("data.progressive.start_size=64",),
}
COLUMNS = (
    *("accuracy, %", "difference", "RMSE", "within one, %"),
    *("cross entropy, nats", "difference", "surer half, %", "minutes"),
)
# Near the quick recipe of time_to_accuracy.py. What matters here need not matter in a longer training.
QUICK = (
    *("data.image_size=96", "data.learn_above=0", "trainer.max_epochs=3"),
    *("model.trained=last_stages", "model.stages=4", "model.optimizer.lr=1e-3"),
)


def main() -> None:
    """Run what is missing, and print the table."""
    options = _options()
    runs = [(name, seed) for seed in options.seeds for name in options.rows]
    missing = [run for run in runs if not (_place(options.folder, *run) / "metrics.json").exists()]
    if not options.tables:
        shares = SimpleQueue[set[int]]()
        binds = options.at_once > 1 and hasattr(os, "sched_getaffinity")
        cores = sorted(os.sched_getaffinity(0)) if binds else []
        for k in range(options.at_once):
            shares.put(set(cores[k :: options.at_once]) or set(cores))
        with ThreadPoolExecutor(options.at_once) as pool:
            try:
                list(pool.map(lambda run: _train(options.folder, *run, options.quick, shares), missing))
            finally:
                pool.shutdown(cancel_futures=True)
    print(f"| row | seeds | {' | '.join(COLUMNS)} |\n|---|---|{'---|' * len(COLUMNS)}")
    for name in options.rows:
        seeds = [seed for seed in options.seeds if (_place(options.folder, name, seed) / "metrics.json").exists()]
        if seeds:
            print(_row(options.folder, name, seeds), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the runs (0)")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW", help="(all)")
    parser.add_argument("--quick", action="store_true", help="the quicker form, in its folder quick")
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side (1)")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    options = parser.parse_args()
    if options.quick:
        options.folder /= "quick"
    return options


def _place(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name.replace(',', '').replace(' ', '-')}-{seed}"


def _settings(name: str, quick: bool) -> list[str]:
    """Return the settings of train.py for a row, beside photos, split and seed."""
    epochs, lr = (3, 1e-3) if quick else (5, 2e-3)
    values = {"twice_the_epochs": 2 * epochs, "half_the_lr": lr / 2, "twice_the_lr": lr * 2}
    row = [setting.format_map(values) if "_the_" in setting else setting for setting in ROWS[name]]
    return [*(QUICK if quick else ()), *row]


def _train(folder: Path, name: str, seed: int, quick: bool, shares: SimpleQueue[set[int]]) -> None:
    run = _place(folder, name, seed)
    started = ["ckpt_path=last"] if (run / "config.yaml").exists() else []
    command = [
        *(sys.executable, str(REPOSITORY / "train.py"), "experiment=abid_small", f"data.source={PHOTOS}"),
        *("data.split.fractions=[0.75,0.05,0.2]", f"seed={seed}", *_settings(name, quick), *started),
        *(f"paths.output_dir={run}", f"paths.data_dir={folder / 'data'}"),
    ]
    print(" ".join(command[3:]), flush=True)
    cores = shares.get()
    try:
        subprocess.run(
            command,
            check=True,
            stdout=subprocess.DEVNULL,
            preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
        )
    finally:
        shares.put(cores)


def _row(folder: Path, name: str, seeds: Sequence[int]) -> str:
    runs = {seed: _place(folder, name, seed) for seed in seeds}
    tests = [json.loads((run / "metrics.json").read_text())["test"] for run in runs.values()]
    halves = [next(row["accuracy"] for row in test["coverage"] if row["coverage"] == 0.5) for test in tests]
    seconds = [json.loads((run / "provenance.json").read_text())["seconds"] for run in runs.values()]
    bases = {seed: _place(folder, "base", seed) for seed in seeds if name != "base"}
    bases = {seed: run for seed, run in bases.items() if (run / "metrics.json").exists()}
    pairs = [(_photos(runs[seed]), _photos(base)) for seed, base in bases.items()]
    values = (
        _spread([100 * test["accuracy"] for test in tests], 1),
        _difference([100 * (run[0] - base[0]) for run, base in pairs], 1),
        f"{np.mean([test['rmse'] for test in tests]):.3f}",
        f"{100 * np.mean([test['within_one'] for test in tests]):.1f}",
        _spread([test["cross_entropy"] for test in tests], 3),
        _difference([run[1] - base[1] for run, base in pairs], 3),
        f"{100 * np.mean(halves):.1f}",
        f"{np.mean(seconds) / 60:.1f}",
    )
    return f"| {name} | {len(seeds)} | {' | '.join(values)} |"


def _spread(values: Sequence[float], digits: int) -> str:
    """Mean, and the lowest and highest of the seeds."""
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ({min(values):.{digits}f}-{max(values):.{digits}f})" if len(values) > 1 else mean


def _difference(seeds: Sequence[np.ndarray], digits: int) -> str:
    """Mean of the differences of all photos, and its interval from a bootstrap over the photos."""
    if not seeds:
        return ""
    gain = np.mean(seeds, axis=0)
    drawn = np.random.default_rng(0).integers(len(gain), size=(2000, len(gain)))
    low, high = np.percentile(gain[drawn].mean(1), [2.5, 97.5])
    return f"{gain.mean():+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def _photos(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Of each test photo, in the order of the ids: 1 if it was counted right, and its cross entropy in nats."""
    predictions = read_results(run).predictions
    assert predictions is not None
    test = predictions.of("test")
    order = np.argsort(test.ids)
    return (test.predicted == test.counts)[order].astype(float), -np.log(test.probability_of_truth()[order])


if __name__ == "__main__":
    main()
