"""Hydra apps: errors become one sentence and an exit code, and a resumed run gets its overrides back.

Hydra exits with 1 on a bad key and lets a ``sys.exit`` inside one job end a whole multirun. So jobs raise, and this
module alone turns exceptions into exit codes (see bincounter.errors).
"""

import errno
import gc
import logging
import os
import shutil
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from bincounter import __version__
from bincounter.cli.composition import Composer, checked_folder, compose
from bincounter.cli.hydra_internals import (
    conf_dir,
    first_job,
    made_folders,
    offered,
    parse_overrides,
    prepare_hydra,
    read_arguments,
    split_jobs,
)
from bincounter.config.launcher_schema import check_one_run, runs_locally
from bincounter.config.overrides import check_overrides, with_recipe
from bincounter.config.validate import validate
from bincounter.errors import BinCounterError, ConfigError, Interrupted, Pruned, Stopped, UserError
from bincounter.names import accept_any_output, flushed_output, one_line
from bincounter.progress import ScreenHandler
from bincounter.redaction import mask_argument, mask_text
from bincounter.training import resume

__all__ = ["compose", "conf_dir", "main", "main_once", "show_log", "start_as_script"]

_NO_FOLDER = (errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP)


def start_as_script(path: str, arguments: list[str]) -> None:
    """Make ``bincounter COMMAND ...`` look like ``python PATH ...``, so that it can be started again.

    Hydra parses ``sys.argv``, and Lightning starts further processes of DDP from it, or from the module that
    ``python -m`` ran: in both, the name of the command would be an override.

    Args:
        path: a file that is runnable as a script.
        arguments: arguments of the command.
    """
    sys.argv = [path, *arguments]
    sys.modules["__main__"].__spec__ = None


def main(
    job: Callable[[DictConfig], float | None],
    *,
    config_name: str,
    keep_error: Callable[[str], None] = lambda _: None,
    internal: bool = False,
) -> int:
    """Run ``job`` on the configuration that the command line composes.

    Args:
        job: called with each composed configuration; returns the value that a sweep optimises. It must not call
            ``sys.exit``.
        config_name: the primary file in ``conf``, without its suffix.
        keep_error: called with the error message, which is also printed on stderr.
        internal: bincounter wrote the command line, which may choose internal options.

    Returns:
        The exit code: 0, 1, 2 or 143.
    """

    def start(composer: Composer, arguments: Namespace) -> int:
        overrides = resume.expand_resume_overrides(arguments.overrides, composer)
        # A job of a search has none; a recipe that was chosen at the launch is among the overrides.
        replace_overrides(arguments, overrides if internal else with_recipe(overrides))
        if arguments.multirun:
            _check_jobs(arguments.overrides, composer)
        run_app(_print_run_folder(job), config_name)
        return 0

    return _exit_code(start, config_name, keep_error, internal=internal)


def main_once(action: Callable[[DictConfig], int], *, config_name: str) -> int:
    """Call ``action`` once on the configuration that the command line composes, without a sweep or a run folder.

    Args:
        action: called with the composed configuration; returns the exit code.
        config_name: the primary file in ``conf``, without its suffix.

    Returns:
        The exit code: 0, 1, 2 or 143.
    """

    def start(_: Composer, arguments: Namespace) -> int:
        if arguments.multirun or any(override.startswith("hydra.mode=") for override in arguments.overrides):
            raise ConfigError(
                "-m sweeps the runs of bincounter train, and a checkpoint is deployed once: remove -m, and start the "
                "command again for another endpoint"
            )
        codes: list[int] = []
        run_app(lambda cfg: codes.append(action(cfg)), config_name)
        return codes[0] if codes else 0  # none after --help or --cfg

    return _exit_code(start, config_name)


