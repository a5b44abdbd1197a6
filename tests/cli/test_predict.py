"""``bincounter predict`` as users run it: names of any bytes, destinations and sources that cannot be used."""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import REPOSITORY, Run, command, environment

import bincounter
from bincounter.cli import data_commands, main
from bincounter.errors import ConfigError, UserError
from bincounter.names import read_cell, unescape_name

RUN = REPOSITORY / "tests/assets/classification"
PHOTO = next((REPOSITORY / "tests/assets/photos").rglob("*.jpg"))
NAMES = ("a.jpg", "=1+1.jpg", "two\nlines\x1b[2J.jpg", "Café.jpg", os.fsdecode(b"caf\xe9.jpg"), "b\\n.jpg")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / ".Trashes").mkdir(parents=True)
    for name in (*NAMES, ".Trashes/b.jpg", "._a.jpg"):
        shutil.copyfile(PHOTO, folder / name)
    os.mkfifo(folder / "fifo.jpg")
    (folder / os.fsdecode(b"broken\n\xff.jpg")).write_bytes(b"no photo")
    return folder


@pytest.mark.parametrize("encoding", ["ascii:strict", "utf-8:strict"])
def test_every_photo_has_its_line_whatever_its_name_and_the_encoding(photos: Path, encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bincounter", "predict", f"ckpt_path={RUN}", "."],  # it reads the encoding as it starts
        cwd=photos,
        env={**environment(), "PYTHONIOENCODING": encoding, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        check=True,
        timeout=120,
    )
    lines = done.stdout.decode(encoding.partition(":")[0]).splitlines()
    assert sorted(unescape_name(line.partition("\t")[0]) for line in lines) == sorted(NAMES)
    said = done.stderr.decode()
    assert "passed over 2 hidden, 1 not a regular file" in said
    assert r"broken\n\xff.jpg: not a JPEG" in said


def test_a_table_names_files_that_are_found_again(photos: Path, run: Run, tmp_path: Path) -> None:
    table = tmp_path / "new" / "table.csv"
    done = run("-m", "bincounter", "predict", str(photos), "--ckpt-path", str(RUN), "--csv", str(table))
    assert f"{len(NAMES)} of {len(NAMES) + 1} photos counted" in done.stdout
    assert len(table.read_text().splitlines()) == len(NAMES) + 2
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    counted = [Path(read_cell(row["path"])) for row in rows if not row["reason"]]
    assert sorted(path.name for path in counted) == sorted(NAMES)
    assert all(path.is_file() for path in counted)


@pytest.mark.parametrize("target", ["/dev/stdout", "/dev/stderr", "/dev/fd/1", "pipe", "/dev/null"])
def test_a_table_flows_into_a_stream(target: str, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    out, err = (tmp_path / name for name in ("out", "err"))
    name = str(pipe) if target == "pipe" else target
    with out.open("w") as stdout, err.open("w") as stderr:
        program = command("-m", "bincounter", "predict", str(PHOTO), f"ckpt_path={RUN}", "--csv", name)
        started = subprocess.Popen(program, cwd=REPOSITORY, env=environment(), stdout=stdout, stderr=stderr)
        piped = pipe.read_text() if target == "pipe" else ""
        assert started.wait(timeout=120) == 0, err.read_text()
    written = {"pipe": piped, "/dev/stderr": err.read_text()}.get(target, out.read_text())
    if target != "/dev/null":
        rows = [line for line in written.splitlines() if "," in line]
        assert rows[0].startswith("path,predicted,") and rows[1].startswith(f"{PHOTO},") and len(rows) == 2
    assert f"1 of 1 photos counted: {name}" in err.read_text()
    assert out.read_text().count("photos counted") == 0
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--csv", "{tmp}"], "is a folder: name a file"),
        (["--csv", "{tmp}/file/x.csv"], "cannot be created (not a directory)"),
        (["--csv", "/proc/x.csv"], "cannot be created"),
        (["--ckpt-path", "{tmp}/file"], "file is truncated or not a checkpoint"),
        (["{tmp}/nowhere"], "nowhere is neither a photo nor a folder"),
        (["data=folders"], "data=folders is a setting: name a file or a folder first"),
    ],
)
def test_what_cannot_be_used_is_refused_before_a_photo_is_opened(
    arguments: list[str], said: str, photos: Path, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    done = run("-m", "bincounter", "predict", f"--ckpt-path={RUN}", *given, str(photos), code=2)
    assert said in done.stderr
    assert not done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "photos"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["prepare", "data=folders", "data.source=bins"],
        ["arrange", "data.source=bins"],
        ["arrange", "+experiment=demo"],
        ["explore", "--output", "model/optimizer=sgd"],
        ["compare", "seed=3", "runs"],
        ["cost", "hydra.run.dir=x"],
        ["rules", "debugger.rules.overfit.patience=3"],
        ["attach", "launcher=sagemaker"],
    ],
    ids=" ".join,
)
def test_a_setting_in_the_place_of_a_folder_is_refused(arguments: list[str], run: Run) -> None:
    refused = run("-m", "bincounter", *arguments, code=2).stderr
    assert "is a setting: name a file or a folder first" in refused
    assert not (REPOSITORY / arguments[-1]).exists()


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("predict a.jpg ckpt_path=RUN b.jpg", "sources", ["a.jpg", "b.jpg"]),
        ("predict --csv t.csv a.jpg --trust x b.jpg", "sources", ["a.jpg", "b.jpg"]),
        ("predict -- -a.jpg b.jpg", "sources", ["-a.jpg", "b.jpg"]),
        ("compare a b", "runs", [Path("a"), Path("b")]),
        ("cost a --json b", "folders", [Path("a"), Path("b")]),
        ("explore data=abid --output p.html seed=2", "overrides", ["data=abid", "seed=2"]),
        ("prepare to data=abid --as shards seed=2", "overrides", ["data=abid", "seed=2"]),
        ("arrange --config-dir c to data=abid --config-dir d seed=2", "overrides", ["data=abid", "seed=2"]),
    ],
)
def test_options_stand_between_the_members_of_a_list(
    line: str, name: str, value: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[argparse.Namespace] = []
    function = f"_{line.partition(' ')[0]}"
    monkeypatch.setattr(main if hasattr(main, function) else data_commands, function, given.append)
    main.main(line.split())
    assert getattr(given[0], name) == value


def test_a_file_that_is_named_like_a_setting_can_be_named(run: Run) -> None:
    for name in ("./data=folders", "photos/a=b.jpg", "data/a=b.jpg"):
        done = run("-m", "bincounter", "predict", name, f"--ckpt-path={RUN}", code=2)
        assert f"{name} is neither a photo nor a folder" in done.stderr


def test_a_misspelt_command_is_corrected(run: Run) -> None:
    assert run("-m", "bincounter", "predit", code=2).stderr == (
        "Error: Unknown command 'predit'. Did you mean 'predict'?\n"
    )
    assert "The commands are train, deploy, explore" in run("-m", "bincounter", "xyzzy", "a", code=2).stderr


def scored(folder: Path, confidences: list[float]) -> Path:
    """A copy of a run whose validation photos had these confidences, each of an equal share."""
    copy = Path(shutil.copytree(RUN, folder))
    metrics = json.loads((RUN / "metrics.json").read_text())
    shares = zip(range(1, len(confidences) + 1), sorted(confidences, reverse=True), strict=True)
    metrics["val"]["coverage"] = [
        {"coverage": number / len(confidences), "confidence": least, "accuracy": 1.0, "n": number}
        for number, least in shares
    ]
    (copy / "metrics.json").write_text(json.dumps(metrics))
    return copy


def test_the_least_certain_photos_need_a_person(run: Run, tmp_path: Path) -> None:
    photos = sorted((REPOSITORY / "tests/assets/photos").rglob("*.jpg"))
    sure = sorted(max(each.probabilities.values()) for each in bincounter.load(RUN).predict(photos))
    copy = scored(tmp_path / "run", [*sure, 0.0] if len(sure) % 2 else sure)
    table = tmp_path / "table.csv"
    names = [str(photo) for photo in photos]
    run("-m", "bincounter", "predict", *names, "--ckpt-path", str(copy), "--coverage", "0.5", "--csv", str(table))
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [row for row in rows if row["needs_person"] == "no"]
    assert len(rows) == len(photos) and abs(len(kept) - len(photos) / 2) <= 1
    assert min(confidence(row) for row in kept) > max(confidence(row) for row in rows if row not in kept)

    printed = run("-m", "bincounter", "predict", *names, "--ckpt-path", str(copy), "--coverage", "0.5").stdout
    assert [line.endswith("\tneeds a person") for line in printed.splitlines()] == [
        row["needs_person"] == "yes" for row in rows
    ]
    everything = bincounter.load(copy, coverage=1).predict(photos)
    assert [each.needs_person for each in everything] == [False] * len(photos)
    assert bincounter.load(copy).predict(photos[0]).needs_person is None


def confidence(row: dict[str, str]) -> float:
    return max(float(cell) for name, cell in row.items() if name.startswith("p_"))


def test_a_coverage_needs_a_share_and_a_scored_run(run: Run, tmp_path: Path) -> None:
    copy = scored(tmp_path / "run", [0.2, 0.9])
    for share in ("0", "1.5", "nan"):
        done = run("-m", "bincounter", "predict", str(PHOTO), f"--ckpt-path={copy}", f"--coverage={share}", code=2)
        assert f"coverage={float(share)} is not a share of the photos: use a number above 0, at most 1" in done.stderr
    with pytest.raises(ConfigError, match=r"coverage='0\.5' is not a share"):
        bincounter.load(copy, coverage="0.5")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"coverage=0\.4 is below 0\.5, the least share whose confidence is known"):
        bincounter.load(copy, coverage=0.4)
    checkpoints = copy / "checkpoints"
    with pytest.raises(UserError, match=r"confidences of .*last\.ckpt, .* has those of its best\.ckpt: leave it out"):
        bincounter.load(checkpoints / "last.ckpt", coverage=0.5)
    shutil.copy(checkpoints / "best.ckpt", checkpoints / "last.ckpt")  # where the last epoch was the best
    bincounter.load(checkpoints / "last.ckpt", coverage=0.5)
    done = run("-m", "bincounter", "predict", str(PHOTO), f"--ckpt-path={RUN}", "--coverage=0.5", code=2)
    assert "has none: leave it out, or train the model again with this version" in done.stderr
