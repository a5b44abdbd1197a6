"""``bincounter export CKPT --to onnx|openvino|torchscript``: one file that other programs count photos by."""

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from bincounter.cli.data_commands import add_data_dir, add_trust, as_path
from bincounter.errors import UserError
from bincounter.files import check_writable
from bincounter.hub import folder_for
from bincounter.names import escape_name

_SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torchscript": ".pt"}


def add_export(commands: Any) -> None:
    """Add the command to the parser."""
    export_ = commands.add_parser("export", help="write a checkpoint's model for ONNX Runtime, OpenVINO or TorchScript")
    export_.add_argument("checkpoint", type=as_path, metavar="CKPT", help="a checkpoint, or a run's folder")
    export_.add_argument("--to", required=True, choices=list(_SUFFIXES), help="format of the file")
    export_.add_argument(
        "--output", type=as_path, metavar="FILE", help="to write; export/model.* of the run by default"
    )
    add_data_dir(export_)
    add_trust(export_)
    export_.set_defaults(command=_export)


def _export(arguments: Namespace) -> int:
    """Export, compare with training on photos, and only then give the file its name.

    Raises:
        UserError: the checkpoint cannot be used or exported, the file exists, or the answers differ.
    """
    from bincounter.cli.hydra_app import show_log
    from bincounter.training.results import find_run_of_checkpoint

    show_log()
    origin = find_run_of_checkpoint(arguments.checkpoint)
    suffix = _SUFFIXES[arguments.to]
    folder = folder_for(arguments.checkpoint, origin.folder, Path("logs"))
    output: Path = arguments.output or folder / "export" / f"model{suffix}"
    if output.suffix != suffix:
        raise UserError(f"--output {output} is not a name for --to {arguments.to}: let it end in {suffix}")
    files = [output, output.with_suffix(".bin")] if arguments.to == "openvino" else [output]
    for file in files:
        if file.exists():
            raise UserError(f"{file} exists already: remove it, or name another file with --output")
        check_writable(file, key="--output")
    from bincounter.model.build import load_counter
    from bincounter.serving.packing.export import network_of, write_export
    from bincounter.serving.packing.parity import check_export
    from bincounter.serving.packing.parity_photos import parity_photos

    counter, description = load_counter(origin.checkpoint, arguments.trust)
    output.parent.mkdir(parents=True, exist_ok=True)
    aside = output.with_name(f".{os.getpid()}.{output.name}")
    try:
        forward = write_export(network_of(counter, description), description, arguments.to, aside)
        photos = parity_photos(origin, 64, source=None, data_dir=arguments.data_dir)
        print(check_export(counter, forward, photos, description["image_size"]))
        for file in reversed(files):
            aside.with_suffix(file.suffix).replace(file)
    finally:
        for file in files:
            aside.with_suffix(file.suffix).unlink(missing_ok=True)
    print(escape_name(output))
    return 0
