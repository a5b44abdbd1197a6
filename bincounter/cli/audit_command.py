"""``bincounter audit PHOTOS --record stock.csv``: the bins whose stock record is most likely wrong, first."""

import logging
from argparse import Namespace
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bincounter.cli.data_commands import add_data_dir, add_trust, as_path, as_place
from bincounter.errors import ConfigError, ResourceError, UserError
from bincounter.files import check_writable, is_stream
from bincounter.names import escape_name

if TYPE_CHECKING:
    from bincounter.audit.audit_run import Counting
    from bincounter.audit.expected_yield import Costs
    from bincounter.training.predictor import Prediction, Predictor
    from bincounter.training.results import RunResults

log = logging.getLogger(__name__)

ERROR_RATE, SPREAD = 0.03, 0.25  # those of posterior.py, which imports numpy


def add_audit(commands: Any) -> None:
    """Add the command to the parser."""
    audit = commands.add_parser("audit", help="rank bins by the probability that their stock record is wrong")
    audit.add_argument("sources", nargs="+", type=as_place, metavar="PHOTO|FOLDER|s3://...", help="photos of the bins")
    audit.add_argument(
        "--record",
        type=as_path,
        required=True,
        metavar="FILE",
        help="stock records: a CSV table with the columns bin, photo and expected, or a folder of ABID metadata",
    )
    audit.add_argument(
        "--ckpt-path",
        type=as_path,
        help="a checkpoint, or a run's folder; the newest best.ckpt under logs/ by default",
    )
    audit.add_argument(
        "--endpoint",
        metavar="NAME",
        help="count by this server or SageMaker endpoint, which serves the checkpoint, instead of here",
    )
    audit.add_argument(
        "--output", type=as_path, default=Path("audit.csv"), metavar="FILE", help="the table (audit.csv)"
    )
    audit.add_argument(
        "--error-rate", type=float, default=ERROR_RATE, metavar="SHARE", help=f"share of wrong records ({ERROR_RATE})"
    )
    audit.add_argument(
        "--spread",
        type=float,
        default=SPREAD,
        metavar="RATIO",
        help=f"how many times rarer an error is for each further item, above 0 to 1 ({SPREAD})",
    )
    audit.add_argument("--cost-of-check", type=float, metavar="COST", help="of checking a bin, to say where to stop")
    audit.add_argument("--cost-of-error", type=float, metavar="COST", help="of a wrong record that nobody finds")
    audit.add_argument(
        "--checks", type=int, metavar="N", help="checks that people have time for, to print what these find"
    )
    add_data_dir(audit)
    add_trust(audit)
    audit.set_defaults(command=_audit)


