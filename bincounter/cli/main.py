"""``bincounter COMMAND``: train, deploy, look at data, count photos, compare runs, follow jobs at SageMaker."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bincounter import __version__
from bincounter.cli.audit_command import add_audit
from bincounter.cli.data_commands import add_data_commands, add_data_dir, add_trust, as_path, as_place, print_written
from bincounter.cli.export_command import add_export
from bincounter.cli.push_command import add_push
from bincounter.cli.review_command import add_review
from bincounter.cli.shell_completion import run_completion, wants_completion
from bincounter.errors import BinCounterError, ResourceError, closest_match
from bincounter.files import check_writable, format_json
from bincounter.names import accept_any_output, escape_name, flushed_output, one_line
from bincounter.redaction import mask_text

_HYDRA_APPS = {"train": "bincounter.cli.train_command", "deploy": "bincounter.cli.deploy_command"}
_EPILOG = (
    "bincounter COMMAND --help explains one; settings are written KEY=VALUE, and docs/train.md has everyday commands."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns its exit code (see bincounter.errors)."""
    if argv is None and not sys.flags.safe_path:
        # As with `python -m`, a user's own modules are found in the working directory.
        sys.path.append("")
    accept_any_output()
    # Users of `bincounter train` write ckpt_path=C: read as --ckpt-path=C.
    given = list(sys.argv[1:] if argv is None else argv)
    completing = wants_completion(given)
    if given and given[0] in _HYDRA_APPS and not completing:
        return _run_hydra_app(*given)
    words = [f"--ckpt-path={word.partition('=')[2]}" if word.startswith("ckpt_path=") else word for word in given]
    parser, commands = _parser()
    if given and not given[0].startswith("-") and given[0] not in commands:
        guess = closest_match(given[0], commands)
        hint = f"Did you mean '{guess}'?" if guess else f"The commands are {', '.join(commands)}."
        print(f"Error: Unknown command '{one_line(given[0])}'. {hint}", file=sys.stderr)
        return 2
    try:
        with flushed_output():
            if completing:
                return run_completion(given, commands, _run_hydra_app)
            if given and given[0] in commands and "--" not in words:  # argparse drops it
                arguments = commands[given[0]].parse_intermixed_args(words[1:])  # options between photos or overrides
            else:
                arguments = parser.parse_args(words)
            return arguments.command(arguments)
    except BinCounterError as error:
        print(f"Error: {one_line(mask_text(str(error)))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `| head` has closed the pipe
        return 1
    except OSError as error:
        sentence = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"Error: {one_line(sentence)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 1


def _run_hydra_app(command: str, *arguments: str) -> int:
    """Run a command whose arguments, options included, are parsed by Hydra."""
    from bincounter.cli.hydra_app import start_as_script

    program = importlib.import_module(_HYDRA_APPS[command])
    start_as_script(str(program.__file__), list(arguments))
    return program.main()


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Build the parser; return it with the parsers of the commands by name."""
    parser = argparse.ArgumentParser(
        prog="bincounter", description="Count the items in a warehouse bin from one photo.", epilog=_EPILOG
    )
    parser.add_argument("--version", action="version", version=f"bincounter {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("train", add_help=False, help="fit, score and report one configuration, or a sweep of them")
    commands.add_parser("deploy", add_help=False, help="put a checkpoint behind an endpoint, locally or on SageMaker")

    add_data_commands(commands)

    predict = commands.add_parser("predict", help="count the items in photos")
    predict.add_argument("sources", nargs="+", type=as_place, metavar="PHOTO|FOLDER|s3://...", help="to count")
    predict.add_argument(
        "--ckpt-path",
        type=as_path,
        help="a checkpoint, or a run's folder; the newest best.ckpt under logs/ by default",
    )
    predict.add_argument("--csv", type=as_path, help="write a table there instead of printing")
    predict.add_argument(
        "--coverage",
        type=float,
        metavar="SHARE",
        help="mark the least certain photos: all but this share need a person",
    )
    add_data_dir(predict)
    add_trust(predict)
    predict.set_defaults(command=_predict)

    add_audit(commands)
    add_review(commands)

    compare = commands.add_parser("compare", help="compare runs: differing settings and their scores")
    compare.add_argument("runs", nargs="+", type=as_path, metavar="RUN", help="folders of runs, or of sweeps")
    compare.add_argument("--output", type=as_path, metavar="PAGE", help="write the comparison to this page, too")
    compare.set_defaults(command=_compare)

    runs = commands.add_parser("runs", help="list runs and sweeps, best first")
    runs.add_argument(
        "folders",
        nargs="*",
        type=as_path,
        metavar="FOLDER",
        help="searched for runs (logs)",
    )
    runs.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    runs.set_defaults(command=_runs)

    cost = commands.add_parser("cost", help="time and cost of runs, sweeps and endpoints, also per point of accuracy")
    cost.add_argument("folders", nargs="+", type=as_path, metavar="RUN", help="folders of runs, sweeps or endpoints")
    cost.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    cost.set_defaults(command=_cost)

    add_export(commands)
    add_push(commands)

    rules = commands.add_parser(
        "rules", help="evaluate rules on the tensors recorded by debugger=tensors, with other bounds if given"
    )
    rules.add_argument("run", type=as_path, metavar="RUN", help="its folder")
    rules.add_argument("overrides", nargs="*", metavar="debugger.rules.RULE.SETTING=VALUE", help="a bound")
    rules.set_defaults(command=_rules)

    attach = commands.add_parser(
        "attach", help="follow the SageMaker jobs of a run or a sweep, and fetch their results"
    )
    attach.add_argument("folder", type=as_path, metavar="FOLDER", help="folder of the run or the sweep")
    attach.set_defaults(command=_attach)

    rehearsal = commands.add_parser(
        "rehearsal", help="start a local stand-in for AWS that runs SageMaker jobs on this machine"
    )
    rehearsal.set_defaults(command=_rehearsal)
    return parser, commands.choices


def _predict(arguments: argparse.Namespace) -> int:
    from bincounter.cli.hydra_app import show_log

    show_log()
    if arguments.csv:
        check_writable(arguments.csv, key="--csv")
    from bincounter.training.run_folder import find_newest_checkpoint

    checkpoint = arguments.ckpt_path or find_newest_checkpoint(Path("logs"), named_by="--ckpt-path")
    from bincounter.data.source import list_photos
    from bincounter.training.predictor import Predictor, print_predictions, write_predictions_csv
    from bincounter.training.trainer import keep_freed_memory, silence_lightning

    silence_lightning()
    keep_freed_memory()
    # Before photos of a bucket are fetched.
    predictor = Predictor(checkpoint, arguments.trust, coverage=arguments.coverage)
    photos = [photo for source in arguments.sources for photo in list_photos(source, arguments.data_dir)]
    answers = predictor.answers(photos)
    if arguments.csv:
        marked = arguments.coverage is not None
        counted = write_predictions_csv(arguments.csv, predictor.counts, answers, marked=marked)
        code = 0 if counted else 2
        print_written(arguments.csv, f"{counted} of {len(photos)} photos counted: ")
    else:
        code = print_predictions(answers)
    if predictor.failures:
        failed = f"{predictor.failures} of {len(photos)} photos were not read for a reason outside of them"
        raise ResourceError(f"{failed}: give this process the right, the memory or the open files, and run again.")
    return code


def _compare(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from bincounter.report.compare import ComparisonTables, compare

    if arguments.output:
        check_writable(arguments.output, key="--output")
    comparison = compare(arguments.runs)
    Console().print(ComparisonTables(comparison))
    if arguments.output:
        from bincounter.report.compare_page import write_comparison

        print(escape_name(write_comparison(arguments.output, comparison)))
    return 0


def _runs(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from rich.console import Console

    from bincounter.cli.runs_command import list_runs
    from bincounter.cli.runs_table import RunTables

    logs = Path("logs")
    listed = list_runs(arguments.folders or [logs] * logs.exists())
    if arguments.json:
        _print_json(asdict(listed))
    else:
        Console(highlight=False).print(RunTables(listed))
    return 0


def _print_json(document: dict[str, Any]) -> None:
    print(format_json(document))


def _cost(arguments: argparse.Namespace) -> int:
    from bincounter.cloud.cost_records import read_costs

    costs = read_costs(arguments.folders)
    if arguments.json:
        _print_json(costs.document())
    else:
        from rich.console import Console

        from bincounter.cloud.cost_report import render_costs

        Console(highlight=False).print(render_costs(costs))
    for error in costs.errors:
        print(f"Error: {one_line(error)}", file=sys.stderr)
    return 2 if costs.errors else 0


def _rules(arguments: argparse.Namespace) -> int:
    from omegaconf import OmegaConf
    from rich.console import Console

    from bincounter.cli.hydra_app import compose
    from bincounter.config.checks import check_bounds
    from bincounter.debugger.rule_runner import evaluate_rules, format_verdicts, rule_overrides

    overrides = rule_overrides(arguments.run, arguments.overrides)
    cfg = compose(overrides)
    check_bounds(cfg.debugger, "debugger")
    verdicts = evaluate_rules(arguments.run, OmegaConf.to_container(cfg.debugger))  # type: ignore[arg-type]
    Console().print(format_verdicts(verdicts))
    return int(any(verdict.action == "fail" for verdict in verdicts.found.values()))


def _attach(arguments: argparse.Namespace) -> int:
    from bincounter.cli.hydra_app import show_log
    from bincounter.cloud.job_runner import attach

    show_log()
    folders, errors = attach(arguments.folder)
    for folder in folders:
        print(escape_name(folder))
    if errors:
        raise errors[0]
    return 0


def _rehearsal(arguments: argparse.Namespace) -> int:
    from bincounter.cloud.sagemaker_launcher import hold_rehearsal

    hold_rehearsal()
    return 0
