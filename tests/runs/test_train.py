"""train.py and the commands around it, as users run them."""

import codecs
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from bins import square_bins
from commands import REPOSITORY, Run, Start, command, environment
from outputs import read_rows

SMALL = [
    "data=folders",
    "data.image_size=32",
    "data.batch_size=16",
    "model=cnn",
    "model.backbone.width=8",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "callbacks=[none]",
    "+trainer.enable_progress_bar=false",
]
SCORES = {
    "accuracy",
    "rmse",
    "mae",
    "within_one",
    "macro_f1",
    "ece",
    "cross_entropy",
    "n",
    "majority_accuracy",
    "mean_rmse",
}


@pytest.fixture(scope="module")
def bins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return square_bins(tmp_path_factory.mktemp("bins"), photos=160)


@pytest.fixture
def trained(train: Run, bins: Path, tmp_path: Path) -> Path:
    done = train(*SMALL, f"data.source={bins}", f"paths.output_dir={tmp_path / 'run'}")
    assert done.stdout.splitlines()[-1] == str(tmp_path / "run")
    return tmp_path / "run"


def test_run_writes_all_files_and_can_be_scored_and_compared(
    trained: Path, bins: Path, train: Run, run: Run, tmp_path: Path
) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names >= {"config.yaml", "overrides.txt", "provenance.json", "split.csv", "metrics.json", "predictions.csv"}
    assert names >= {"quarantine.csv", "report.html", "checkpoints", "logs"}
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics.keys() >= {"val", "test"}
    assert all(metrics[side].keys() >= SCORES for side in ("val", "test"))
    calibration = metrics["calibration"]
    assert calibration["temperature"] != 1 and metrics["val"]["cross_entropy"] < calibration["cross_entropy"]
    assert "sweep.subdir" not in (trained / "provenance.json").read_text()  # nobody typed it
    split = read_rows(trained / "split.csv")
    assert list(split[0]) == ["id", "count", "group", "split"]
    assert len(split) == 160
    predictions = read_rows(trained / "predictions.csv")
    assert list(predictions[0]) == ["id", "split", "count", "predicted", "expected_count", "p_0", "p_1", "p_2", "p_3"]
    right = [row["count"] == row["predicted"] for row in predictions if row["split"] == "test"]
    assert sum(right) / len(right) == pytest.approx(metrics["test"]["accuracy"])
    assert yaml.safe_load((trained / "config.yaml").read_text())["data"]["image_size"] == 32

    # Every photo of the same source: what it was trained on is said, and its own preprocessing is used.
    checkpoint = f"ckpt_path={trained / 'checkpoints' / 'best.ckpt'}"
    again = tmp_path / "again"
    options = ["data=folders", f"data.source={bins}", "data.split.fractions=[0,0,1]", "trainer=cpu"]
    given = ["train=false", f"ckpt_path={trained}", *options, f"paths.output_dir={again}"]
    refused = train(*given, "model.answer=median", "model.optimizer.lr=0.5", code=2)
    assert "model.answer=median, but the checkpoint has mode: leave model.answer out to score it" in refused.stderr
    done = train(*given)
    trained_on = sum(row["split"] == "train" for row in split)
    assert f"trained on {trained_on} of these 160 photos" in done.stderr
    assert json.loads((again / "provenance.json").read_text())["photos_seen_in_training"] == trained_on
    scored = json.loads((again / "metrics.json").read_text())
    assert set(scored) == {"test", "seen_in_training", "caveats"}
    assert scored["seen_in_training"] == {"test": trained_on}
    caveat = f"The model was trained on {trained_on} of the 160 test photos"
    assert any(caveat in each for each in scored["caveats"])
    page = (again / "report.html").read_text(encoding="utf-8")
    assert f"of 160 test bins counted right, {trained_on} of them seen in training" in page and caveat in page
    assert caveat in done.stdout
    assert scored["test"]["n"] == 160

    # Predictions of the command agree with those of the run.
    done = run("-m", "bincounter", "predict", str(bins), checkpoint, "--csv", str(tmp_path / "counts.csv"))
    counted = {str(Path(row["path"]).relative_to(bins)): row["predicted"] for row in read_rows(tmp_path / "counts.csv")}
    assert len(counted) == 160
    test = [row for row in predictions if row["split"] == "test"]
    assert sum(counted[row["id"]] == row["predicted"] for row in test) >= len(test) - 1  # bf16 may tip a near-tie

    done = run("-m", "bincounter", "compare", str(trained), str(again))
    assert "accuracy" in done.stdout.lower()
    assert "again †" in done.stdout and caveat in " ".join(done.stdout.split())
    assert metrics["caveats"] == []
    facts = json.loads((trained / "provenance.json").read_text())
    assert facts["epochs"] == facts["planned_epochs"] == 2 and facts["resumed_at_epoch"] is None
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert "for 2 epochs, in " in page and "<dt>uncommitted changes</dt>" in page
    assert (trained / "train.log").read_text().count("epoch 1 of 2: train/loss=") == 1