def _exit_code(
    start: Callable[[Composer, Namespace], int],
    config_name: str,
    keep_error: Callable[[str], None] = lambda _: None,
    *,
    internal: bool = False,
) -> int:
    """Start a Hydra app, and turn its exception into one sentence and an exit code."""
    accept_any_output()

    def print_error(sentence: str) -> None:
        sentence = mask_text(sentence)
        print(f"Error: {one_line(sentence)}", file=sys.stderr)
        keep_error(sentence)

    try:
        with flushed_output():
            if "--version" in sys.argv[1:]:
                print(f"bincounter {__version__}")
                return 0
            return start_app(start, config_name, internal=internal)
    except SystemExit as exit_request:
        return exit_request.code if isinstance(exit_request.code, int) else 1
    except KeyboardInterrupt:
        print_error("Interrupted.")
        return 1
    except BinCounterError as error:
        print_error(str(error))
        return error.exit_code
    except BrokenPipeError:  # `| head` has closed the pipe
        return 1
    except Exception as error:  # a bug: its report needs the traceback
        traceback.print_exc()
        keep_error(mask_text(f"{type(error).__name__}: {error}"))
        return 1
    finally:
        if "torch" not in sys.modules:  # after a quick answer, the interpreter's last collection is a sixth of the time
            gc.freeze()


