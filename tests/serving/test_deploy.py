"""deploy.py on this machine, as users run it: from a checkpoint to an answer, and down again."""

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import Run, Start
from served_runs import checkpoint_alone
from warm_python import Started

from bincounter.cli.deploy_command import pack_and_check
from bincounter.cli.hydra_app import compose
from bincounter.serving.packing.archive import PackageSettings, package, read_package

Deploy = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that keep all of a module's commands in one folder."""
    root = tmp_path_factory.mktemp("places")
    return [f"paths.{name}_dir={root / name}" for name in ("data", "cache", "log")]


@pytest.fixture
def deploy(run: Run, places: list[str]) -> Deploy:
    def deploy_(*overrides: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        return run("deploy.py", *places, *overrides, code=code)

    return deploy_


@contextmanager
def deployed(start: Start, *overrides: str) -> Iterator[tuple[Started, int]]:
    """A server that ``deploy.py`` started, and its port, once it answers."""
    process = start("deploy.py", *overrides)
    try:
        yield process, int(process.told(r"http://127\.0\.0\.1:(\d+)/invocations")[1])
    finally:
        process.kill()
        process.wait()


def test_a_checkpoint_is_packed_into_its_run_with_the_same_bytes_everywhere_and_compared(
    deploy: Deploy, served_run: Path, tmp_path: Path
) -> None:
    checkpoint = served_run / "checkpoints/best.ckpt"
    done = deploy("action=package", f"ckpt_path={checkpoint}", "parity.photos=4")
    archive = served_run / "endpoint/model.tar.gz"
    assert done.stdout.splitlines()[-1] == str(archive)
    assert re.search(r"Parity: 10 photos, .*bound 0\.0001\.", done.stderr)
    assert [path.name for path in archive.parent.iterdir()] == ["model.tar.gz"]
    packed = read_package(archive)
    assert packed.model in done.stderr
    assert package(checkpoint, PackageSettings(tmp_path / "other.tar.gz", engine="onnxruntime")).digest == packed.digest


def test_from_a_checkpoint_to_an_answer_and_down_again(
    deploy: Deploy, run: Run, start: Start, places: list[str], served_run: Path
) -> None:
    checkpoint = served_run / "checkpoints/best.ckpt"
    photos = served_run.parents[1] / "bins" / "3"
    assert deploy("action=list").stdout == "No server runs on this machine.\n"
    settings = (f"ckpt_path={checkpoint}", "parity.photos=1", "coverage=0.47", "target.port=0")
    with deployed(start, *settings, *places) as (process, port):
        url = f"http://127.0.0.1:{port}/"
        shown = deploy("action=status").stdout.split("\t")
        assert shown[:2] == ["bincounter", url]
        assert deploy("action=list").stdout.split("\t") == shown
        for given in ([], ["target.port=0"], [f"target.port={port}"]):
            asked = deploy("action=invoke", f"input={photos}", *given).stdout.splitlines()
        predict = ("-m", "bincounter", "predict", str(photos), f"ckpt_path={checkpoint}", "--coverage=0.47")
        told = run(*predict).stdout.splitlines()
        assert asked == told
        assert "needs a person" in str(told)
        dry = deploy("action=invoke", f"input={photos}", "dry_run=true").stdout
        assert dry == f"Would post {len(told)} photos to {url}invocations.\n"
        archive = f"archive={served_run}/endpoint/model.tar.gz"
        for overrides, code, said in (
            (
                ["action=invoke", f"input={photos}", "name=second"],
                1,
                f"No server named second runs on this machine; what runs is bincounter at {url}: ",
            ),
            (["action=status", "name=second"], 1, "No server named second runs"),
            (["action=delete", "name=second"], 1, "No server named second runs"),
            (
                ["action=invoke", f"input={photos}", "name=second", f"target.port={port}"],
                1,
                "No server named second runs",
            ),
            (
                ["action=invoke", f"input={photos}", "target.port=1"],
                2,
                f"listens on port {port}, not 1: remove target.port",
            ),
            (
                [archive, "parity.photos=0", "target.port=0"],
                2,
                f"A server named bincounter runs at {url} (process "
                f"{process.pid}): stop it with bincounter deploy action=delete name=bincounter, or add name=",
            ),
            (
                [archive, "parity.photos=0", "name=second", f"target.port={port}"],
                2,
                f"Port {port} is taken by bincounter's server bincounter (process {process.pid}, model ",
            ),
        ):
            done = deploy(*overrides, code=code)
            assert said in done.stderr
            assert len(done.stderr.splitlines()) == 1
        ended = deploy("action=delete").stdout
        assert ended.startswith(f"Stopped {url}")
        assert process.wait(30) == 143
    assert deploy("action=status", code=1).stderr.startswith("Error: No server named bincounter runs on this machine; ")
    done = deploy("action=invoke", f"input={photos}", f"target.port={port}", code=1)
    assert done.stderr.startswith("Error: No server named bincounter runs on this machine; none runs: start it with ")
    state = Path(places[1].partition("=")[2]) / "serving"
    assert {path.name for path in state.iterdir()} == {".lock", "packed.sha256"}


def test_an_archive_without_its_checkpoint_is_taken_as_it_is_and_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = package(checkpoint_alone(tmp_path), PackageSettings(tmp_path / "model.tar.gz"))
    cfg = compose([f"archive={made.path}", "trust=true"], config_name="deploy")
    assert pack_and_check(cfg) == made
    assert "are not compared with training" in caplog.text


def test_sigterm_while_a_checkpoint_is_compared_leaves_no_archive(
    start: Start, served_run: Path, places: list[str]
) -> None:
    elsewhere = served_run.parents[1] / "elsewhere"
    overrides = [f"ckpt_path={served_run}/checkpoints/best.ckpt", f"archive={elsewhere}/model.tar.gz", *places]
    process = start("deploy.py", *overrides)
    until = time.monotonic() + 60
    while not list(elsewhere.glob("*")) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert said.splitlines()[-1] == "Error: Stopped by SIGTERM."
    assert list(elsewhere.iterdir()) == []


def test_dry_runs_say_what_would_be_done_and_do_nothing(deploy: Deploy, served_run: Path, tmp_path: Path) -> None:
    checkpoint = served_run / "checkpoints/best.ckpt"
    for named in (checkpoint, served_run, checkpoint.parent):  # a run's folder is its best checkpoint
        done = deploy(f"ckpt_path={named}", "dry_run=true", f"archive={tmp_path}/model.tar.gz", "target.port=8123")
        assert done.stdout == (
            f"Would pack {checkpoint} into {tmp_path}/model.tar.gz, compare 64 photos, "
            "and serve it on 127.0.0.1, port 8123.\n"
        )
    done = deploy(f"ckpt_path={served_run}", "dry_run=true", "precision=int8", "parity.photos=7")
    assert "model.tar.gz, score it on validation photos, and serve it" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_newest_checkpoint_is_found_and_none_is_said(deploy: Deploy, run: Run, served_run: Path) -> None:
    done = run("deploy.py", "ckpt_path=latest", f"paths.log_dir={served_run.parent}", "dry_run=true")
    assert f"pack {served_run}/checkpoints/best.ckpt" in done.stdout
    assert "give its path with ckpt_path" in deploy("ckpt_path=latest", code=2).stderr
