"""The command ``review``, by which people check the bins of an audited table."""

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path

from bincounter.errors import ConfigError, UserError

_PORT = 8090


def add_review(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", as_path: Callable[[str], Path]) -> None:
    """Add this command to the subparsers of ``bincounter``.

    Args:
        commands: the subparsers.
        as_path: converter of names of files.
    """
    review = commands.add_parser(
        "review", help="serve a page on which people check the bins of an audit, photo by photo"
    )
    review.add_argument("table", type=as_path, metavar="AUDIT.CSV", help="the ranked table of an audit")
    review.add_argument("--photos", type=as_path, metavar="FOLDER", help="folder of the photos (that of AUDIT.CSV)")
    review.add_argument("--port", type=int, default=_PORT, help=f"to listen on; 0 for a free one ({_PORT})")
    review.add_argument(
        "--corrections", type=as_path, metavar="FILE", help="table of the answers (corrections.csv beside AUDIT.CSV)"
    )
    review.set_defaults(command=_review)


def _review(arguments: argparse.Namespace) -> int:
    from bincounter.data.corrections import CorrectionsLog
    from bincounter.review.audit_table import read_audit

    photos = arguments.photos or arguments.table.parent
    if not photos.is_dir():
        raise UserError(f"--photos={photos} is not a folder: name the one that holds the photos")
    table = read_audit(arguments.table)
    answers = arguments.corrections or arguments.table.with_name("corrections.csv")
    for module in ("h11", "starlette", "uvicorn"):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"review needs {module}: pip install 'bincounter[serving]'")
    from bincounter.review.review_app import serve_review

    with CorrectionsLog(answers) as log:
        return serve_review(table, photos, log, arguments.port)