def _audit(arguments: Namespace) -> int:
    """Read the records, count the photos, write the table and the page, and print a summary.

    Raises:
        UserError: the records, the photos or the model cannot be used.
        ResourceError: photos were not counted for a reason outside of them, or the disk is full.
    """
    from bincounter.cli.hydra_app import show_log

    show_log()
    page = arguments.output.with_suffix(".html")
    _check(arguments, page)
    from bincounter.audit.stock_records import PhotoFinder, read_stock

    stock = read_stock(arguments.record)
    records = len(stock.records)
    counting, about = _model(arguments)
    photos = PhotoFinder(arguments.sources, arguments.data_dir)
    photos.match(stock)
    trained_on = set(counting.trained_on)
    seen = sum(bool({record.photo, Path(record.photo).stem} & trained_on) for record in stock.records if record.file)
    if seen:
        about["photos trained on"] = f"{seen:,}, by their names: of these the model knows the labels"
        log.warning("The model was trained on %s of these photos, by their names: it promises too much for them.", seen)
    from bincounter.audit.audit_page import cards_of, found_sentence, headline, stop_sentence, write_audit_page
    from bincounter.audit.audit_run import run_audit
    from bincounter.audit.expected_yield import expected_found
    from bincounter.config.quoting import shell_command

    costs = _costs(arguments)
    about |= {"records": str(arguments.record), "table": str(arguments.output)}
    named = {name: escape_name(text) for name, text in about.items()}
    audit = run_audit(
        stock,
        counting,
        arguments.output,
        lambda audit: write_audit_page(page, audit, counting.judge, costs, named, checks=arguments.checks),
    )
    wrong = audit.judged
    judged = "" if len(wrong) == records else f", {len(wrong):,} of {records:,} judged"
    print(f"{headline(expected_found(wrong, len(wrong)))}{judged}")
    for name, number in cards_of(wrong, arguments.checks):
        print(f"{name}: {found_sentence(expected_found(wrong, number))}")
    if costs and len(wrong):
        print(stop_sentence(wrong, costs))
    if left := len(audit.order) - len(wrong):
        extra = len(audit.order) - records
        others = f"{extra:,} photo{'s' * (extra != 1)} without a record"
        print(f"{left - extra:,} records not judged, {others}: listed last, with the reasons")
    local = arguments.ckpt_path.exists()  # not at the hub
    trust = [f"--trust={package}" for package in arguments.trust]
    shown = [f"--ckpt-path={arguments.ckpt_path}", *trust] if local else []  # to show where the model looked
    review = shell_command("bincounter", "review", arguments.output, f"--photos={photos.folder}", *shown)
    print(f"{escape_name(arguments.output)}: check its bins from the top; {escape_name(page)} shows the first")
    print(f"Next: {escape_name(review)}")
    if audit.uncounted:
        raise ResourceError(
            f"{audit.uncounted:,} of {len(audit.order):,} photos were not counted for a reason outside of them: give "
            "this process the right, the memory or the open files, or mend the endpoint. The same command then counts "
            "these alone."
        )
    return 0 if len(wrong) else 2


def _check(arguments: Namespace, page: Path) -> None:
    """Check options before anything is read.

    Raises:
        UserError: one is wrong.
    """
    from bincounter.config.checks import Bound

    Bound(gt=0, le=0.99).check("--error-rate", arguments.error_rate)
    Bound(gt=0, le=1).check("--spread", arguments.spread)
    costs = {"--cost-of-check": arguments.cost_of_check, "--cost-of-error": arguments.cost_of_error}
    for name, cost in costs.items():
        if cost is not None:
            Bound(gt=0).check(name, cost)
    missing = [name for name, cost in costs.items() if cost is None]
    if len(missing) == 1:
        raise ConfigError(f"where to stop depends on both costs: add {missing[0]}, or remove the other")
    if arguments.endpoint is not None:
        from bincounter.config.deploy_schema import ENDPOINT_NAME, NO_ENDPOINT_NAME

        Bound(pattern=ENDPOINT_NAME, hint=NO_ENDPOINT_NAME).check("--endpoint", arguments.endpoint)
    if arguments.checks is not None:
        Bound(ge=1).check("--checks", arguments.checks)
    output: Path = arguments.output
    if output.suffix != ".csv" or is_stream(output):
        raise UserError(f"--output={output} is not a name for the table: let it end in .csv; the page is put beside it")
    if output.resolve() == arguments.record.resolve():
        raise UserError(f"--output={output} is the table of records, which would be replaced: name another file")
    for file in (output, page):
        check_writable(file, key="--output")


def _costs(arguments: Namespace) -> "Costs | None":
    from bincounter.audit.expected_yield import Costs

    return None if arguments.cost_of_check is None else Costs(arguments.cost_of_check, arguments.cost_of_error)


