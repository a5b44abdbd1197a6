"""Loops of benchmarks/training.py, each run in a process of its own.

Its argument is the JSON of a plain loop, such as ``{"loop": "tuned", ...}``; or its arguments are a file for the times
of steps, and overrides of train.py.
"""

import json
import math
import runpy
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

CLASSES = 5


class Clock(L.Callback):
    """Writes the times at which training steps ended, per epoch, to a JSON file, and beside it the memory at the end.

    Args:
        file: to write; the other has the suffix ``.memory``, and the fields of Linux in kB; none on other systems.
    """

    def __init__(self, file: str) -> None:
        self._file, self._ended = Path(file), list[list[float]]()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin an epoch."""
        self._ended.append([])

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Store the end of the step before, with all that other callbacks and loggers did in it."""
        times = self._ended[-1]
        times.append(now(wait=len(times) in (1, int(trainer.num_training_batches) - 1)))

    def on_train_end(self, *_: Any) -> None:
        """Write the files."""
        self._file.write_text(json.dumps(self._ended))
        status = Path("/proc/self/status")
        fields = (line.partition(":") for line in (status.read_text() if status.exists() else "").splitlines())
        memory = {name: int(text.split()[0]) for name, _, text in fields if name in ("RssAnon", "RssFile")}
        self._file.with_suffix(".memory").write_text(json.dumps(memory))


def device() -> torch.device:
    """A GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def now(*, wait: bool) -> float:
    """Seconds; ``wait``: once a GPU has done all that was asked of it, as only the first and the last of a row do."""
    if wait and device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def has_bf16() -> bool:
    """True if the device multiplies bf16; False on a CPU that is held to AVX2 by ATEN_CPU_CAPABILITY."""
    if device().type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def main() -> None:
    """Print the times of one loop as JSON."""
    if not sys.argv[1].startswith("{"):
        _train(*sys.argv[1:])
        return
    options = json.loads(sys.argv[1])
    if options["loop"] == "prepare":
        print(json.dumps({"seconds": _prepare(options)}))
        return
    if options["loop"] == "learn":
        print(json.dumps(_learn(options)))
        return
    batches = {"plain": _from_files, "tuned": _from_memory, "limit": _resident}[options["loop"]](options)
    print(json.dumps({"ended": _fit(batches, options)}))


def _train(clock: str, *overrides: str) -> None:
    """Run train.py with a clock, which is no setting: beside foreign callbacks no features are stored."""
    fit = L.Trainer.fit

    def timed(trainer: L.Trainer, *arguments: Any, **options: Any) -> None:
        trainer.callbacks.append(Clock(clock))  # type: ignore[attr-defined]
        fit(trainer, *arguments, **options)

    L.Trainer.fit = timed  # type: ignore[method-assign, assignment]
    program = str(Path(__file__).resolve().parents[1] / "train.py")
    sys.argv = [program, *overrides]
    runpy.run_path(program, run_name="__main__")


def _fit(batches: Iterator[tuple[Tensor, Tensor]], options: dict[str, Any]) -> list[float]:
    """Train a network; returns the times at which steps began."""
    plain, frozen = options["loop"] == "plain", options["frozen"]
    model: nn.Module = getattr(models, options["model"])()
    model.fc = nn.Linear(model.fc.in_features, CLASSES)  # type: ignore[union-attr, arg-type]
    if frozen:
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith("fc.")
    if not plain:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model = model.to(device())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, 1e-3) if plain else torch.optim.AdamW(trained, 1e-3, fused=True)
    model.train(plain or not frozen)
    compute = torch.compile(model) if options.get("compiled") else model
    began = []
    for photos, counts in batches:
        began.append(now(wait=len(began) in (1, options["steps"])))
        if len(began) > options["steps"]:
            break
        image, count = photos.to(device(), non_blocking=True), counts.to(device(), non_blocking=True)
        optimizer.zero_grad()
        with torch.autocast(device().type, torch.bfloat16, enabled=not plain and has_bf16()):
            loss = F.cross_entropy(compute(image).float(), count)
        loss.backward()
        optimizer.step()
    return began


def _learn(options: dict[str, Any]) -> dict[str, float]:
    """Train a network with the tuned loop; returns its accuracy and cross entropy on the test folder."""
    torch.manual_seed(options["seed"])
    folder, size, batch = options["folder"], options["size"], options["batch_size"]
    photos, counts = _decoded(f"{folder}/train", size)
    model, mean_std = _network(options["model"])
    model = model.to(device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
    decayed, others = ([p for p in model.parameters() if (p.ndim > 1) is matrix] for matrix in (True, False))
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, options["lr"], fused=True)
    _check_enough(len(photos), batch)
    per_epoch = len(photos) // batch
    total, warmup = options["epochs"] * per_epoch, per_epoch // 2
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            (step + 1) / (warmup + 1)
            if step < warmup
            else 0.01 + 0.99 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
        ),
    )
    bf16 = torch.autocast(device().type, torch.bfloat16, enabled=options["bf16"] and has_bf16())
    for _, (image, count) in zip(range(total), _changed(photos, counts, size, batch, mean_std), strict=False):
        optimizer.zero_grad()
        with bf16:
            loss = F.cross_entropy(model(image).float(), count)
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    photos, counts = _decoded(f"{folder}/test", size)
    mean, std = _normalisation(mean_std)
    with torch.inference_mode(), bf16:
        outputs = [
            model(((part.to(device()).float() - mean) / std).contiguous(memory_format=torch.channels_last))
            for part in photos.split(256)
        ]
    scores = torch.cat(outputs).float().cpu()
    return {
        "accuracy": float((scores.argmax(1) == counts).float().mean()),
        "cross_entropy": float(F.cross_entropy(scores, counts)),
    }


MeanAndStd = tuple[Sequence[float], Sequence[float]]
_IMAGENET: MeanAndStd = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def _network(name: str) -> tuple[nn.Module, MeanAndStd]:
    """A torchvision network from scratch, or timm's Lite0 with the weights of its package; and its normalisation."""
    if name != "efficientnet_lite0":
        return getattr(models, name)(num_classes=CLASSES), _IMAGENET
    import timm

    from bincounter.model.packaged_weights import read_packaged

    model = timm.create_model(f"tf_{name}")
    model.load_state_dict(read_packaged(f"tf_{name}", model.state_dict()))
    model.reset_classifier(CLASSES)
    return model, (model.pretrained_cfg["mean"], model.pretrained_cfg["std"])


