"""A training step with fewer threads, bound threads, threads that spin, and torch.compile: what does not help on a CPU.

    python benchmarks/step_variants.py

The step is that of benchmarks/training.py's limit, a ResNet18 on one resident batch of 64 photos of 96 pixels: each
variant in a process of its own, in the CPU's own precision and held to AVX2, interleaved in rounds. Seconds a step.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys

from training import LOOPS, machine

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
VARIANTS: dict[str, dict[str, str]] = {
    "as it is": {},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "OMP_PROC_BIND=close": {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"},
    "OMP_WAIT_POLICY=ACTIVE": {"OMP_WAIT_POLICY": "ACTIVE"},
    "torch.compile": {},
}


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="rounds, of which the table has medians (2)")
    rounds = parser.parse_args().rounds
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # steps on a GPU end after the loop has gone on
    print(machine(), flush=True)
    seconds: dict[tuple[str, bool], list[float]] = {}
    for _, name, held in itertools.product(range(rounds), VARIANTS, (False, True)):
        seconds.setdefault((name, held), []).append(_seconds(name, held=held))
    print(f"{'':24}{'own precision':>14}{'AVX2':>8}")
    for name in VARIANTS:
        own, avx2 = (statistics.median(seconds[name, held]) for held in (False, True))
        print(f"{name:24}{own:14.2f}{avx2:8.2f}")


def _seconds(name: str, *, held: bool) -> float:
    """Return the median seconds of a step, without the first two."""
    loop = {"loop": "limit", "model": "resnet18", "size": 96, "batch_size": 64, "frozen": False, "steps": 9}
    loop["compiled"] = name == "torch.compile"
    done = subprocess.run(
        [sys.executable, LOOPS, json.dumps(loop)],
        env=os.environ | VARIANTS[name] | (AVX2 if held else {}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    began = json.loads(done.stdout.splitlines()[-1])["ended"]
    return statistics.median(after - before for before, after in itertools.pairwise(began[2:]))


if __name__ == "__main__":
    main()