def test_a_run_from_the_weights_of_another_on_another_split(
    trained: Path, bins: Path, train: Run, tmp_path: Path
) -> None:
    further = tmp_path / "further"
    options = ["trainer.check_val_every_n_epoch=2", "trainer.accumulate_grad_batches=99", "trainer.log_every_n_steps=1"]
    weights = [f"model.weights={trained}", "data.split.seed=1"]
    train(*SMALL, f"data.source={bins}", *weights, *options, f"paths.output_dir={further}")
    learnt = {row["id"] for row in read_rows(trained / "split.csv") if row["split"] == "train"}
    held_out = {row["id"] for row in read_rows(further / "split.csv") if row["split"] == "test"}
    scored = json.loads((further / "metrics.json").read_text())
    assert scored["seen_in_training"]["test"] == len(learnt & held_out) > 0
    assert f"The model was trained on {len(learnt & held_out)} of the {len(held_out)} test photos" in str(scored)
    refused = train(*SMALL, f"data.source={bins}", "+trainer.max_steps=3", code=2)
    assert "which come every 8 steps: set trainer.max_steps=8" in refused.stderr
    # An epoch without validation has no scores; the last step of an epoch is logged, also if it is an early one.
    log = (further / "train.log").read_text()
    assert re.search(r"epoch 1 of 2: train/loss=[\d.]+\n", log) and re.search(r"epoch 2 of 2: .* val/accuracy=", log)
    assert [row["step"] for row in read_rows(further / "logs" / "metrics.csv") if row["lr"]] == ["0", "1"]