def _from_files(options: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches as the published scripts read them: ImageFolder, PIL, no worker processes."""
    size = options["size"]
    changes = [transforms.Resize((size, size)), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    loader = DataLoader(
        ImageFolder(options["folder"], transforms.Compose(changes)), options["batch_size"], shuffle=True, drop_last=True
    )
    _check_enough(len(loader.dataset), options["batch_size"])  # type: ignore[arg-type]
    while True:
        yield from loader


def _from_memory(options: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of photos that were decoded once, flipped and shifted as whole batches."""
    photos, counts = _decoded(options["folder"], options["size"])
    _check_enough(len(photos), options["batch_size"])
    yield from _changed(photos, counts, options["size"], options["batch_size"])


def _check_enough(photos: int, batch: int) -> None:
    """Exit where an endless row of batches would have none."""
    if photos < batch:
        sys.exit(f"{photos} photos are fewer than a batch of {batch}: give the benchmark more")


def _decoded(folder: str, size: int) -> tuple[Tensor, Tensor]:
    """All photos of bin folders as ``uint8[N, 3, S, S]``, and their classes."""
    dataset = ImageFolder(folder, transforms.Compose([transforms.Resize((size, size)), transforms.PILToTensor()]))
    with ThreadPoolExecutor() as pool:
        photos = [photo for photo, _ in pool.map(dataset.__getitem__, range(len(dataset)))]
    return torch.stack(photos), torch.tensor(dataset.targets)


def _normalisation(mean_std: MeanAndStd) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(v, device=device())[:, None, None] * 255 for v in mean_std)


def _changed(
    photos: Tensor, counts: Tensor, size: int, batch: int, mean_std: MeanAndStd = _IMAGENET
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches in random order, mirrored and shifted as whole batches."""
    mean, std = _normalisation(mean_std)
    while True:
        order = torch.randperm(len(photos))
        for start in range(0, len(order) - batch + 1, batch):
            chosen = order[start : start + batch]
            image = (photos[chosen].to(device()).float() - mean) / std
            if torch.rand(()) < 0.5:
                image = image.flip(-1)
            shift = torch.randint(-size // 16, size // 16 + 1, (2,)).tolist()
            image = image.roll(shift, (-2, -1)).contiguous(memory_format=torch.channels_last)
            yield image, counts[chosen].to(device())


def _resident(options: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """One batch again and again."""
    size, batch = options["size"], options["batch_size"]
    image = torch.randn(batch, 3, size, size, device=device()).contiguous(memory_format=torch.channels_last)
    count = torch.randint(CLASSES, (batch,), device=device())
    while True:
        yield image, count


def _prepare(options: dict[str, Any]) -> float:
    """Seconds of bincounter's own preparation: scan, near-copies, split, decoding."""
    import bincounter

    data = bincounter.BinDataModule(options["folder"], image_size=options["size"], data_dir=options["data"])
    started = time.perf_counter()
    data.prepare()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
