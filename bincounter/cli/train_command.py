"""The command ``train``: fit, score and report one configuration.

``bincounter train [GROUP=OPTION] [KEY=VALUE] ...``, or ``python train.py ...`` in a checkout; everyday commands are in
docs/train.md. ``--help`` lists the configuration groups, ``--cfg job`` prints the configuration of a command line.
"""

import gc
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from omegaconf import DictConfig

from bincounter.cli import hydra_app

log = logging.getLogger(__name__)


def main(*, keep_error: Callable[[str], None] = lambda _: None, internal: bool = False) -> int:
    """Run the command line in ``sys.argv``; returns the exit code.

    Args:
        keep_error: called with the error sentence, which is also printed on stderr.
        internal: see :func:`bincounter.cli.hydra_app.main`.
    """
    return hydra_app.main(job, config_name="train", keep_error=keep_error, internal=internal)


def job(cfg: DictConfig) -> float | None:
    """Run one composed configuration and write its report; returns the value a sweep optimises."""
    # Imported here, so that --help and tab completion are quick.
    with _uncollected():
        from bincounter.config.validate import validate

        validate(cfg)
        from bincounter.debugger.rule_runner import debugger_callbacks
        from bincounter.profiler.step_profiler import log_profile_summary, profiler_callbacks
        from bincounter.training.run import run
        from bincounter.training.trainer import translate_errors

    callbacks = [*debugger_callbacks(cfg), *profiler_callbacks(cfg)]
    if cfg.hparams_search is not None:
        from bincounter.sweep.pruning import pruning_callbacks

        callbacks += pruning_callbacks(cfg)
    outcome = run(cfg, callbacks)
    if outcome is None:
        return None
    # Not before training: the first step does not wait for captum.
    from bincounter.debugger.rule import read_verdicts
    from bincounter.profiler.profile_facts import read_profile
    from bincounter.report.report import write_report
    from bincounter.report.report_photos import explain, select_photos
    from bincounter.training.mlflow_logger import register_models
    from bincounter.training.results import read_results

    with translate_errors(batch_size=cfg.data.batch_size, run=outcome.folder.path):
        results = read_results(outcome.folder.path)  # each file of the run is read once
        verdicts = read_verdicts(results.path)
        profile = read_profile(results.path, results.config)
        log_profile_summary(profile)
        photos = explain(select_photos(results), outcome)
        log.info("Report: %s", write_report(results, verdicts, profile, photos))
    register_models(outcome.loggers, outcome.folder.path)
    return outcome.objective


@contextmanager
def _uncollected() -> Iterator[None]:
    """Import torch without garbage collection, which looks at the new objects again and again: a fifth of the time."""
    first = gc.isenabled() and "torch" not in sys.modules
    if first:
        gc.disable()
    try:
        yield
    finally:
        if first:
            gc.freeze()
            gc.enable()


if __name__ == "__main__":  # DDP starts this for each further device, if the command was `bincounter train`
    sys.path[0] = ""  # as for that command, a user's own modules are found in the working directory
    sys.exit(main())
