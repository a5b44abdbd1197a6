"""Fit, score and report one configuration: ``python train.py [GROUP=OPTION] [KEY=VALUE] ...``.

See README.md for everyday commands; ``python train.py --help`` lists the configuration groups, ``--cfg job`` prints
the configuration that a command line composes.
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from bincounter.command_line import main


def job(cfg: DictConfig) -> float | None:
    """Run one composed configuration and write its report; returns the value a sweep optimises."""
    # Imported here, so that --help and tab completion are quick.
    from bincounter.config import validate

    validate(cfg)
    from bincounter.inspect.debugger import debugger_callbacks
    from bincounter.inspect.finished import report_run
    from bincounter.inspect.profile.watching import profiler_callbacks, say_where_the_time_went
    from bincounter.training.failures import answered
    from bincounter.training.run import run

    callbacks = [*debugger_callbacks(cfg), *profiler_callbacks(cfg)]
    if cfg.hparams_search is not None:
        from bincounter.sweep.pruning import pruning_callbacks

        callbacks += pruning_callbacks(cfg)
    finished = run(cfg, callbacks)
    if finished is None:
        return None
    with answered(batch_size=cfg.data.batch_size, run=finished.folder.path):
        say_where_the_time_went(finished.folder.path, cfg)
        report_run(finished.folder.path, finished.model, finished.data, finished.fabric)
    return finished.objective


if __name__ == "__main__":
    sys.exit(main(job, config_dir=Path(__file__).parent / "conf", config_name="train"))
