"""The commands ``explore``, ``arrange`` and ``prepare``, which read a data set without training on it."""

import argparse
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bincounter.files import check_writable, expand_user, is_stream
from bincounter.names import escape_name

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from bincounter.data.datamodule import BinDataModule


def as_place(word: str) -> str:
    """Check the name of a file, a folder or a bucket, and expand ``~`` in it.

    Raises:
        argparse.ArgumentTypeError: it is empty, or ``KEY=VALUE`` of a known setting or group, so the name is missing.
    """
    if not word:
        raise argparse.ArgumentTypeError("the name is empty: write that of a file or a folder")
    key, equals, _ = word.lstrip("+~").partition("=")
    if equals and re.fullmatch(r"\w[\w./@]*", key) and not os.path.lexists(word):
        from dataclasses import fields

        from bincounter.cli.hydra_app import conf_dir
        from bincounter.config.train_schema import TrainConfig

        group = conf_dir() / key.partition("@")[0]
        settings = {"hydra", "experiment", *(each.name for each in fields(TrainConfig))}
        if group.is_dir() or ("/" not in key and key.partition(".")[0] in settings):
            raise argparse.ArgumentTypeError(f"{word} is a setting: name a file or a folder first, or write ./{word}")
    return expand_user(word)


def as_path(word: str) -> Path:
    """Check a name as :func:`as_place` does, and return it as a path."""
    return Path(as_place(word))


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--data-dir`` of commands that read photos of buckets."""
    parser.add_argument(
        "--data-dir", type=as_path, default=Path("data"), help="where photos of buckets are kept (data)"
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--trust`` of commands that load a checkpoint."""
    parser.add_argument(
        "--trust", action="append", default=[], metavar="PACKAGE", help="your own package that defines the model"
    )


