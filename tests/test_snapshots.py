"""Snapshots of command output: tests/snapshots/*.txt hold commands, each with its output and exit code.

A change of these words shows in the difference of the files: UPDATE_SNAPSHOTS=1 pytest -m '' tests/test_snapshots.py
writes down what the commands say now. A file is made of sections, which begin with ``#``; the commands of one run in
turn, in a folder with photos, a run and records of what others cost.

``train.py``, ``deploy.py`` and ``-m bincounter`` are the commands as users type them. ``check train`` and ``check
deploy`` compose a configuration and check it, and carry nothing out, which is quicker. ``config train`` and ``config
deploy`` show what options change in the configuration above them.
"""

import contextlib
import copy
import difflib
import functools
import io
import json
import logging
import os
import re
import runpy
import shlex
import signal
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from bins import square_bins
from commands import REPOSITORY, Run, environment
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from moto.server import ThreadedMotoServer
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from spent import made_here, recorded, scored
from warm_python import WarmPython

# All that this needs of the product, beside its commands.
from bincounter.cli.hydra_app import compose
from bincounter.config.deploy_schema import check_deploy
from bincounter.config.validate import validate
from bincounter.errors import BinCounterError

_FOLDER = Path(__file__).parent / "snapshots"
_CONF = REPOSITORY / "conf"
_FILES = ("configs", "refusals", "requests", "costs")
_UPDATES = bool(os.environ.get("UPDATE_SNAPSHOTS"))
_NORMALISED = {  # what another day, machine or version changes, and digests of code
    r"No response from AWS to \w+ for \d+ s: .*\n": "",  # of a busy machine
    r"\b\d{8}-\d{6}-(\d+)-[0-9a-f]{4}\b": r"TIME-\1-RANDOM",  # of a training job
    r"\b\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_\d+": "TIME",  # of a run's folder
    r"\b\d{10}-[0-9a-f]{4}\b": "TIME-RANDOM",  # of a tuning job
    r"\b[0-9a-f]{64}\b|(?<=models/)[0-9a-f]{16}|(?<=bincounter-)[0-9a-f]{8}\b|(?<=bins-)[0-9a-f]{12}\b": "DIGEST",
    r"127\.0\.0\.1:\d+": "127.0.0.1:PORT",
    r"\b(numpy|protobuf) \d[\d.]*\d": r"\1 VERSION",
    r"\bCode: \d+ files": "Code: N files",
    r"\b\d+\.\d+ MB\b": "N MB",
    r"\(\d+ s\)": "(N s)",
}


def _sections() -> Iterator[Any]:
    for name in _FILES:
        for number, section in enumerate(_split(name)):
            yield pytest.param(name, number, id=f"{name}: {section.splitlines()[0].strip('# ')}")


def _split(name: str) -> list[str]:
    """The sections of a file, each with all its text."""
    return re.split(r"\n(?=# )", (_FOLDER / f"{name}.txt").read_text())


@pytest.fixture(scope="session")
def tmp(python: WarmPython, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, records of cost and a small run on demo bins."""
    root = tmp_path_factory.mktemp("snapshots")
    square_bins(root / "bins", photos=20)
    square_bins(root / "one", photos=1)
    scored(root / "sweep/0", val=(0.45, 0.25))
    recorded(root / "sweep/0", "Completed", (1000, 300))
    recorded(root / "sweep/1", "Failed", (40, 10))
    recorded(root / "sweep/2", "Stopped", (500, 200), pruned=True)
    scored(root / "sweep/3", val=(0.44, 0.25), test=(0.55, 0.25))
    recorded(root / "sweep/3", "Stopped", (860, 240))
    made_here(root / "here")
    (root / "a.ckpt").touch()
    overrides = (
        "experiment=demo model=cnn model.backbone.width=8 model.backbone.blocks=3 data.layout.photos=240 "
        "data.layout.size=64 data.image_size=32 data.batch_size=16 trainer=cpu trainer.max_epochs=2 callbacks=[none] "
        "trainer.precision=32-true "  # 16-bit products differ among CPUs
        f"+trainer.enable_progress_bar=false paths.data_dir={root}/data paths.log_dir={root}/logs "
        f"paths.output_dir={root}/run"
    )
    packing = f"action=package ckpt_path={root}/run/checkpoints/best.ckpt archive={root}/model.tar.gz parity.photos=4"
    for command in (["train.py", *overrides.split()], ["deploy.py", *packing.split()]):
        done = python.run(command, REPOSITORY, environment())
        assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="session")
def aws() -> Iterator[dict[str, str]]:
    """The environment of commands: an AWS of its own, no settings of whoever runs the tests, and no GPU."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # no line for each request
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        **{name: value for name, value in environment().items() if not name.startswith("AWS_")},
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "eu-west-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "CUDA_VISIBLE_DEVICES": "",
    }
    server.stop()


