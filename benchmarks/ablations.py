"""Worth of each part of a recipe: bincounter runs that differ in one setting, on the same photos and split.

    python benchmarks/ablations.py --folder runs                   every row below, one seed
    python benchmarks/ablations.py --folder runs --seeds 0 1 2     three seeds
    python benchmarks/ablations.py --folder runs --rows base lite2
    python benchmarks/ablations.py --folder runs --at-once 8     on a GPU, which one run of this size does not fill

A row is `experiment=abid_small` with the settings in ROWS, which are also its command. A run that has ended is not run
again, and one that was killed is resumed: the study can be stopped at any time. `--tables` prints what there is.

Scores are of the test photos, whose near-copies were on no other side, means over the seeds. "Difference" is the
accuracy minus that of the row `base` on the same photos and seeds, with a 95 % interval of the paired bootstrap over
the photos. A fifth of the photos is the test side here, twice the default, so that a point can be told from noise.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bincounter.training.results import read_results

REPOSITORY = Path(__file__).resolve().parents[1]
PHOTOS = REPOSITORY.parent / "shared" / "abid" / "resized-224"
ROWS: dict[str, tuple[str, ...]] = {
    "base": (),
    "counts above not learnt": ("data.learn_above=0",),
    "one class above": ("data.learn_above=1",),
    "adamw alone": ("model/optimizer=adamw",),
    "no squared error": ("objective=classification",),
    "no mirror images": ("model.average_flips=false",),
    "most likely answered": ("model.answer=mode",),
    "no averaged weights": ("~callbacks.ema",),
    "from scratch": ("model.weights=null",),
    "frozen": ("model.trained=frozen", "model.average_flips=false", "~callbacks.ema"),
    "first stages kept": ("model.trained=last_stages", "model.stages=5"),
    "first stages kept, 160 pixels": (
        *("model.trained=last_stages", "model.stages=5", "data.image_size=160", "model.optimizer.lr=1e-3"),
    ),
    "96 pixels": ("data.image_size=96",),
    "160 pixels": ("data.image_size=160",),
    "224 pixels": ("data.image_size=224",),
    "lite2": ("model=efficientnet_lite2",),
    "cutmix, 10 epochs": ("data.augmentation.cutmix=1", "trainer.max_epochs=10"),
    "mixup, 10 epochs": ("data.augmentation.mixup=0.2", "trainer.max_epochs=10"),
    "10 epochs": ("trainer.max_epochs=10",),
    "lr 3e-4": ("model.optimizer.lr=3e-4",),
    "lr 1.2e-3": ("model.optimizer.lr=1.2e-3",),
    "neighbours softened": ("objective=neighbour",),
    "corn": ("objective=corn",),
    "label smoothing": ("objective.label_smoothing=0.1",),
    "light augmentation": ("data.augmentation={rotation:0,scale:0,brightness:0,contrast:0,saturation:0}",),
    "small, then large": ("data.progressive.start_size=64",),
}


def main() -> None:
    """Run what is missing, and print the table."""
    options = _options()
    runs = [(name, seed) for seed in options.seeds for name in options.rows]
    missing = [run for run in runs if not (_place(options.folder, *run) / "metrics.json").exists()]
    if not options.tables:
        with ThreadPoolExecutor(options.at_once) as pool:
            try:
                list(pool.map(lambda run: _train(options.folder, *run), missing))
            finally:
                pool.shutdown(cancel_futures=True)
    print(f"{'row':30}seeds accuracy  difference            RMSE  within one  CE     ECE    surer half  hours")
    for name in options.rows:
        seeds = [seed for seed in options.seeds if (_place(options.folder, name, seed) / "metrics.json").exists()]
        if seeds:
            print(_row(options.folder, name, seeds), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the runs (0)")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW", help="(all)")
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side (1)")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    return parser.parse_args()


def _place(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name.replace(',', '').replace(' ', '-')}-{seed}"


def _train(folder: Path, name: str, seed: int) -> None:
    run = _place(folder, name, seed)
    started = ["ckpt_path=last"] if (run / "config.yaml").exists() else []
    command = [
        *(sys.executable, str(REPOSITORY / "train.py"), "experiment=abid_small", f"data.source={PHOTOS}"),
        *("data.split.fractions=[0.75,0.05,0.2]", f"seed={seed}", *ROWS[name], *started),
        *(f"paths.output_dir={run}", f"paths.data_dir={folder / 'data'}"),
    ]
    print(" ".join(command[3:]), flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _row(folder: Path, name: str, seeds: Sequence[int]) -> str:
    runs = [_place(folder, name, seed) for seed in seeds]
    tests = [json.loads((run / "metrics.json").read_text())["test"] for run in runs]
    means = {key: np.mean([test[key] for test in tests]) for key in ("accuracy", "rmse", "within_one", "cross_entropy")}
    half = np.mean([next(row for row in test["coverage"] if row["coverage"] == 0.5)["accuracy"] for test in tests])
    hours = np.mean([json.loads((run / "provenance.json").read_text())["seconds"] for run in runs]) / 3600
    return (
        f"{name:30}{len(seeds):5}{means['accuracy']:9.1%}  {_difference(folder, name, seeds):20}{means['rmse']:6.3f}"
        f"{means['within_one']:12.1%}{means['cross_entropy']:7.3f}{np.mean([test['ece'] for test in tests]):7.1%}"
        f"{half:12.1%}{hours:7.2f}"
    )


def _difference(folder: Path, name: str, seeds: Sequence[int]) -> str:
    """Points of accuracy above the row ``base``, with the interval of a bootstrap over the photos."""
    shared = [seed for seed in seeds if (_place(folder, "base", seed) / "metrics.json").exists()]
    if name == "base" or not shared:
        return ""
    right, base = (np.mean([_right(_place(folder, row, seed)) for seed in shared], axis=0) for row in (name, "base"))
    gain = right - base
    drawn = np.random.default_rng(0).integers(len(gain), size=(2000, len(gain)))
    low, high = np.percentile(gain[drawn].mean(1), [2.5, 97.5])
    return f"{100 * gain.mean():+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _right(run: Path) -> np.ndarray:
    """True for each test photo that was counted right, in the order of the ids."""
    predictions = read_results(run).predictions
    assert predictions is not None
    test = predictions.of("test")
    return (test.predicted == test.counts)[np.argsort(test.ids)]


if __name__ == "__main__":
    main()
