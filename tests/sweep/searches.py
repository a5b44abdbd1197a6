"""Searches by ``bincounter train`` whose trials train nothing, and access to their studies."""

from pathlib import Path

import optuna
from bins import square_bins
from commands import SMALL_RUN, environment
from warm_python import Started, WarmPython

LR = "model.optimizer.lr"
APP = """
import os, sqlite3, sys, time
from pathlib import Path
from bincounter.cli import hydra_app

def job(cfg):
    lr = cfg.model.optimizer.lr
    with Path(os.environ["LOG"]).open("a") as log:
        log.write(f"{lr}\\n")
    time.sleep(float(os.environ.get("SLEEP", 0)))
    if "LOSES" in os.environ:
        with sqlite3.connect(os.environ["LOSES"]) as study:
            study.execute("DROP TABLE trials")
    if lr < float(os.environ.get("FAILS_BELOW", 0)):
        raise ValueError(f"lr is {lr}\\nand more")
    return None if "NO_SCORE" in os.environ else 1 - (lr - 0.03) ** 2

sys.exit(hydra_app.main(job, config_name="train"))
"""


class Search:
    """A search by the command ``train``, in a folder of its own, with a job that computes a score from the settings.

    Args:
        folder: holds the program; the sweep lies in ``sweep``.
        python: runs it.

    Attributes:
        variables: environment of the job: SLEEP (seconds), FAILS_BELOW (learning rate), LOSES (database), NO_SCORE.
    """

    def __init__(self, folder: Path, python: WarmPython) -> None:
        self.folder, self.python = folder, python
        self.variables: dict[str, str] = {}
        self.bins = square_bins(folder / "bins", photos=16)
        (folder / "app.py").write_text(APP)

    @property
    def database(self) -> str:
        return f"sqlite:///{self.folder / 'sweep' / 'study.db'}"

    def start(self, *overrides: str, n_trials: int, **settings: object) -> Started:
        chosen = [f"hparams_search.{name}={value}" for name, value in settings.items()]
        space = [] if any(each.startswith(f"{LR}=") for each in overrides) else [f"{LR}=interval(0.01,0.1)"]
        places = ["paths.output_dir=sweep", *(f"paths.{name}_dir={name}" for name in ("data", "cache", "log"))]
        fixed = [*SMALL_RUN, f"data.source={self.bins}", "data.batch_size=8", "hparams_search=optuna"]
        command = ["app.py", *fixed, f"hparams_search.n_trials={n_trials}", *chosen, *space, *places, *overrides]
        variables = {**environment(), "LOG": str(self.folder / "log.txt"), **self.variables}
        return self.python.start(command, self.folder, variables)

    def run(self, *overrides: str, n_trials: int, code: int = 0, **settings: object) -> str:
        process = self.start(*overrides, n_trials=n_trials, **settings)
        out, err = process.communicate()
        assert process.returncode == code, err + out
        return err + out

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return study_of(self.database).trials

    @property
    def runs(self) -> int:
        """Number of runs of the job."""
        return len((self.folder / "log.txt").read_text().splitlines())


def study_of(database: str) -> optuna.Study:
    """The only study of a database."""
    return optuna.load_study(study_name=optuna.get_all_study_names(database)[0], storage=database)


def states(trials: list[optuna.trial.FrozenTrial]) -> list[str]:
    return [trial.state.name for trial in trials]