@pytest.mark.long
@pytest.mark.parametrize(("name", "number"), list(_sections()))
def test_commands_say_what_they_said(
    name: str, number: int, tmp: Path, aws: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp)
    section = _split(name)[number]
    title, *before = re.split(r"\n(?=\$ )", section.rstrip("\n"))
    said, first = [title], ""
    for line in (each.splitlines()[0] for each in before):
        out = _answer(shlex.split(line.removeprefix("$ ")), aws)
        first = out if line.endswith("--cfg job") else first
        out = _changed(first, out) if line.startswith("$ config ") else out
        said.append(f"{line}\n{_normalised(out, tmp)}".rstrip())
    now = "\n".join(said) + "\n" * (len(section) - len(section.rstrip("\n")))
    if _UPDATES:
        (_FOLDER / f"{name}.txt").write_text("\n".join(now if i == number else s for i, s in enumerate(_split(name))))
    difference = difflib.unified_diff(section.splitlines(), now.splitlines(), "snapshot", "now", n=2, lineterm="")
    assert _UPDATES or now == section, "\n".join(difference)


def _answer(command: list[str], environment: dict[str, str]) -> str:
    """Output of a command, and its exit code where it is not that of success or of a wrong override.

    In this process, since imports take seconds.
    """
    out, err, code = io.StringIO(), io.StringIO(), 0
    root, stop = logging.getLogger(), signal.getsignal(signal.SIGTERM)
    handlers, level = root.handlers, root.level
    root.handlers = []
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", command)
        patch.setattr(sys, "path", [str(REPOSITORY), *sys.path])
        before = dict(os.environ)
        try:
            os.environ.clear()
            os.environ.update(environment)
            code = _carry_out(command)
        finally:
            os.environ.clear()
            os.environ.update(before)
            root.handlers, root.level = handlers, level
            signal.signal(signal.SIGTERM, stop)
            HydraConfig.instance().cfg = None
    usual = 2 if "Error" in err.getvalue() else 0
    return out.getvalue() + err.getvalue() + (f"exit code {code}\n" if code != usual else "")


def _carry_out(command: list[str]) -> int:
    try:
        if command[0] in ("check", "config"):
            cfg = _composed(command[1], command[2:])
            if command[0] == "config":
                print(OmegaConf.to_yaml(cfg), end="")
            else:
                {"train": validate, "deploy": check_deploy}[command[1]](cfg)
        elif command[0] == "-m":
            sys.argv = command[1:]
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(REPOSITORY / command[0]), run_name="__main__")
    except BinCounterError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _composed(name: str, overrides: list[str]) -> DictConfig:
    """The configuration of overrides; those that differ in values alone begin as one, since composing takes long."""
    choices = [each for each in overrides if (_CONF / each.partition("=")[0]).is_dir()]
    try:
        cfg = copy.deepcopy(_chosen(name, *choices))
        for override in OverridesParser.create().parse_overrides([each for each in overrides if each not in choices]):
            if override.is_add() or override.is_delete() or override.is_sweep_override():
                return compose(overrides, config_name=name)
            OmegaConf.update(cfg, override.key_or_group, override.value())  # as Hydra does
    except (HydraException, OmegaConfBaseException):  # what the command says of it
        return compose(overrides, config_name=name)
    return cfg


