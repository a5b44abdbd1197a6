"""The command ``review``, by which people check the bins of an audited table."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bincounter.cli.data_commands import add_trust, as_path, print_beside, print_written
from bincounter.errors import UserError, check_extra
from bincounter.files import check_writable
from bincounter.names import escape_name

if TYPE_CHECKING:
    from bincounter.data.corrections import CorrectionsLog
    from bincounter.review.audit_table import AuditTable

_PORT = 8090


def add_review(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this command to the subparsers of ``bincounter``."""
    review = commands.add_parser(
        "review", help="serve a page on which people check the bins of an audit, photo by photo"
    )
    review.add_argument("table", type=as_path, metavar="AUDIT.CSV", help="the ranked table of an audit")
    review.add_argument("--photos", type=as_path, metavar="FOLDER", help="folder of the photos (that of AUDIT.CSV)")
    review.add_argument("--port", type=int, default=_PORT, help=f"to listen on; 0 for a free one ({_PORT})")
    review.add_argument(
        "--corrections", type=as_path, metavar="FILE", help="table of the answers (corrections.csv beside AUDIT.CSV)"
    )
    review.add_argument(
        "--ckpt-path", type=as_path, help="a checkpoint, or a run's folder: the page shows where this model looked"
    )
    add_trust(review)
    files = review.add_mutually_exclusive_group()
    files.add_argument(
        "--export-label-studio", type=as_path, metavar="JSON", help="write the bins as tasks of Label Studio instead"
    )
    files.add_argument(
        "--import-label-studio", type=as_path, metavar="JSON", help="take the answers from Label Studio's JSON instead"
    )
    files.add_argument(
        "--wrong-records", type=as_path, metavar="FILE", help="write the records found to be wrong as a table instead"
    )
    review.set_defaults(command=_review)


def _review(arguments: argparse.Namespace) -> int:
    from bincounter.data.corrections import CorrectionsLog
    from bincounter.review.audit_table import read_audit

    table = read_audit(arguments.table)
    photos = arguments.photos or arguments.table.parent
    if not photos.is_dir():
        raise UserError(f"--photos={photos} is not a folder: name the one that holds the photos")
    if arguments.export_label_studio:
        return _export(arguments.export_label_studio, table, photos)
    answers = arguments.corrections or arguments.table.with_name("corrections.csv")
    if arguments.wrong_records:
        return _list_wrong(arguments.wrong_records, table, answers)
    if arguments.import_label_studio:
        with CorrectionsLog(answers) as log:
            return _import(arguments.import_label_studio, table, log)
    check_extra("h11", "starlette", "uvicorn", extra="serving", wanted="review")
    from bincounter.review.review_app import Attention, serve_review

    with CorrectionsLog(answers) as log:
        attention = Attention(arguments.ckpt_path, arguments.trust) if arguments.ckpt_path else None
        return serve_review(table, photos, log, arguments.port, attention)


def _export(path: Path, table: "AuditTable", photos: Path) -> int:
    check_writable(path, key="--export-label-studio")
    from bincounter.review.label_studio import LABELING, export_tasks

    number = export_tasks(path, table, photos)
    print_written(path, f"{number:,} tasks: ")
    print_beside(
        path,
        "Label Studio shows their photos if it is started with\n"
        "  LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true\n"
        f"  LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={escape_name(photos.resolve().parent)}\n"
        f"and the project has a local storage of {escape_name(photos.resolve())} and this labeling interface:\n"
        f"  {LABELING}",
    )
    return 0


def _list_wrong(path: Path, table: "AuditTable", answers: Path) -> int:
    if path.resolve() in (answers.resolve(), table.path.resolve()):
        raise UserError(f"--wrong-records={path} would replace a table that it is made from: name another file")
    check_writable(path, key="--wrong-records")
    from bincounter.data.corrections import read_corrections
    from bincounter.review.review_queue import write_wrong_records

    number, unknown = write_wrong_records(path, table, read_corrections(answers, "--corrections"))
    print_written(path, f"{number:,} wrong records: ")
    if unknown:
        print_beside(path, f"  {unknown:,} answers are of bins or records that {escape_name(table.path)} does not have")
    return 0


def _import(path: Path, table: "AuditTable", log: "CorrectionsLog") -> int:
    from bincounter.review.label_studio import import_annotations

    done = import_annotations(path, table, log)
    print(f"{done.written:,} answers added: {escape_name(log.path)}")
    print(f"  {done.known:,} were there already, or are older than those there")
    print(f"  {done.unanswered:,} tasks have no count")
    if done.unmatched:
        print(f"  {done.unmatched:,} tasks match no bin of {escape_name(table.path)}")
    return 0
