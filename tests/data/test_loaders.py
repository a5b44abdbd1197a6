"""Resources of loaders and of computing threads: shared memory, the CPU quota of a container, pinned memory."""

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made_photos import bin_folders
from served_runs import checkpoint_alone

import bincounter
from bincounter import parallel
from bincounter.data.datamodule import BinDataModule

BATCH = 6 * 3 * 24**2  # bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return bin_folders(tmp_path / "bins", photos=20)


def module(folder: Path, **options: Any) -> BinDataModule:
    data = BinDataModule(folder, image_size=24, batch_size=6, data_dir=folder.parent / "data", **options)
    data.prepare()
    return data


@pytest.mark.parametrize(("batches", "workers"), [(1000, 3), (16, 3), (15, 2), (8, 1), (7, 0)])
def test_workers_fit_into_shared_memory(
    batches: int, workers: int, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = module(folder, cache=False, num_workers=3)
    monkeypatch.setattr(parallel, "_SHARED_MEMORY", folder)
    monkeypatch.setattr(parallel.shutil, "disk_usage", lambda path: SimpleNamespace(free=batches * BATCH))
    with caplog.at_level(logging.WARNING):
        loaders = data.train_dataloader(), data.val_dataloader()
    assert [loader.num_workers for loader in loaders] == [workers, workers]
    assert len(caplog.messages) == (workers < 3)  # once, not for each loader
    assert all(f"room for {workers} of 3 data.num_workers" in text for text in caplog.messages)
    assert all("docker run --shm-size=1g" in text for text in caplog.messages)


@pytest.mark.parametrize(("quota", "threads"), [("150000 100000", 1), ("50000 100000", 1), ("max 100000", 2)])
def test_threads_within_the_cpu_quota_of_a_container(
    quota: str, threads: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(parallel, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(parallel, "_physical", lambda: 4)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(4), raising=False)
    checkpoint = checkpoint_alone(tmp_path)
    try:
        for variable in ("", "2"):  # that of a person stays
            monkeypatch.setenv("OMP_NUM_THREADS", variable)
            torch.set_num_threads(2)
            bincounter.load(checkpoint, device="cpu")
            assert torch.get_num_threads() == (int(variable) if variable else threads)
    finally:
        torch.set_num_threads(before)
    decoders: list[int] = []

    def decoded(function: Any, items: Any, workers: int) -> Iterator[Any]:
        decoders.append(workers)
        return map(function, items)

    monkeypatch.setattr("bincounter.data.scan.map_ordered", decoded)
    module(folder)
    assert decoders == [1 if threads == 1 else 4]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_only_batches_for_a_gpu_are_pinned(device: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    data: Any = module(folder)
    data.trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device(device)), global_rank=0, world_size=1, num_devices=1
    )
    assert data.train_dataloader().pin_memory == data.val_dataloader().pin_memory == (device == "cuda")