def start_app(start: Callable[[Composer, Namespace], int], config_name: str, *, internal: bool = False) -> int:
    """Check the command line in ``sys.argv``, and call ``start`` with a composer and the parsed arguments.

    Raises:
        BinCounterError: an override is wrong, or ``start`` raised; the message is one sentence with the next step.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting
    composer, arguments = Composer(config_name, config_name), Namespace(overrides=[])
    try:
        arguments = read_arguments()
        _check_options(arguments)
        prepare_hydra(multirun=arguments.multirun)
        offered.clear()
        composer = Composer(config_name, arguments.config_name or config_name, checked_folder(arguments.config_dir))
        if arguments.shell_completion:
            offered.update(composer.groups(os.environ.get("COMP_LINE", "").split()))
        else:
            replace_overrides(arguments, composer.keep_text(arguments.overrides, sweep=_sweeps(arguments)))
            offered.update(composer.groups(arguments.overrides))
            check_overrides(arguments.overrides, offered, internal=internal)
        return start(composer, arguments)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(composer.explain(error, arguments.overrides)) from None


def _check_options(arguments: Namespace) -> None:
    """Reject options of Hydra for which it raises a traceback."""
    if arguments.experimental_rerun:
        raise ConfigError(
            "--experimental-rerun is not offered: start the command again, or resume a run with ckpt_path=last"
        )
    if arguments.resolve and not (arguments.cfg or arguments.help):
        raise ConfigError("--resolve is for --cfg: add --cfg job")
    kinds = {"--cfg": arguments.cfg, "--info": arguments.info, "-m": arguments.multirun, "--run": arguments.run}
    given = [name for name, value in kinds.items() if value]
    if len(given) > 1 and "-m" in given[1:]:
        raise ConfigError(f"{given[0]} shows one configuration: remove -m, and give each setting one value")
    if len(given) > 1:
        raise ConfigError(f"{given[0]} and {given[1]} exclude each other: remove one of them")


def _sweeps(arguments: Namespace) -> bool:
    """Return True if commas separate values to try."""
    names = [override.partition("=")[0] for override in arguments.overrides]
    return arguments.multirun or any(name in ("hparams_search", "hydra/sweeper", "hydra.mode") for name in names)


def replace_overrides(arguments: Namespace, now: list[str]) -> None:
    """Replace the overrides, also in ``sys.argv``, which Hydra parses and Lightning passes to further processes."""
    sys.argv[1:] = [*(word for word in sys.argv[1:] if word not in arguments.overrides), *now]
    arguments.overrides = now


def run_app(job: Callable[[DictConfig], Any], config_name: str) -> None:
    """Run the Hydra app; the exception of a single run is raised here, since Hydra would print another line."""
    failures: list[Exception] = []

    def task(cfg: DictConfig) -> Any:
        try:
            if HydraConfig.get().job.chdir:
                raise ConfigError(
                    "hydra.job.chdir=true would look for relative paths in the run's folder: remove it; the folder is "
                    "printed at the end, and paths.output_dir names it"
                )
            return job(cfg)
        except Exception as error:
            hydra_config = HydraConfig.get()
            if hydra_config.mode == RunMode.MULTIRUN:
                _print_job_error(error, hydra_config.job.num, searched=cfg.get("hparams_search") is not None)
                raise
            failures.append(error)
            return None

    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(task)()
    except OSError as error:  # Hydra makes the folder of a run before the job starts
        if error.errno not in _NO_FOLDER:
            raise
        why = str(error.strerror).lower()
        raise UserError(f"{error.filename} cannot be a run's folder ({why}): set another paths.output_dir") from error
    if failures:
        if isinstance(failures[0], UserError):
            _remove_refused()
        raise failures[0]


def _remove_refused() -> None:
    """Remove the folder that Hydra made for a run which was refused before it wrote anything but its log."""
    if made_folders and all(path.suffix == ".log" or path.name == ".lock" for path in made_folders[0].iterdir()):
        root = logging.getLogger()
        for handler in [each for each in root.handlers if isinstance(each, logging.FileHandler)]:
            if Path(handler.baseFilename).parent == made_folders[0].absolute():
                root.removeHandler(handler)
                handler.close()
        shutil.rmtree(made_folders[0], ignore_errors=True)
        for folder in made_folders[1:]:
            with suppress(OSError):  # another run may use it now
                folder.rmdir()


def _print_run_folder(job: Callable[[DictConfig], float | None]) -> Callable[[DictConfig], float | None]:
    def printing(cfg: DictConfig) -> float | None:
        # Under -m the configured folder is the parent; the job's own is the one Hydra made for it.
        cfg.paths.output_dir = HydraConfig.get().runtime.output_dir
        value = job(cfg)
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(cfg.paths.output_dir, flush=True)
        return value

    return printing


def _check_jobs(overrides: list[str], composer: Composer) -> None:
    """Check all jobs of a sweep over listed values before the first one starts."""
    with composer.loader() as loader:
        parsed = parse_overrides(overrides, loader)
        if any(override.key_or_group in ("hparams_search", "hydra/sweeper") for override in parsed):
            composer(first_job(parsed))  # an unknown setting is named before the libraries of a search are imported
            return  # the sweeper checks the others
        for override in parsed:
            if override.is_interval_sweep():
                raise ConfigError(
                    f"{override.input_line} has no end of values to try: add hparams_search=optuna, which chooses "
                    "among them, or list some"
                )
        for override in parsed:
            if override.is_sweep_override() and override.key_or_group.partition(".")[0] == "launcher":
                raise ConfigError(
                    f"{override.key_or_group} is one for all jobs of a sweep: start a sweep for each of its values"
                )
        jobs = split_jobs(parsed)
    if not jobs:
        empty = next(override for override in parsed if override.is_sweep_override())
        raise ConfigError(f"{empty.input_line} names nothing to try: list some values, or use another pattern")
    for number, job in enumerate(jobs):
        try:
            cfg = composer(job)
            validate(cfg)
            # DDP starts this command again on every device.
            if runs_locally(cfg.launcher) and str(cfg.trainer.get("devices", 1)) != "1":
                raise ConfigError("a sweep runs its jobs on one device each: set trainer.devices=1")
        except ConfigError as error:
            raise ConfigError(f"job {number} ({' '.join(map(mask_argument, job))}): {error}") from None
    if not runs_locally(cfg.launcher):
        check_one_run(cfg.launcher, len(jobs))


def _print_job_error(error: Exception, number: int, *, searched: bool) -> None:
    """Print a failed job of a sweep at once: Hydra reports only the first one, after all have ended."""
    if isinstance(error, Pruned):
        print(error, file=sys.stderr)
    elif isinstance(error, BinCounterError) and not (searched and isinstance(error, (Interrupted, Stopped))):
        # A search prints instructions for resuming itself.
        print(f"Error in job {number}: {one_line(mask_text(str(error)))}", file=sys.stderr)
    if isinstance(error, Stopped):
        raise SystemExit(error.exit_code)  # SIGTERM stops the whole sweep


def show_log() -> None:
    """Log plain sentences to stderr, as ``bincounter train`` does."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[ScreenHandler()])
    logging.getLogger("botocore").setLevel(logging.WARNING)
