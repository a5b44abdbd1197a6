"""CPU time of commands that only answer: help, the composed configuration, completion, a wrong override.

    python benchmarks/startup.py              7 rounds, a minute or two
    python benchmarks/startup.py --training   also the time to the first step of a second run on cached photos

User and system time of each process, medians of interleaved rounds, beside the least that a Hydra app can take: a
Python that imports Hydra, and an app of an empty configuration.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
APP = """
import hydra
from omegaconf import DictConfig

@hydra.main(version_base="1.3", config_path=None)
def app(cfg: DictConfig) -> None:
    pass

app()
"""
STEP = """
import os
import lightning

class Stop(lightning.Callback):
    def on_train_batch_end(self, *_):
        used = os.times()
        print(f"first step: {used.user + used.system:.1f} s of CPU", flush=True)
        os._exit(0)
"""
TRAINING = [
    "experiment=demo",
    "data.layout.photos=1000",
    "trainer=cpu",
    "+callbacks.stop._target_=first_step.Stop",
]
COMPLETION = ["-m", "bincounter", "-sc", "query=bash", "--"]
COMMANDS = {
    "Python that imports Hydra": ["-c", "import hydra, omegaconf"],
    "empty Hydra app, `--cfg job`": ["app.py", "--cfg", "job"],
    "`--help` of all commands": ["-m", "bincounter", "--help"],
    "`runs --help`": ["-m", "bincounter", "runs", "--help"],
    "`train --help`": ["-m", "bincounter", "train", "--help"],
    "`train --cfg job`": ["-m", "bincounter", "train", "--cfg", "job"],
    "`train`, wrong key": ["-m", "bincounter", "train", "data.batchsize=8"],
    "`train`, wrong option": ["-m", "bincounter", "train", "model=resnet"],
    "`train`, wrong type": ["-m", "bincounter", "train", "seed=x"],
    "`train`, wrong value": ["-m", "bincounter", "train", "data.batch_size=0"],
    "`train experiment=...`, wrong key": ["-m", "bincounter", "train", "experiment=capstone_cnn", "foo=1"],
    "`train hparams_search=optuna`, wrong key": ["-m", "bincounter", "train", "hparams_search=optuna", "foo=1"],
    "`train -m`, wrong key": ["-m", "bincounter", "train", "-m", "seed=1,2", "foo=1"],
    "`train data.bat<Tab>`": [*COMPLETION, "bincounter train data.bat"],
    "`deploy --help`": ["-m", "bincounter", "deploy", "--help"],
    "`deploy --cfg job`": ["-m", "bincounter", "deploy", "--cfg", "job"],
    "`deploy`, wrong key": ["-m", "bincounter", "deploy", "nme=x"],
    "`deploy targ<Tab>`": [*COMPLETION, "bincounter deploy targ"],
}


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--training", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "app.py").write_text(APP)
        measured: dict[str, list[float]] = {name: [] for name in COMMANDS}
        for _ in range(options.rounds + 1):  # the first one writes bytecode
            for name, arguments in COMMANDS.items():
                measured[name].append(_cpu_seconds(arguments, folder))
        medians = {name: statistics.median(times[1:]) for name, times in measured.items()}
        print("| command | CPU time, s | of a Python that imports Hydra |\n|---|---|---|")
        for name, seconds in medians.items():
            print(f"| {name} | {seconds:.2f} | {seconds / next(iter(medians.values())):.1f} |")
        if options.training:
            _first_step(Path(folder))


def _cpu_seconds(arguments: Sequence[str], folder: str) -> float:
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    usage = os.wait4(process.pid, 0)[2]
    return usage.ru_utime + usage.ru_stime


def _first_step(folder: Path) -> None:
    """Time the first training step of runs on the photos that the first run has rendered and decoded."""
    (folder / "first_step.py").write_text(STEP)
    command = [sys.executable, "-m", "bincounter", "train", *TRAINING]
    for number in range(4):
        begun = time.monotonic()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        found = re.search(r"first step: (\S+) s of CPU", done.stdout)
        assert found, done.stderr
        if number:
            print(f"first step after {time.monotonic() - begun:.1f} s, {found[1]} s of CPU time")


if __name__ == "__main__":
    main()
