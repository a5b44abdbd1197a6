"""Files of a run that are cut short or of another kind: one sentence with the file and a next step."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import REPOSITORY, Run
from made_runs import make_run

from bincounter.debugger.rule_runner import rule_overrides
from bincounter.errors import ResourceError, UserError
from bincounter.model.backbones import read_weights
from bincounter.model.build import load_counter
from bincounter.report.compare import compare
from bincounter.serving.application.served_model import ArchiveError, ServedModel
from bincounter.sweep.tuner_search import _metric_by_epoch
from bincounter.training.checkpoint import AtomicCheckpointIO, find_resume_checkpoint
from bincounter.training.results import best_value, read_results
from bincounter.training.resume import stored_config
from bincounter.training.run_folder import find_newest_checkpoint


def _into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


BREAK: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "latin-1": lambda path: path.write_bytes(path.read_bytes() + "é".encode("latin-1")),
    "list": lambda path: path.write_text("[1, 2]\n"),
    "folder": _into_folder,
}


@pytest.mark.parametrize("how", BREAK)
@pytest.mark.parametrize("name", ["config.yaml", "metrics.json", "provenance.json"])
def test_a_run_to_compare_or_report(name: str, how: str, tmp_path: Path) -> None:
    run, other = make_run(tmp_path / "run", photos=60), make_run(tmp_path / "other", photos=60)
    if (name, how) == ("config.yaml", "truncated"):
        (run / name).write_text("data: {counts: [1,")
    else:
        BREAK[how](run / name)
    with pytest.raises(UserError, match=rf"run/{name} (is corrupt|cannot be read) .*: restore it, or score"):
        read_results(run)
    with pytest.raises(UserError, match=name):
        compare([other, run])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", {"test": []}),
        ("metrics.json", {"test": {"n": "many"}}),
        ("metrics.json", {"test": {"n": 3, "accuracy": "high"}}),
        ("metrics.json", {"test": {"n": 3, "intervals": {"accuracy": [0.1]}}}),
        ("metrics.json", {"test": {"n": 3, "per_count": [{"n": 3}]}}),
        ("metrics.json", {"test": {"n": 3, "reliability": [{"n": 3}]}}),
        ("metrics.json", {"test": {"n": 3, "confusion": [[1, 2], [3, 4]], "counts": [1]}}),
        ("provenance.json", {"versions": "new"}),
        ("provenance.json", {"seconds": "many"}),
        ("provenance.json", {"planned_epochs": [3]}),
        ("config.yaml", {"data": {"layout": "folders"}}),
        ("config.yaml", {"data": {"source": [1]}}),
        ("config.yaml", {"model": [1]}),
        ("config.yaml", {"trainer": "auto"}),
    ],
)
def test_values_of_another_type(name: str, content: object, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", photos=60)
    (run / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"{name} is corrupt"):
        read_results(run)


def test_readers_of_a_log_that_is_a_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", photos=60)
    _into_folder(run / "logs" / "metrics.csv")
    for read in (
        read_results,
        lambda run: best_value(run, "val/accuracy", "max"),
        lambda run: _metric_by_epoch(run, "lr"),
    ):
        with pytest.raises(UserError, match=r"run/logs/metrics.csv cannot be read \(.*\): restore it"):
            read(run)


@pytest.mark.parametrize("how", ["empty", "latin-1", "list", "folder"])
def test_a_run_to_resume_or_to_judge(how: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", photos=60)
    BREAK[how](run / "config.yaml")
    for read in (stored_config, lambda folder: rule_overrides(folder, [])):
        with pytest.raises(UserError, match=r"config\.yaml (is corrupt|cannot be read) .* start a new run"):
            read(run)


@pytest.mark.parametrize("how", ["truncated", "empty", "list", "folder"])
def test_a_checkpoint_to_resume_from(how: str, tmp_path: Path) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        shutil.copy(REPOSITORY / "tests" / "assets" / "killed" / "checkpoints" / "last.ckpt", tmp_path / name)
    BREAK[how](tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"last\.ckpt is truncated or not the checkpoint of a run: delete it to resume"):
        find_resume_checkpoint(tmp_path)
    (tmp_path / "best.ckpt").unlink()
    with pytest.raises(UserError, match=r"last\.ckpt .*: restore it from a copy, or start a new run"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
    shutil.rmtree(tmp_path / "last.ckpt", ignore_errors=True)
    torch.save({"state_dict": {}, "callbacks": [], "loops": {}}, tmp_path / "last.ckpt")
    for read in (find_resume_checkpoint, lambda folder: AtomicCheckpointIO().load_checkpoint(folder / "last.ckpt")):
        with pytest.raises(UserError, match="not the checkpoint of a run"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("unable to mmap 400001556 bytes from file <a.ckpt>: Cannot allocate memory (12)"), "not enough"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"), "not enough memory"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("unable to open file <a.ckpt> in read-only mode: Stale file handle (116)"), "stale file handle"),
        (OSError(errno.EIO, "Input/output error"), "input/output error"),
        (PermissionError(errno.EACCES, "Permission denied"), "permission denied"),
    ],
)
def test_a_whole_file_that_cannot_be_read_now(
    error: Exception, reason: str, unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shutil.copy(REPOSITORY / "tests" / "assets" / "killed" / "checkpoints" / "last.ckpt", tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("torch.load", fail)
    for read, kind in (
        (lambda: find_resume_checkpoint(tmp_path), ResourceError),
        (lambda: load_counter(path), ResourceError),
        (lambda: read_weights(str(path)), ResourceError),
        (lambda: ServedModel.load(unpacked), ArchiveError),
    ):
        with pytest.raises(kind, match=rf"cannot be read \({reason}.*\): check memory, disk and permissions") as caught:
            read()
        assert not any(word in str(caught.value) for word in ("truncated", "delete", "damaged"))


@pytest.mark.parametrize("name", ["config.yaml", "overrides.txt", "split.csv", "checkpoints/last.ckpt"])
def test_train_says_so_in_one_sentence(name: str, train: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(REPOSITORY / "tests" / "assets" / "killed", run)
    (run / name).write_bytes(b"\xff\xfe\x00broken: [")
    source = f"data.source={REPOSITORY / 'tests' / 'assets' / 'photos'}"
    done = train("ckpt_path=last", f"paths.output_dir={run}", source, code=2)
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and str(run / name) in errors[0] and "Traceback" not in done.stderr


@pytest.mark.parametrize("made_by", ["overrides.txt", "provenance.json", "config.yaml"])
def test_the_newest_checkpoint_is_never_that_of_a_debug_run(made_by: str, tmp_path: Path) -> None:
    content = {
        "overrides.txt": "model=cnn\ndebug=fdr\n",
        "provenance.json": '{"debug": "mine"}',
        "config.yaml": "trainer: {fast_dev_run: true}\n",
    }
    real, debug = make_run(tmp_path / "real", photos=60), make_run(tmp_path / "debug", photos=60)
    (debug / made_by).write_text(content[made_by])
    for run in (real, debug):
        (run / "checkpoints").mkdir()
        (run / "checkpoints" / "best.ckpt").touch()
    assert find_newest_checkpoint(tmp_path, named_by="ckpt_path") == real / "checkpoints" / "best.ckpt"
    shutil.rmtree(real)
    with pytest.raises(UserError, match="has no checkpoint but those of debug runs"):
        find_newest_checkpoint(tmp_path, named_by="ckpt_path")
