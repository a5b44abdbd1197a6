"""Time to accuracy: a bincounter run beside a tuned plain loop, same network, photos and sides, for several seeds.

    python benchmarks/time_to_accuracy.py                    ResNet18 from scratch at 96 pixels, 3 seeds
    python benchmarks/time_to_accuracy.py --network efficientnet_lite0    with ImageNet weights, at 128 pixels
    python benchmarks/time_to_accuracy.py --key a=1 --key b  settings of train.py in the place of those below

The loop is the tuned one of benchmarks/training.py for a number of epochs, with AdamW, warm-up and a cosine, as
train.py has it by default. Its photos are decoded once per run, into memory. A bincounter run is the whole command,
from an empty cache: preparation, training, scores, report. Both take real photos with counts 1 to 5, dealt once into
sides without near-copies of each other, and are scored on the same test photos, which neither uses to choose anything.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from training import LOOPS, PHOTOS, REPOSITORY, machine, real_photos, run
from training_loops import CLASSES

import bincounter

COMMON = (
    "data.augmentation={rotation:0,scale:0,brightness:0,contrast:0,saturation:0}",  # the tuned loop has as little
    "model.average_flips=true",
    "optimized_metric=val/cross_entropy",  # the accuracy of 333 photos would choose an epoch at random
)
# Of each network: of the tuned loop, and of bincounter.
TUNED: dict[str, dict[str, Any]] = {
    "resnet18": {"size": 96, "epochs": 12, "lr": 1e-3, "bf16": True},
    "efficientnet_lite0": {"size": 128, "epochs": 5, "lr": 6e-4, "bf16": False},  # which is slower on CPUs
}
RECIPES = {
    "resnet18": (
        *("data.image_size=96", "model.weights=null", "trainer.max_epochs=7"),
        *("data.progressive.start_size=64", "data.progressive.until=1"),
    ),
    "efficientnet_lite0": (
        *("data.image_size=128", "trainer.precision=32-true", "trainer.max_epochs=3"),
        # The first stages, which have half of the cost and 2 % of the parameters, keep their weights.
        *("model.trained=last_stages", "model.stages=4"),
        *("model/optimizer=sam", "model.optimizer.lr=1e-3", "trainer.gradient_clip_val=5"),
        *("data.progressive.start_size=96", "data.progressive.until=0.67", "callbacks=[default,ema]"),
        "callbacks.ema.decay=0.98",
    ),
}


def main() -> None:
    """Print a row per seed and loop, then the means and ratios as one JSON object."""
    options = _options()
    print(machine(bf16=TUNED[options.network]["bf16"]), flush=True)
    rows: dict[str, list[tuple[float, float, float]]] = {"tuned": [], "bincounter": []}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        print(_deal(folder), flush=True)
        for seed in options.seeds:
            for loop in options.loops:
                learn = _tuned if loop == "tuned" else _bincounter
                seconds, scores = learn(folder, seed, options)
                accuracy, loss = 100 * scores["accuracy"], scores["cross_entropy"]
                rows[loop].append((seconds, accuracy, loss))
                print(f"seed {seed}  {loop:12}{seconds:8.1f} s{accuracy:8.2f} %{loss:8.3f} nats", flush=True)
    names = ("seconds", "accuracy", "cross entropy")
    means = {
        loop: dict(zip(names, (round(statistics.mean(column), 3) for column in zip(*found, strict=True)), strict=True))
        for loop, found in rows.items()
        if found
    }
    result: dict[str, Any] = dict(means)
    if len(means) == 2:
        tuned, ours = means["tuned"], means["bincounter"]
        result["times quicker"] = round(tuned["seconds"] / ours["seconds"], 2)
        result["points better"] = round(ours["accuracy"] - tuned["accuracy"], 2)
    print(json.dumps(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run of each loop per seed (0 1 2)")
    parser.add_argument("--network", default="resnet18", choices=TUNED, help="(resnet18)")
    parser.add_argument("--epochs", type=int, help="of the tuned loop (12, of efficientnet_lite0 5)")
    parser.add_argument("--loops", nargs="+", default=["tuned", "bincounter"], help="tuned, bincounter, or both")
    parser.add_argument("--key", action="append", help="setting of train.py; repeat it for several")
    parser.add_argument("--folder", help="where to put files, if not in the system's folder for temporary files")
    return parser.parse_args()


def _deal(folder: Path) -> str:
    """Deal the photos into train, valid and test folders; near-copies stay on one side."""
    data = bincounter.BinDataModule(
        PHOTOS,
        counts=list(range(1, CLASSES + 1)),
        image_size=96,
        split={"fractions": (0.75, 0.05, 0.2)},
        data_dir=folder / "dealt",
    )
    data.prepare()
    counts = {path.stem: (path, count) for path, count in real_photos()}
    said = []
    for side, name in (("training", "train"), ("validation", "valid"), ("test", "test")):
        positions = data.side(side)
        for position in positions:
            path, count = counts[Path(data.manifest.records[position].id).stem]
            target = folder / "bins" / name / str(count)
            target.mkdir(parents=True, exist_ok=True)
            (target / path.name).symlink_to(path)
        said.append(f"{len(positions):,} {name}")
    return ", ".join(said)


def _tuned(folder: Path, seed: int, options: argparse.Namespace) -> tuple[float, dict[str, float]]:
    given = {
        **{"loop": "learn", "model": options.network, "batch_size": 64, **TUNED[options.network]},
        **({"epochs": options.epochs} if options.epochs else {}),
        **{"seed": seed, "folder": str(folder / "bins")},
    }
    started = time.perf_counter()
    output, _, _ = run([sys.executable, LOOPS, json.dumps(given)])
    return time.perf_counter() - started, json.loads(output.splitlines()[-1])


def _bincounter(folder: Path, seed: int, options: argparse.Namespace) -> tuple[float, dict[str, float]]:
    output_dir = folder / f"run-{seed}"
    command = [
        *(sys.executable, str(REPOSITORY / "train.py")),
        # Without their metadata, some photos seem to be near-copies of photos on another side.
        *("data=folders", f"data.source={folder / 'bins'}", "data.split.method=given"),
        *(f"model={options.network}", "data.batch_size=64", "trainer=auto", f"seed={seed}"),
        *(f"paths.output_dir={output_dir}", f"paths.data_dir={folder / f'data-{seed}'}"),
        f"paths.cache_dir={folder / f'data-{seed}' / 'cache'}",
        *(options.key or (*RECIPES[options.network], *COMMON)),
    ]
    started = time.perf_counter()
    run(command)
    seconds = time.perf_counter() - started
    return seconds, json.loads((output_dir / "metrics.json").read_text())["test"]


if __name__ == "__main__":
    main()
