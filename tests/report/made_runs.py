"""Run folders made on the fly: the files a real run leaves, with invented but consistent numbers and drawn photos."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image, ImageDraw

from bincounter.debugger.rule import read_verdicts
from bincounter.model.scores import score
from bincounter.profiler.profile_facts import read_profile
from bincounter.report.report import write_report
from bincounter.report.report_photos import select_photos
from bincounter.training.per_count_table import write_per_count
from bincounter.training.results import read_results
from bincounter.training.scoring import ScoredPhotos, per_count_rows

SUPPORT = (1, 2, 3, 4, 5)
SHARES = (0.11, 0.22, 0.27, 0.23, 0.17)
CONFIG: dict[str, Any] = {
    "task_name": "capstone",
    "seed": 0,
    "data": {"source": "bins", "counts": list(SUPPORT), "image_size": 96, "batch_size": 64},
    "model": {
        "backbone": {"_target_": "bincounter.model.backbones.resnet", "name": "resnet18"},
        "weights": None,
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1e-3, "weight_decay": 0.05},
    },
    "trainer": {"max_epochs": 8, "accelerator": "cpu"},
}


def make_run(
    path: Path,
    *,
    skill: float = 1.6,
    seed: int = 0,
    photos: int = 900,
    lr: float = 1e-3,
    prefix: str = "bin-",
    support: Sequence[int] = SUPPORT,
) -> Path:
    """Write a finished run's folder.

    Args:
        path: the folder.
        skill: how far the model's answers follow the truth; 0 is guessing.
        seed: of the answers; the photos and splits are the same for all.
        photos: in all splits together.
        lr: goes into the configuration.
        prefix: of the photos' ids.
        support: the counts.
    """
    shares = SHARES if tuple(support) == SUPPORT else np.full(len(support), 1 / len(support))
    path.mkdir(parents=True)
    data, answers = np.random.default_rng(7), np.random.default_rng(seed)
    counts = data.choice(support, photos, p=shares)
    splits = data.choice(["train", "validation", "test"], photos, p=[0.6, 0.2, 0.2])
    ids = [f"{prefix}{number:05}" for number in range(photos)]
    distance = np.abs(np.array(support) - counts[:, None])
    logits = -skill * distance**0.8 + answers.normal(0, 0.9, distance.shape) + np.log(shares)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    train_counts = Counter(counts[splits == "train"].tolist())
    metrics = {
        name: score(
            torch.tensor(probabilities[splits == split]), counts[splits == split].tolist(), support, train_counts
        )
        for name, split in (("val", "validation"), ("test", "test"), ("train", "train"))
    }
    (path / "metrics.json").write_text(json.dumps(metrics))
    sides = {split: splits == split for split in ("train", "validation", "test")}
    answered = {
        split: ScoredPhotos(
            ids, torch.tensor(counts[side]), torch.tensor(probabilities[side]), torch.tensor(probabilities[side]).log()
        )
        for split, side in sides.items()
    }
    by_count = {split: Counter(counts[side].tolist()) for split, side in sides.items()}
    write_per_count(path, per_count_rows(by_count, answered, support, "mode"))
    config = {**CONFIG, "model": {**CONFIG["model"], "optimizer": {"lr": lr}}, "paths": {"output_dir": str(path)}}
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (path / "overrides.txt").write_text(f"model=resnet18\nmodel.weights=null\nmodel.optimizer.lr={lr}\n")
    provenance = {
        "command": ["train.py", "model=resnet18"],
        "commit": "0123456789abcdef",
        "versions": {"torch": "2.14.1"},
    }
    (path / "provenance.json").write_text(json.dumps(provenance))
    _write_csv(
        path / "split.csv", ["id", "count", "group", "split"], zip(ids, counts, range(photos), splits, strict=True)
    )
    scored = np.flatnonzero(splits != "train")
    rows = [
        [
            ids[i],
            splits[i],
            counts[i],
            support[probabilities[i].argmax()],
            probabilities[i] @ support,
            *probabilities[i],
        ]
        for i in scored
    ]
    names = ["id", "split", "count", "predicted", "expected_count", *(f"p_{count}" for count in support)]
    _write_csv(path / "predictions.csv", names, rows)
    refused = [["3/scan.jpg", "truncated"], ["3/empty.jpg", "empty file"], ["notes/todo.txt", "not an image"]]
    _write_csv(path / "quarantine.csv", ["path", "reason"], refused)
    _write_log(path / "logs" / "metrics.csv")
    return path


def _write_log(path: Path, epochs: int = 8, steps: int = 84) -> None:
    """Write what Lightning's CSVLogger writes: one column per metric ever logged, most of them empty in each row."""
    names = ["epoch", "step", "lr", "train/loss_step", "train/loss_epoch", "val/loss", "val/accuracy", "val/rmse"]
    rows: list[list[object]] = []
    for epoch in range(epochs):
        for step in range(epoch * steps, (epoch + 1) * steps, 6):
            rate = 1e-3 * min(step / 42, 0.5 + 0.5 * np.cos(np.pi * step / (epochs * steps)))
            rows.append(["", step, rate, "", "", "", "", ""])
            rows.append([epoch, step, "", 1.6 - 0.001 * step, "", "", "", ""])
        end = (epoch + 1) * steps - 1
        accuracy = 0.24 + 0.13 * (1 - np.exp(-epoch / 3))
        rows.append([epoch, end, "", "", "", 1.62 - 0.02 * epoch + 0.003 * epoch**2, accuracy, 1.5 - 0.04 * epoch])
        rows.append([epoch, end, "", "", 1.64 - 0.05 * epoch, "", "", ""])
    path.parent.mkdir()
    _write_csv(path, names, rows)


def _write_csv(path: Path, names: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(rows)


def drawn_photo(photo_id: str, size: tuple[int, int] = (480, 400)) -> bytes:
    """Draw a bin with some boxes, as a JPEG; the same for the same id."""
    rng = np.random.default_rng(sum(photo_id.encode()) * 977 + len(photo_id))
    image = Image.new("RGB", size, (120 + int(rng.integers(40)), 105, 84))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(1, 6))):
        x, y = rng.integers(0, size[0] * 2 // 3), rng.integers(0, size[1] * 2 // 3)
        w, h = rng.integers(size[0] // 8, size[0] // 3, 2)
        draw.rectangle((int(x), int(y), int(x + w), int(y + h)), fill=tuple(rng.integers(20, 240, 3).tolist()))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def drawn_attention(ids: Sequence[str], side: int = 96) -> dict[str, np.ndarray]:
    """Attention that lies on one spot of each photo."""
    y, x = np.mgrid[:side, :side] / side
    spots = np.random.default_rng(0).uniform(0.25, 0.75, (len(ids), 2))
    return {name: np.exp(-((x - a) ** 2 + (y - b) ** 2) / 0.03) for name, (a, b) in zip(ids, spots, strict=True)}


def write_run_report(run: Path, *, photo: Callable[[str], bytes] | None = drawn_photo, explained: bool = False) -> Path:
    """Write the report of a run's folder, as the command ``train`` does.

    Args:
        run: the folder.
        photo: gives the bytes of a photo by its id; ``None``: all are gone.
        explained: add drawn attention.
    """
    results = read_results(run)
    photos = select_photos(results)
    files = {} if photo is None else {id_: photo(id_) for id_ in photos.ids()}
    heat = drawn_attention([shown.id for shown in photos.explained]) if explained else {}
    verdicts, profile = read_verdicts(run), read_profile(run, results.config)
    return write_report(results, verdicts, profile, replace(photos, files=files, heat=heat))