def _model(arguments: Namespace) -> "tuple[Counting, dict[str, str]]":
    """Return the model that counts the photos, and text on it by name."""
    from bincounter.training.run_folder import find_newest_checkpoint

    if arguments.ckpt_path is None:
        arguments.ckpt_path = find_newest_checkpoint(Path("logs"), named_by="--ckpt-path")
    from bincounter.audit.audit_run import Counting
    from bincounter.audit.posterior import RecordJudge
    from bincounter.model.build import training_photos
    from bincounter.serving.packing.archive import model_ids
    from bincounter.serving.packing.tarball import file_digest
    from bincounter.training.predictor import Predictor
    from bincounter.training.results import find_run_of_checkpoint
    from bincounter.training.trainer import keep_freed_memory, silence_lightning

    silence_lightning()
    keep_freed_memory()
    predictor = Predictor(arguments.ckpt_path, arguments.trust)
    described = predictor.description
    run = find_run_of_checkpoint(predictor.checkpoint).run
    judge = RecordJudge.of_model(described, arguments.error_rate, arguments.spread)
    digest, about = file_digest(predictor.checkpoint), _describe(predictor, run, judge.training_shares)
    key = digest
    answers: Callable[[Iterable[str]], Iterator[Prediction]] = predictor.answers
    if arguments.endpoint is not None:
        models = model_ids(predictor.checkpoint, trusted=arguments.trust)
        answers = _endpoint(arguments.endpoint, arguments.data_dir, predictor.checkpoint, models)
        key, about = f"{arguments.endpoint} {digest}", {"endpoint": arguments.endpoint, **about}
    return Counting(key, judge, answers, training_photos(described)[0], predictor.answer), about


def _describe(predictor: "Predictor", run: "RunResults | None", shares: Sequence[float]) -> dict[str, str]:
    from bincounter.number_format import percent

    about = {"model": str(predictor.checkpoint), "counts": ", ".join(map(str, predictor.counts))}
    if run and (scores := run.metrics.get(run.headline_side)):
        about["accuracy"] = f"{percent(scores.get('accuracy'))} of {scores['n']:,} {run.headline_side} photos"
        about["calibration error"] = percent(scores.get("ece"))
    about["temperature"] = f"{predictor.description.get('temperature', 1.0):.2f}"
    named = zip(predictor.counts, shares, strict=True)
    about["shares in training"] = ", ".join(f"{count}: {percent(share)}" for count, share in named)
    return about


def _endpoint(
    name: str, data_dir: Path, checkpoint: Path, models: Collection[str]
) -> "Callable[[Iterable[str]], Iterator[Prediction]]":
    """Return a function that has photos counted by the server of this machine, or the SageMaker endpoint, of a name.

    Args:
        name: of the server or the endpoint.
        data_dir: folder with the list of the servers.
        checkpoint: the model that it must serve.
        models: ids of that model.
    """
    from bincounter.serving.local import client
    from bincounter.serving.local.access import read_access
    from bincounter.serving.local.running_servers import running_servers

    def check(model: str) -> None:
        if model not in models:
            raise UserError(
                f"--endpoint={name} serves {model}, which is another model than {checkpoint}: name the checkpoint that "
                "it serves with --ckpt-path, or deploy this one"
            )

    def count(photos: Iterable[str]) -> "Iterator[Prediction]":
        paths = map(Path, photos)
        server = next((each for each in running_servers(data_dir / "cache" / "serving") if each.name == name), None)
        if server is None:
            return _count_on_sagemaker(name, paths, check)
        check(server.model)
        return client.post_photos(server, paths, read_access("127.0.0.1", None).headers)

    return count


def _count_on_sagemaker(name: str, photos: "Iterable[Path]", check: Callable[[str], object]) -> "Iterator[Prediction]":
    from bincounter.cli.composition import compose
    from bincounter.cli.deploy_command import endpoint_spec
    from bincounter.cloud.account import Account
    from bincounter.cloud.endpoints.invoke import count_photos
    from bincounter.config.deploy_schema import check_deploy
    from bincounter.config.quoting import override_of

    cfg = compose([override_of("name", name), "target=realtime", "action=status"], config_name="deploy")
    check_deploy(cfg)
    spec = endpoint_spec(cfg)
    return count_photos(Account(spec.target["region"], "target", dry=False), spec, photos, check)