def test_broken_inputs_do_not_stop_training_and_are_listed(bins: Path, train: Run, run: Run, tmp_path: Path) -> None:
    root = tmp_path / "bins"
    good = sorted(bins.glob("*/*.png"))[:100]
    for path in good:
        target = root / path.relative_to(bins)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (root / "0" / "zero.jpg").write_bytes(b"")
    (root / "0" / "torn.png").write_bytes(good[0].read_bytes()[:200])
    (root / "0" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (root / "0" / "notes.txt").write_text("hello")
    (root / "many").mkdir()
    (root / "many" / "a.png").write_bytes(good[1].read_bytes())
    done = train(*SMALL, f"data.source={root}", f"paths.output_dir={tmp_path / 'run'}")
    listed = {row["path"]: row["reason"] for row in read_rows(tmp_path / "run" / "quarantine.csv")}
    assert set(listed) == {"0/zero.jpg", "0/torn.png", "0/gone.jpg", "0/notes.txt", "many/a.png"}
    assert all(listed.values())
    assert len(read_rows(tmp_path / "run" / "split.csv")) == 100
    assert "5 inputs" in done.stderr

    page = tmp_path / "data.html"
    run(
        "-m",
        "bincounter",
        "explore",
        "data=folders",
        f"data.source={root}",
        f"paths.cache_dir={tmp_path}",
        "--output",
        str(page),
    )
    assert "many/a.png" in page.read_text()


def test_ckpt_path_latest_goes_on_with_the_newest_unfinished_run(bins: Path, train: Run) -> None:
    done = train(*SMALL, f"data.source={bins}", "test=false")
    folder = Path(done.stdout.splitlines()[-1])
    (folder / "metrics.json").unlink()  # as if it had been killed while it was scored
    done = train("ckpt_path=latest")
    assert Path(done.stdout.splitlines()[-1]) == folder
    assert (folder / "metrics.json").exists()


def test_a_multirun_has_a_folder_for_each_job_and_shares_the_split(bins: Path, train: Run, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    done = train(*SMALL, f"data.source={bins}", "trainer.max_epochs=1", "seed=1,2", f"paths.output_dir={sweep}", "-m")
    splits = [(sweep / job / "split.csv").read_text() for job in ("0", "1")]
    assert splits[0] == splits[1]
    assert (sweep / "0" / "report.html").exists()
    accuracy = {job: json.loads((sweep / job / "metrics.json").read_text())["val"]["accuracy"] for job in ("0", "1")}
    best = sorted(accuracy, key=lambda job: -accuracy[job])
    *_, title, header, first, second, last = done.stdout.splitlines()
    assert (title, header.split(), last) == ("2 jobs, best first:", ["folder", "val/accuracy", "seed"], str(sweep))
    rows = [line.split() for line in (first, second)]
    assert rows == [[job, f"{100 * accuracy[job]:.1f}", "%", str(int(job) + 1)] for job in best]


# Each names itself in another way to Lightning, which starts it anew for the second process.
@pytest.mark.parametrize(
    "program",
    [
        ["train.py"],
        [str(Path(sys.executable).parent / "bincounter"), "train"],
        ["-m", "bincounter", "train"],
        ["train.py", "+trainer.strategy=ddp_spawn"],  # its processes are handed the same memory
    ],
    ids=["train.py", "bincounter train", "python -m bincounter train", "ddp_spawn"],
)
def test_two_processes_train_what_one_would_and_score_each_photo_once(
    program: list[str], bins: Path, run: Run, tmp_path: Path
) -> None:
    group = [] if "+trainer.strategy=ddp_spawn" in program else ["trainer=ddp", "trainer.accelerator=cpu"]
    options = [*group, "trainer.devices=2", "data.batch_size=8"]
    paths = [f"paths.cache_dir={tmp_path / 'cache'}", f"paths.output_dir={tmp_path / 'run'}"]
    run(*program, *SMALL, f"data.source={bins}", *options, *paths)
    split = [row["id"] for row in read_rows(tmp_path / "run" / "split.csv") if row["split"] != "train"]
    assert sorted(row["id"] for row in read_rows(tmp_path / "run" / "predictions.csv")) == sorted(split)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    logged = [
        row["val/accuracy"] for row in read_rows(tmp_path / "run" / "logs" / "metrics.csv") if row["val/accuracy"]
    ]
    # What two processes measured together is what one measures on the same checkpoint.
    assert max(map(float, logged)) == pytest.approx(metrics["val"]["accuracy"])


def test_an_s3_source_is_trained_on(bins: Path, train: Run, s3: object, tmp_path: Path) -> None:
    photos = {path.relative_to(bins).as_posix(): path.read_bytes() for path in bins.glob("*/*.png")}
    s3.put("bins", photos)  # type: ignore[attr-defined]
    train(*SMALL, "data=s3", "data.source=s3://bins", f"paths.output_dir={tmp_path / 'run'}")
    assert len(read_rows(tmp_path / "run" / "split.csv")) == 160


def test_a_sweep_with_a_wrong_job_starts_none(bins: Path, train: Run, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    done = train(*SMALL, f"data.source={bins}", "seed=1,-1", f"paths.output_dir={sweep}", "-m", code=2)
    assert "job 1 (" in done.stderr
    assert "seed=-1 is out of range" in done.stderr
    assert not sweep.exists()


def test_sigterm_in_an_accumulation_leaves_a_checkpoint(bins: Path, start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ["trainer.max_epochs=500", "trainer.accumulate_grad_batches=5", "data.batch_size=4", "logger=[none]"]
    paths = [f"paths.output_dir={folder}", f"paths.cache_dir={tmp_path / 'cache'}"]
    process = start("train.py", *SMALL, f"data.source={bins}", *options, *paths)
    while process.poll() is None and not (folder / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    step = int(re.search(r"Stopped by SIGTERM at step (\d+)", errors)[1])  # type: ignore[index]
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == step


@pytest.mark.parametrize("debug", ["default", "fdr", "limit", "overfit", "profiler"])
def test_debug_groups_run(debug: str, bins: Path, train: Run, tmp_path: Path) -> None:
    train(
        *SMALL[:-3],
        f"debug={debug}",
        f"data.source={bins}",
        f"paths.output_dir={tmp_path / 'run'}",
        "data.batch_size=4",
    )
    assert (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["modl=resnet18"], "Unknown setting 'modl'; did you mean 'model'?"),
        (["model=resnet51"], "model=resnet51 is not one of .*; did you mean model=resnet50?"),
        (["data.batchsize=3"], "Unknown setting 'data.batchsize'; did you mean 'data.batch_size'?"),
        (["batch_size=3"], "did you mean 'data.batch_size'?"),
        (["data.batch_size=many"], "data.batch_size: Value 'many'"),
        (["data.batch_size=0"], "data.batch_size=0 is out of range: it must be at least 1"),
        (["data.counts=[0..5]"], r"data.counts\[0\]: .* a range is written out"),
        (["data.counts=[0,1"], "cannot be parsed"),
        (["debugger=tensors", "debugger.layers=head"], r"debugger.layers: .* write it in brackets, as in 'debugger"),
        (["data.counts=[1,1]"], "has a count twice"),
        (["data.split.fractions=[0.8,0.1]"], "three shares"),
        (["data.split.method=grouping"], "did you mean data.split.method=grouped?"),
        (["trainer.max_epoch=5"], "did you mean 'trainer.max_epochs'?"),
        (["+trainer.max_epoch=5"], "did you mean trainer.max_epochs?"),
        (["trainer.max_epochs=abc"], "trainer.max_epochs=abc has the wrong type"),
        (["model.optimizer.lr=-1"], "model.optimizer.lr=-1 is out of range"),
        (["model.optimizer.lr=null"], "model.optimizer.lr=null is out of range"),
        (
            ["model/optimizer=sgd", "model.optimizer.momentum=0"],
            "refused by torch.optim.SGD: Nesterov momentum requires",
        ),
        (["callbacks=early_stopping", "callbacks.early_stopping.monitor=val/acc"], "monitor=val/accuracy?"),
        (["-m", "ckpt_path=a,b"], "resume one at a time"),
        (["model.backbone.nam=resnet18"], "did you mean 'model.backbone.name'?"),
        (["model.backbone._target_=no.such.thing"], "is not callable"),
        (["optimized_metric=val/acuracy"], "did you mean optimized_metric=val/accuracy?"),
        (["hparams_search=optuna", "hparams_search/space=null"], "space=null is not an option: choose one of capstone"),
        (["train=false"], "name it with ckpt_path="),
        (["train=false", "ckpt_path=nothing.ckpt"], "nothing.ckpt is not a file"),
        (["train=false", "ckpt_path=docs"], "docs is not a file"),
        (["paths.output_dir=train.py"], "train.py cannot be a run's folder .file exists"),
        (["paths.model_dir=train.py/x"], "paths.model_dir=train.py/x cannot be created .not a directory"),
        (["paths.cache_dir=train.py"], "paths.cache_dir=train.py is a file: name a folder"),
        (["paths.data_dir=train.py", "paths.cache_dir=data"], "paths.data_dir=train.py is a file: name a folder"),
        (["model=resnet18", "model.weights=/nope"], "model.weights=/nope is not a file"),
        (["model=resnet18", "model.weights=IMAGENET9"], "model.weights=IMAGENET9 is not one of IMAGENET1K_V1"),
        (["data=abid", "model=cnn", "data.source=nowhere", "data.layout.ids=/nope"], "id list /nope cannot be read"),
        (["data=folders"], "data.source is not set"),
        (["data=folders", "data.source=nowhere"], "data.source=nowhere is not a folder"),
        (["ckpt_path=last"], "add paths.output_dir=RUN"),
        (["ckpt_path=last", "paths.output_dir=nowhere"], "has no run to resume"),
        (["trainer=gpu"], "no CUDA GPU is visible here"),
        (["trainer=ddp", "trainer.accelerator=cpu", "trainer.sync_batchnorm=true"], "sync_batchnorm=true needs GPUs"),
        (["trainer.precision=16-true"], "ends in NaN: use 16-mixed or bf16-true"),
        (["trainer.precision=transformer-engine"], "is not one of auto, 16-mixed, bf16-mixed, 32-true, 64-true"),
        (["+trainer.strategy=fsdp"], "a checkpoint here is whole: use trainer=ddp"),
        (["+trainer.enable_checkpointing=false"], "has no effect here: a run always keeps best.ckpt and last.ckpt"),
        (["+trainer.logger=false"], "has no effect here: choose loggers by the group logger"),
        (["+trainer.callbacks=[]"], "has no effect here: choose them by the group callbacks"),
        (["+trainer.default_root_dir=x"], "name the run's folder with paths.output_dir"),
        (["+trainer.limit_val_batches=0"], "leaves nothing to choose the best checkpoint by"),
        (["+trainer.limit_train_batches=0.0"], "leaves nothing to train on"),
        (["trainer.check_val_every_n_epoch=99"], "never validates"),
        (["+trainer.max_steps=0"], "does not train"),
        (["hydra.job.chdir=true"], "hydra.job.chdir=true would look for relative paths in the run's folder: remove it"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_wrong_override_is_answered_in_one_line(
    overrides: list[str], sentence: str, run: Run, tmp_path: Path
) -> None:
    paths = (
        []
        if any("output_dir" in o for o in overrides) or "ckpt_path=last" in overrides
        else [f"paths.output_dir={tmp_path / 'run'}"]
    )
    done = run("train.py", *paths, *overrides, code=2, CUDA_VISIBLE_DEVICES="")
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("Error: ")
    assert re.search(sentence.replace("?", r"\?"), lines[0]), lines[0]
    assert done.stdout == ""


def test_memory_that_runs_out_is_answered_with_a_smaller_batch(bins: Path, tmp_path: Path) -> None:
    overrides = [
        *SMALL,
        f"data.source={bins}",
        "data.batch_size=128",
        "data.image_size=224",
        "model.backbone.width=1024",
        "model.backbone.blocks=1",
    ]
    paths = [f"paths.output_dir={tmp_path / 'run'}", f"paths.cache_dir={tmp_path / 'cache'}"]
    limited = ["bash", "-c", 'ulimit -v 14000000; exec "$@"', "-", sys.executable, "train.py", *overrides, *paths]
    done = subprocess.run(limited, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "start again with data.batch_size=64" in done.stderr.splitlines()[-1]


def test_no_secret_is_written_down(bins: Path, train: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    secret = "+logger.csv.api_key=hunter2"
    train(*SMALL, f"data.source={bins}", secret, f"paths.output_dir={folder}", code=2)  # no logger takes one
    train(
        *SMALL,
        "logger=[csv]",
        f"data.source={bins}",
        "trainer.max_epochs=1",
        "tags=['https://me:hunter2@host/']",
        f"paths.output_dir={folder}",
    )
    texts = [path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file()]
    assert not any("hunter2" in text for text in texts)


def on_terminal(*arguments: str, width: int = 80) -> Iterator[list[str]]:
    """Run ``python ARGUMENTS`` on a terminal; yield its screen before each line is erased, and at the end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    env = {name: value for name, value in environment().items() if name != "COLUMNS"} | {"TERM": "xterm"}
    process = subprocess.Popen(command(*arguments), cwd=REPOSITORY, env=env, stdout=theirs, stderr=theirs)
    os.close(theirs)
    lines, row, column, text = [""], 0, 0, ""
    try:
        decode = codecs.getincrementaldecoder("utf-8")().decode
        while received := _read(ours):
            text += decode(received)
            while piece := re.match(r"\x1b\[([?\d;]*)([A-Za-z])|[^\x1b]", text):
                text = text[piece.end() :]
                code, of, letter = piece[0], piece[1], piece[2]
                if letter == "A":
                    row -= int(of or 1)
                elif letter == "K":
                    yield lines
                    lines[row] = ""
                elif code == "\r":
                    column = 0
                elif code == "\n" or (not letter and column == width):
                    row, column = row + 1, 0
                    lines += [""] * (row == len(lines))
                if not letter and code not in "\r\n":
                    lines[row] = lines[row][:column].ljust(column) + code + lines[row][column + 1 :]
                    column += 1
        yield lines
    finally:
        os.close(ours)
        assert process.wait() == 0, "\n".join(lines)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other end is closed
        return b""


def test_a_terminal_shows_one_bar_at_a_time(bins: Path, tmp_path: Path) -> None:
    settings = [each for each in SMALL if "progress_bar" not in each and "callbacks" not in each]
    paths = [f"data.source={bins}", *(f"paths.{name}_dir={tmp_path / name}" for name in ("data", "output"))]
    bars: list[str] = []
    for screen in on_terminal("train.py", *settings, *paths):
        drawn = [line.strip() for line in screen if "━" in line]
        assert all(re.search(r"[━╸╺] +\d+/\d+", line) for line in drawn), "a bar wraps"
        now = [line for line in drawn if line.startswith("Epoch")]
        assert len(now) <= 1
        bars += [bar for bar in now if bar not in bars]
    assert [line for line in screen if line.startswith("Epoch ") and "━" in line] == []  # each gave way to its line
    epochs = [re.match(r"Epoch (\d+) of 2(, validation)? .*━", bar) for bar in bars]
    assert all(epochs) and list(dict.fromkeys(epoch[1] for epoch in epochs if epoch)) == ["1", "2"]
    ends = [line for line in screen if line.startswith("Epoch ")]
    assert [line.partition(":")[0] for line in ends] == ["Epoch 1 of 2", "Epoch 2 of 2"]
    assert all(len(line.rstrip()) <= 80 for line in ends)
