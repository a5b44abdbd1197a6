"""Time of a search: trials on cached features against a plain loop.

    python benchmarks/sweep.py            20 trials, 2,000 real photos; about 20 minutes on 2 cores
    python benchmarks/sweep.py --quick    4 trials, 700 photos
    python benchmarks/sweep.py --whole    the plain loop over all photos instead of a slice: 90 minutes

Trials: learning rate, batch size and epochs over a frozen ResNet50 (random weights: the benchmark needs no network,
and the time is the same) at 224 pixels, sampled by ``hparams_search=optuna``. The plain loop trains as the published
scripts do, with the same values: PIL, torchvision transforms, a DataLoader, ResNet50 in fp32, features recomputed in
every epoch for training and validation photos. It is timed on a slice of the photos for every trial, before, between
and after the two halves of the search, and scaled to all photos.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import models, transforms
from training import CLASSES, PHOTOS, REPOSITORY, real_photos, run


def main() -> None:
    """Measure, print the table, and the ratio as one JSON object."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        search = _search(Path(folder), options)
    rows = {
        "search, cache of features included, s": search["cached"],
        "plain loop, s": search["plain"],
        "ratio": search["ratio"],
    }
    for name, value in rows.items():
        print(f"{name:40}{value:12.1f}")
    print(json.dumps({"sweep_speedup": round(search["ratio"], 2)}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 trials, 700 photos")
    parser.add_argument("--whole", action="store_true", help="run the plain loop over all photos")
    options = parser.parse_args()
    options.trials, options.photos, options.slice = (4, 700, 24) if options.quick else (20, 2000, 64)
    return options


def _search(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the search, in two halves, and of the plain loop with its values, timed around them."""
    photos = real_photos()[: options.photos]
    ids = folder / "ids.txt"
    ids.write_text("".join(f"{path.stem}\n" for path, _ in photos))
    plain = _Plain(photos, options.slice)
    before = plain.slice(batch_size=64)
    first = _half(folder, ids, options.trials // 2)
    between = [plain.slice(trial["data.batch_size"]) for trial in _trials(folder)]
    second = _half(folder, ids, options.trials)
    trials = _trials(folder)
    after = [plain.slice(trial["data.batch_size"]) for trial in trials[len(between) :]]
    if options.whole:
        loop = sum(plain.trial(**_plain_values(trial)) for trial in trials)
    else:
        epochs = sum(trial["trainer.max_epochs"] for trial in trials)
        loop = statistics.median([before, *between, *after]) * plain.photos_per_epoch * epochs
    return {"cached": first + second, "plain": loop, "ratio": loop / (first + second)}


def _half(folder: Path, ids: Path, trials: int) -> float:
    """Seconds of the command, which resumes the search up to ``trials``."""
    command = [sys.executable, str(REPOSITORY / "train.py"), "-m", "hparams_search=optuna"]
    settings = {
        "experiment": "capstone_80_10_10",
        "data.source": PHOTOS,
        "data.layout.ids": ids,
        "data.augmentation.flip": "false",
        "model.weights": "null",
        "trainer": "cpu",
        "hparams_search.n_trials": trials,
        "paths.output_dir": folder / "search",
        "paths.data_dir": folder / "data",
    }
    started = time.perf_counter()
    run([*command, *(f"{key}={value}" for key, value in settings.items())])
    return time.perf_counter() - started


def _trials(folder: Path) -> list[dict[str, Any]]:
    """The values of the completed trials so far."""
    storage = f"sqlite:///{folder / 'search' / 'study.db'}"
    study = optuna.load_study(study_name=optuna.get_all_study_names(storage)[0], storage=storage)
    return [trial.params for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]


def _plain_values(trial: dict[str, Any]) -> dict[str, Any]:
    return {
        "lr": trial["model.optimizer.lr"],
        "batch_size": trial["data.batch_size"],
        "epochs": trial["trainer.max_epochs"],
    }


class _Files(Dataset):
    """Dataset that reads photos as the published scripts do."""

    def __init__(self, photos: Sequence[tuple[Path, int]]) -> None:
        self._photos = photos
        self._transform = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, count = self._photos[index]
        with Image.open(path) as photo:
            return self._transform(photo.convert("RGB")), count - 1


class _Plain:
    """The training loop of the published scripts, in fp32, with PyTorch's default number of threads."""

    def __init__(self, photos: list[tuple[Path, int]], slice_size: int) -> None:
        tenth = len(photos) // 10
        self._training, self._validation = photos[: -2 * tenth], photos[-2 * tenth : -tenth]
        self.photos_per_epoch = len(self._training) + len(self._validation)
        self._slice = slice_size

    def slice(self, batch_size: int) -> float:
        """Seconds per photo on some of the photos."""
        training, validation = self._training[: self._slice], self._validation[: self._slice // 8]
        seconds = self._fit(training, validation, lr=0.01, batch_size=batch_size, epochs=1)
        return seconds / (len(training) + len(validation))

    def trial(self, *, lr: float, batch_size: int, epochs: int) -> float:
        """Seconds of a whole trial."""
        return self._fit(self._training, self._validation, lr=lr, batch_size=batch_size, epochs=epochs)

    @staticmethod
    def _fit(
        training: Sequence[tuple[Path, int]],
        validation: Sequence[tuple[Path, int]],
        *,
        lr: float,
        batch_size: int,
        epochs: int,
    ) -> float:
        model = models.resnet50()
        for parameter in model.parameters():
            parameter.requires_grad = False
        width = model.fc.in_features
        model.fc = nn.Sequential(
            nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, CLASSES)
        )
        optimizer = torch.optim.Adagrad(model.fc.parameters(), lr=lr)
        started = time.perf_counter()
        for _ in range(epochs):
            model.train()
            for image, label in DataLoader(_Files(training), batch_size, shuffle=True):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(image), label).backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                right = sum(
                    int((model(image).argmax(1) == label).sum())
                    for image, label in DataLoader(_Files(validation), batch_size)
                )
        assert 0 <= right <= len(validation)
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
