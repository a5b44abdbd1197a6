"""Training speed: bincounter beside plain PyTorch loops, and beside the limit of the machine, on real photos.

    python benchmarks/training.py            ResNet50 at 224 pixels and ResNet18 at 96, about 40 minutes on 2 cores
    python benchmarks/training.py --quick    ResNet18 alone, fewer steps
    CUDA_VISIBLE_DEVICES= python ...         on the CPU of a machine with a GPU, which is used if there is one

Loops, each in a process of its own, interleaved in rounds; medians of the rounds:

- plain: ImageFolder, PIL, fp32, Adam, as the published scripts are written;
- tuned: the same in channels-last memory order, bf16 where the processor multiplies it, photos decoded once and kept in
  memory, changes of whole batches, a fused optimizer, and no gradients of a frozen backbone;
- bincounter: train.py, with its augmentation, logs and checkpoints, from the end of its first step to its last one;
- limit: the tuned step on one batch that stays in memory;
- on a GPU, bincounter from JPEGs too, which are decoded for every step.

The first step of each is left out. bincounter's frozen backbone computes features once: its row of later epochs trains
the head on them.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from training_loops import CLASSES, device, has_bf16

REPOSITORY = Path(__file__).resolve().parents[1]
LOOPS = str(Path(__file__).with_name("training_loops.py"))
PHOTOS = REPOSITORY.parent / "shared" / "abid" / "resized-224"
TRAINING_PHOTOS = 6664 * 8 // 10  # of a whole epoch, for the column of seconds


@dataclass(frozen=True)
class Setting:
    """One network, as it is trained.

    Attributes:
        steps: of each measurement; ``plain_steps`` of the slow plain loop.
    """

    model: str
    size: int
    batch_size: int
    frozen: bool
    steps: int
    plain_steps: int

    def __str__(self) -> str:
        """Name for the table."""
        return f"{self.model}, {self.size} px, {'frozen' if self.frozen else 'all layers'}"


def main() -> None:
    """Measure, print a table per setting, and the ratios as one JSON object."""
    options = _options()
    scale = 1 if options.quick else 2
    gpu = device().type == "cuda"
    batch, more = (256, 8) if gpu else (64, 1)
    settings = [
        Setting("resnet18", 96, batch, frozen=False, steps=6 * scale * more, plain_steps=3 * scale),
        Setting("resnet18", 96, batch, frozen=True, steps=6 * scale * more, plain_steps=4 * scale),
    ]
    if not options.quick:
        settings += [
            Setting("resnet50", 224, batch // 2, frozen=False, steps=8 * more, plain_steps=2 * scale),
            Setting("resnet50", 224, batch // 2, frozen=True, steps=10 * more, plain_steps=4 * more),
        ]
    print(machine(), flush=True)
    ratios = {}
    with tempfile.TemporaryDirectory() as folder:
        _link_photos(Path(folder) / "bins", options.photos or (20_000 if gpu else 1200))
        for setting in settings:
            ratios[str(setting)] = _measure(setting, Path(folder), options.rounds)
    print(json.dumps(ratios))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ResNet18 alone, fewer steps")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the table has medians (3)")
    parser.add_argument(
        "--photos", type=int, help="real photos to use, again and again under other names (1200; 20000 on a GPU)"
    )
    return parser.parse_args()


def machine(*, bf16: bool = True) -> str:
    """Name the CPU, its capabilities and the precision of training, which is bf16 where wanted and multiplied."""
    if device().type == "cuda":
        return f"{torch.cuda.get_device_name()}, {os.cpu_count()} cores; PyTorch {torch.__version__}"
    names = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_bf16")
    capabilities = torch.cpu.get_capabilities()
    found = [name for name in names if capabilities.get(name)]
    return (
        f"{capabilities.get('cpu_name', 'CPU')}, {torch.get_num_threads()} threads, {', '.join(found)}; kernels for "
        f"{torch.backends.cpu.get_cpu_capability()}; PyTorch {torch.__version__}; tuned, bincounter and limit in "
        f"{'bf16' if bf16 and has_bf16() else 'fp32'}"
    )


def real_photos() -> list[tuple[Path, int]]:
    """Real photos with counts 1 to 5, and their counts, in the order of their names."""
    if not PHOTOS.is_dir():
        sys.exit(f"the photos of ../shared/abid/resized-224 are missing ({PHOTOS})")
    found = []
    for path in sorted((PHOTOS / "bin-images").glob("*.jpg")):
        metadata = PHOTOS / "metadata" / f"{path.stem}.json"
        count = json.loads(metadata.read_text())["EXPECTED_QUANTITY"] if metadata.exists() else None
        if count is not None and 1 <= count <= CLASSES:
            found.append((path, count))
    return found


def _link_photos(folder: Path, number: int) -> None:
    """Arrange real photos as bin folders."""
    found = real_photos()
    for index in range(number):
        path, count = found[index % len(found)]
        (folder / str(count)).mkdir(parents=True, exist_ok=True)
        (folder / str(count) / f"{index // len(found)}-{path.name}").symlink_to(path)


def _measure(setting: Setting, folder: Path, rounds: int) -> dict[str, float]:
    """Photos per second of each loop, printed as a table; returns the ratios."""
    prepared = _loop(setting, folder, "prepare")[0]["seconds"]
    speeds: dict[str, list[float]] = {name: [] for name in ("plain", "tuned", "bincounter", "limit")}
    later: list[float] = []
    from_jpegs: list[float] = []
    memory: dict[str, int] = {}
    for number in range(rounds):
        for name in ("plain", "tuned", "limit"):
            found, memory[name] = _loop(setting, folder, name)
            speeds[name].append(_speed(found["ended"], setting.batch_size))
        first, after, memory["bincounter"] = _bincounter(setting, folder, number)
        speeds["bincounter"].append(first)
        later.append(after)
        if device().type == "cuda" and not setting.frozen:
            from_jpegs.append(_bincounter(setting, folder, number, cache=False)[1])
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    print(f"\n{setting}\n{'':28}{'photos/s':>12}{'s per epoch':>14}{'peak MB':>10}")
    rows = {**medians, "bincounter, later epochs": statistics.median(later)}
    if from_jpegs:
        rows["bincounter, from JPEGs"] = statistics.median(from_jpegs)
    for name, speed in rows.items():
        size = memory[name.partition(",")[0]]
        print(f"{name:28}{speed:12.1f}{TRAINING_PHOTOS / speed:14.1f}{size:10,}")
    count = sum(1 for _ in (folder / "bins").glob("*/*"))
    print(f"bincounter prepared {count:,} photos in {prepared:.1f} s, once", flush=True)
    ours = rows["bincounter"] if setting.frozen else rows["bincounter, later epochs"]
    jpegs = {"from JPEGs, of the limit": round(rows["bincounter, from JPEGs"] / rows["limit"], 3)} if from_jpegs else {}
    return jpegs | {
        "of the limit": round(ours / rows["limit"], 3),
        "of the tuned loop": round(ours / rows["tuned"], 3),
        "later epochs, of the plain loop": round(rows["bincounter, later epochs"] / rows["plain"], 1),
    }


def _speed(ended: list[float], batch_size: int) -> float:
    """Photos per second without the first step."""
    return (len(ended) - 2) * batch_size / (ended[-1] - ended[1])


def _loop(setting: Setting, folder: Path, name: str) -> tuple[dict[str, Any], int]:
    """Run a loop in its process: what it printed, and its peak memory in MB."""
    given = {
        "loop": name,
        "model": setting.model,
        "size": setting.size,
        "batch_size": setting.batch_size,
        "frozen": setting.frozen,
        "steps": setting.plain_steps if name == "plain" else setting.steps,
        "folder": str(folder / "bins"),
        "data": str(folder / "data"),
    }
    output, _, memory = run([sys.executable, LOOPS, json.dumps(given)])
    return json.loads(output.splitlines()[-1]), memory


def _bincounter(setting: Setting, folder: Path, number: int, *, cache: bool = True) -> tuple[float, float, int]:
    """Photos per second of train.py in the first and in later epochs, and its peak memory in MB.

    With a frozen backbone the first is the computation of the features.
    """
    clock = folder / "clock.json"
    overrides = {
        "data": "folders",
        "data.source": folder / "bins",
        "data.image_size": setting.size,
        "data.batch_size": setting.batch_size,
        "data.split.method": "random",
        "model": setting.model,
        "model.weights": "null",
        "test": "false",
        "trainer": "auto",
        "trainer.precision": "bf16-mixed" if has_bf16() else "32-true",
        "data.cache": str(cache).lower(),
        "trainer.max_epochs": 8 if setting.frozen else 2,
        "paths.output_dir": folder / f"run-{setting.model}-{setting.frozen}-{number}-{cache}",
        "paths.data_dir": folder / "data",
    }
    if setting.frozen:  # cached only without augmentation
        names = ("flip", "shift", "scale", "rotation", "brightness", "contrast", "saturation")
        changes = ",".join(f"{name}:{'false' if name == 'flip' else 0}" for name in names)
        overrides |= {"model.trained": "frozen", "data.augmentation": f"{{{changes}}}", "seed": number}
        overrides["data.split.seed"] = 0
    else:
        overrides |= {"+trainer.limit_train_batches": setting.steps, "+trainer.limit_val_batches": 1}
    command = [sys.executable, LOOPS, str(clock), *(f"{key}={value}" for key, value in overrides.items())]
    _, log, memory = run(command)
    epochs = json.loads(clock.read_text())
    later = statistics.median(_speed(ended, setting.batch_size) for ended in epochs[1:])
    if not setting.frozen:
        return _speed(epochs[0], setting.batch_size), later, memory
    made = re.search(
        r"([\d,]+) (?:photos|of them) computed in ([\d.]+) s", log.replace("photos, computed", "photos computed")
    )
    if made is None:
        sys.exit(f"train.py computed no features:\n{log}")
    return int(made[1].replace(",", "")) / float(made[2]), later, memory


def run(command: list[str]) -> tuple[str, str, int]:
    """Run a command; returns its output, its log and its peak memory in MB."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, cwd=REPOSITORY, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        out.seek(0), err.seek(0)
        output, log = out.read(), err.read()
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{output}\n{log}")
    return output, log, usage.ru_maxrss // (1024**2 if sys.platform == "darwin" else 1024)  # bytes there


if __name__ == "__main__":
    main()