def add_data_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add these commands to the subparsers of ``bincounter``."""
    explore = commands.add_parser("explore", help="write data.html: the contents of a data set, before training on it")
    explore.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as for bincounter train: data=abid data.source=..."
    )
    explore.add_argument("--output", type=as_path, metavar="FILE", help="to write (data.html, suspicious.csv)")
    explore.add_argument(
        "--suspicious",
        nargs="+",
        type=as_path,
        metavar="RUN",
        help="instead of the page write the labels most likely wrong, by these runs' predictions for photos that they "
        "held out, as a table for bincounter review",
    )
    explore.set_defaults(command=_explore)

    arrange = commands.add_parser("arrange", help="link the photos of a data source into <count>/<photo> folders")
    arrange.add_argument("destination", metavar="DESTINATION", type=as_path, help="the folder to make")
    arrange.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as for bincounter train: data=abid data.source=..."
    )
    arrange.set_defaults(command=_arrange)

    prepare = commands.add_parser(
        "prepare", help="split a data source into {train,valid,test}/<count>/<photo>, in a folder or a bucket"
    )
    prepare.add_argument("destination", metavar="DESTINATION", type=as_place, help="a folder or s3://bucket/prefix")
    prepare.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as for bincounter train: data=abid data.source=..."
    )
    prepare.add_argument(
        "--as",
        dest="form",
        choices=["folders", "shards"],
        default="folders",
        help="one file per photo (folders), or many photos in each of a few large files (shards)",
    )
    prepare.set_defaults(command=_prepare)

    for command in (explore, arrange, prepare):
        command.add_argument("--config-dir", type=as_path, help="a further folder of configuration files, as for train")


def _compose_data(arguments: argparse.Namespace) -> "tuple[DictConfig, BinDataModule]":
    """Compose a configuration, and build its data module without preparing it."""
    from bincounter.cli.hydra_app import compose, show_log

    show_log()
    cfg = compose(arguments.overrides, config_dir=arguments.config_dir, internal=False)
    from bincounter.config.validate import validate
    from bincounter.training.run import data_module

    validate(cfg)
    return cfg, data_module(cfg)


def _explore(arguments: argparse.Namespace) -> int:
    output = arguments.output or Path("suspicious.csv" if arguments.suspicious else "data.html")
    check_writable(output, key="--output")
    cfg, data = _compose_data(arguments)
    if arguments.suspicious:
        return _list_suspicious(output, data, arguments.suspicious)
    data.prepare()
    import numpy as np

    from bincounter.data.records import SPLITS
    from bincounter.report.explore import write_data_report

    split = cfg.data.split
    settings = {"method": split.method, "fractions": list(split.fractions), "seed": split.seed}
    if split.fold is not None:
        settings["fold"] = split.fold
    given = [data.manifest.given_splits[i] for i in data.kept]
    if split.method != "random" and split.fold is None and given == [SPLITS[side] for side in data.assignment]:
        settings = {"method": f"{split.method}, by the folders of the source"}
    source = cfg.data.source or "rendered demo bins"
    further = np.setdiff1d(data.training, data.kept)  # photos of data.learn_above
    photos = data.manifest, data.kept, data.assignment
    write_data_report(output, *photos, further=further, source=source, settings=settings)
    print_written(output)
    return 0


def _list_suspicious(output: Path, data: "BinDataModule", runs: list[Path]) -> int:
    from bincounter.review.suspicious import is_single_file, write_suspicious

    records, root = data.find(), data.manifest.root
    data.log_left_out()
    held_out = write_suspicious(output, records, root, runs)
    print_written(output, f"{held_out:,} of {len(records):,} photos were held out by the runs: ")
    if all(is_single_file(record, root) for record in records):
        from bincounter.config.quoting import shell_command

        advice = f"Check them with {shell_command('bincounter', 'review', output, '--photos', root)}"
    else:
        advice = (
            "bincounter review cannot show photos in shards or in a bucket: to check these, set data.source to a "
            "folder of the same photos, and list them again"
        )
    print(advice, file=sys.stderr)
    return 0


def print_written(path: Path, text: str = "") -> None:
    """Print the name of a file that was written, as :func:`print_beside` does."""
    print_beside(path, f"{text}{escape_name(path)}")


def print_beside(path: Path, text: str) -> None:
    """Print what is to be known of a file that was written; on stderr if stdout carries its content."""
    print(text, file=sys.stderr if is_stream(path) else sys.stdout)


def _arrange(arguments: argparse.Namespace) -> int:
    cfg, data = _compose_data(arguments)
    from bincounter.data.arrange import arrange
    from bincounter.data.prepare import check_local
    from bincounter.data.records import Candidate, Listing

    check_local(arguments.destination, cfg.data.source)
    photos = [Candidate(record.id, record.file, record.count) for record in data.find()]
    data.log_left_out()
    placed = arrange(Listing(photos), arguments.destination)
    print(f"{len(photos):,} photos, {placed.files:,} of them placed now, {placed.bytes / 1e6:,.1f} MB")
    print(escape_name(arguments.destination))
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    arguments.overrides.append("data.cache=false")  # the decoded photos that training caches are not needed
    cfg, data = _compose_data(arguments)
    import numpy as np

    from bincounter.data.prepare import SIDES, check_destination, prepare_folders, prepare_shards

    check_destination(arguments.destination, cfg.data.source)
    data.prepare()
    prepared = np.union1d(data.kept, data.training)  # photos of data.learn_above, too
    sides = np.zeros(len(prepared), np.int8)
    sides[np.isin(prepared, data.kept)] = data.assignment
    split = data.manifest, prepared, sides
    connections = cfg.data.sync.connections
    if arguments.form == "shards":
        cache_dir = Path(cfg.paths.cache_dir)
        placed = prepare_shards(*split, arguments.destination, cache_dir=cache_dir, connections=connections)
    else:
        placed = prepare_folders(*split, arguments.destination, connections=connections)
    for number, side in enumerate(SIDES):
        print(f"{side}: {(sides == number).sum():,} photos")
    print(f"{placed.files:,} files written, {placed.bytes / 1e6:,.1f} MB")
    print(escape_name(arguments.destination))
    return 0
