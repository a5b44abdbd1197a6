"""Cost of debugger=tensors: a ResNet50's step with and without the callback at its default settings.

    python benchmarks/debugger.py            12 rounds, 224 pixels, batches of 32; about 5 minutes on 2 cores
    python benchmarks/debugger.py --quick    12 rounds, batches of 8 at 128 pixels

A round is three optimizer steps of one and the same fit, in random order: one as without the callback, one that it
watches and does not record, and one that it records, rules and files included. So whatever else the machine does meets
all three alike. At the default interval n, n - 1 watched steps come to each recorded one; the ratio of their mean to a
bare step is what a run takes longer. Medians are over rounds. A GPU's steps are measured by the clock, a CPU's in
seconds of its threads, so that others at work on the machine do not count. Photos are random and lie in memory; weights
are random. The precision is that of trainer=auto: bf16 where the hardware multiplies it.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, Dataset

from bincounter.config.debugger_schema import TensorsConfig
from bincounter.debugger.recorder import TensorRecorder
from bincounter.debugger.rule_runner import RuleWatch
from bincounter.debugger.tensor_records import FILES
from bincounter.model.backbones import resnet
from bincounter.model.counter import BinCounter
from bincounter.model.objectives import Classification
from bincounter.training.trainer import resolve_precision, silence_lightning

COUNTS = (1, 2, 3, 4, 5)
KINDS = ("bare", "watched", "recorded")
WARM_UP = 2  # rounds that are not measured


class Photos(Dataset):
    """Random photos, the same few over and over."""

    def __init__(self, photos: int, size: int) -> None:
        self._photos = photos
        self._images = torch.randn(64, 3, size, size, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self._photos

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._images[index % 64], "count": COUNTS[index % len(COUNTS)], "id": str(index)}


class InTurn(L.Callback):
    """Callback that gives the recorder each step in turn as one of the kinds, and times it.

    Args:
        recorder: recorder to measure.
    """

    def __init__(self, recorder: TensorRecorder) -> None:
        self._recorder = recorder
        self._chance = random.Random(0)
        self._started = 0.0
        self._clock = time.perf_counter
        self.seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin."""
        self._clock = time.process_time if pl_module.device.type == "cpu" else time.perf_counter
        self._recorder.on_fit_start(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Choose the kind of this step."""
        _wait(pl_module.device)
        if batch_idx % len(KINDS) == 0:  # the order makes a difference to memory
            self._order = self._chance.sample(KINDS, len(KINDS))
        self._kind = self._order[batch_idx % len(KINDS)]
        self._started = self._clock()
        if self._kind != "bare":
            self._recorder._every = 1 if self._kind == "recorded" else 10**9
            self._recorder.on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor) -> None:
        """Pass the call on, except in a bare step."""
        if self._kind != "bare":
            self._recorder.on_before_backward(trainer, pl_module, loss)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Pass the call on, except in a bare step."""
        if self._kind != "bare":
            self._recorder.on_before_optimizer_step(trainer, pl_module, optimizer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Pass the call on, and stop the clock once the device is done."""
        if self._kind != "bare":
            self._recorder.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        _wait(pl_module.device)
        self.seconds[self._kind].append(self._clock() - self._started)


def main() -> None:
    """Measure, print the table, and the ratios as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds of small batches")
    quick = parser.parse_args().quick
    batch, size, rounds = (8, 128, 12) if quick else (32, 224, 12)
    settings: dict[str, Any] = OmegaConf.to_container(OmegaConf.structured(TensorsConfig))  # type: ignore[assignment]
    interval = settings["every_n_train_steps"]
    silence_lightning()
    with tempfile.TemporaryDirectory(prefix="bincounter-debugger-") as name:
        folder = Path(name)
        timed = InTurn(TensorRecorder(folder, settings, RuleWatch(folder, settings["rules"])))
        device = _fit(timed, batch=batch, size=size, rounds=rounds + WARM_UP)
        written = sum((folder / file).stat().st_size for file in FILES) / (rounds + WARM_UP)
    seconds = {kind: times[WARM_UP:] for kind, times in timed.seconds.items()}
    bare, watched, recorded = (statistics.median(seconds[kind]) for kind in KINDS)
    ratios = [
        (w * (interval - 1) + r) / (interval * b) for b, w, r in zip(*(seconds[kind] for kind in KINDS), strict=True)
    ]
    overall = (watched * (interval - 1) + recorded) / (interval * bare)
    print(f"ResNet50, {size} pixels, batches of {batch}, {device}, {rounds} rounds, a record every {interval} steps")
    print(f"{'':10}{'ms, median':>12}{'over bare':>12}")
    for kind in KINDS:
        median = statistics.median(seconds[kind])
        print(f"{kind:10}{1e3 * median:>12.1f}{median / bare:>12.3f}")
    print(f"a run takes {100 * (overall - 1):.2f} % longer; a record is {written / 1e3:.0f} kB")
    answer = {
        "step_with_over_without": overall,
        "step_with_over_without_median_of_rounds": statistics.median(ratios),
        "recorded_step_over_bare": recorded / bare,
        "watched_step_over_bare": watched / bare,
    }
    print(json.dumps({name: round(value, 4) for name, value in answer.items()}))


def _fit(timed: InTurn, *, batch: int, size: int, rounds: int) -> str:
    """Train for a number of rounds; return the device and the precision."""
    torch.manual_seed(0)
    model = BinCounter(
        resnet("resnet50"),
        Classification(COUNTS),
        torch.optim.AdamW,
        schedule={"name": "constant"},
    )
    precision = resolve_precision("auto", "auto")
    trainer = L.Trainer(
        max_epochs=1,
        precision=precision,  # type: ignore[arg-type]
        callbacks=[timed],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    photos = Photos(batch * rounds * len(KINDS), size)
    trainer.fit(model, DataLoader(photos, batch_size=batch))
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return f"{name}, {precision}"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