@functools.cache
def _chosen(name: str, *choices: str) -> DictConfig:
    return compose([*choices], config_name=name)


def _changed(first: str, other: str) -> str:
    """Difference of another configuration, in lines of KEY: VALUE."""
    before, after = (dict(_flat(yaml.safe_load(text))) for text in (first, other))
    changed = [f"+ {key}: {json.dumps(value)}" for key, value in after.items() if before.get(key, ...) != value]
    return "\n".join([*(f"- {key}" for key in before if key not in after), *changed])


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict) or not node:
        yield prefix, node
    else:
        for name, value in node.items():
            yield from _flat(value, f"{prefix}.{name}".lstrip("."))


def _normalised(text: str, tmp: Path) -> str:
    text = text.replace(str(tmp), "$TMP").replace(str(REPOSITORY), "$REPOSITORY")
    for pattern, name in _NORMALISED.items():
        text = re.sub(pattern, name, text)
    return "\n".join(line.rstrip() for line in text.splitlines())


def test_every_option_is_among_the_configurations() -> None:
    written = (_FOLDER / "configs.txt").read_text()
    options = [file.relative_to(_CONF) for file in _CONF.rglob("*.yaml") if file.parent != _CONF]
    groups = [option for option in options if option.parts[0] != "hydra"]
    assert not [
        str(option)
        for option in groups
        if not re.search(rf"[ /]{option.parent.as_posix()}='?\[?{option.stem}\b", written)
    ]


@pytest.mark.parametrize(
    "command",
    [
        "train.py data.batch_size=0",
        "train.py data.btch_size=3",
        "train.py data.batch_size=x",
        "deploy.py target.port=x",
    ],
)
def test_checked_configurations_are_refused_as_by_the_command(command: str, run: Run) -> None:
    program, *overrides = command.split()
    done = run(program, *overrides, code=2)
    assert f"$ check {command.replace('.py', '')}\n{done.stderr}" in (_FOLDER / "refusals.txt").read_text()


@pytest.mark.long
def test_a_run_scores_what_it_scored(tmp: Path) -> None:
    now = json.loads((tmp / "run/metrics.json").read_text())
    assert now.pop("caveats") == [] and not any(now.pop("seen_in_training").values())
    for side in ("val", "test", "train"):
        for details in ("per_count", "confusion", "reliability", "coverage"):  # of a few photos each
            del now[side][details]
    path = _FOLDER / "metrics.json"
    if _UPDATES:
        rounded = json.loads(json.dumps(now), parse_float=lambda text: float(f"{float(text):.6g}"))
        path.write_text(json.dumps(rounded, indent=2) + "\n")
    before, after = dict(_flat(json.loads(path.read_text()))), dict(_flat(now))
    assert after.keys() == before.keys()
    for key, value in before.items():
        trained = not re.search(r"(^|\.|_)n$|majority|mean_rmse|counts", key)
        assert after[key] == pytest.approx(value, rel=1e-3 if trained else 1e-5), key


@pytest.mark.long
def test_an_archive_holds_what_it_held_and_is_the_same_twice(tmp: Path, run: Run) -> None:
    again, checkpoint = tmp / "again.tar.gz", tmp / "run/checkpoints/best.ckpt"
    run("deploy.py", "action=package", f"ckpt_path={checkpoint}", f"archive={again}", "parity.photos=4")
    assert again.read_bytes() == (tmp / "model.tar.gz").read_bytes()
    with tarfile.open(again) as archive:
        names = sorted(name for name in archive.getnames() if not name.startswith("code/bincounter/"))
    path = _FOLDER / "archive.txt"
    if _UPDATES:
        path.write_text("\n".join(names) + "\n")
    assert names == path.read_text().splitlines()
