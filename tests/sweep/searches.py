"""Tiny Hydra app to search over, and access to its study."""

from pathlib import Path

import optuna
from commands import environment
from warm_python import Started, WarmPython

APP = """
import sqlite3, sys, time
from pathlib import Path
import hydra
from omegaconf import DictConfig

@hydra.main(version_base="1.3", config_path=None)
def app(cfg: DictConfig):
    with Path(cfg.log).open("a") as log:
        log.write(f"{cfg.x}\\n")
    time.sleep(float(cfg.get("sleep", 0)))
    if "loses" in cfg:
        with sqlite3.connect(cfg.loses) as study:
            study.execute("DROP TABLE trials")
    if cfg.x < cfg.get("fails_below", -1):
        raise ValueError(f"x is {cfg.x}\\nand more")
    if cfg.get("returns") == "nothing":
        return None
    if cfg.get("returns") == "two":
        return cfg.x, (cfg.x - 1) ** 2
    return (cfg.x - 0.3) ** 2

if __name__ == "__main__":
    app()
"""


class Search:
    """A search of the tiny app, in a folder of its own.

    Args:
        folder: holds the app; the sweep lies in ``sweep``.
        python: runs it.
    """

    def __init__(self, folder: Path, python: WarmPython) -> None:
        self.folder, self.python = folder, python
        (folder / "app.py").write_text(APP)

    @property
    def database(self) -> str:
        return f"sqlite:///{self.folder / 'sweep' / 'study.db'}"

    def command(self, *overrides: str, n_trials: int, **settings: object) -> list[str]:
        chosen = [f"hydra.sweeper.settings.{name}={value}" for name, value in settings.items()]
        space = [] if any(each.startswith("+x=") for each in overrides) else ["+x=interval(0.0,1.0)"]
        place = ["hydra.sweep.dir=sweep", f"+log={self.folder / 'log.txt'}"]
        total = f"hydra.sweeper.settings.n_trials={n_trials}"
        return ["app.py", "-m", "hydra/sweeper=bincounter_optuna", total, *chosen, *space, *place, *overrides]

    def start(self, *overrides: str, n_trials: int, **settings: object) -> Started:
        return self.python.start(self.command(*overrides, n_trials=n_trials, **settings), self.folder, environment())

    def run(self, *overrides: str, n_trials: int, code: int = 0, **settings: object) -> str:
        arguments = self.command(*overrides, n_trials=n_trials, **settings)
        done = self.python.run(arguments, self.folder, environment())
        assert done.returncode == code, done.stderr + done.stdout
        return done.stderr + done.stdout

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return study_of(self.database).trials

    @property
    def runs(self) -> int:
        """Number of runs of the app."""
        return len((self.folder / "log.txt").read_text().splitlines())


def study_of(database: str) -> optuna.Study:
    """The only study of a database."""
    return optuna.load_study(study_name=optuna.get_all_study_names(database)[0], storage=database)


def states(trials: list[optuna.trial.FrozenTrial]) -> list[str]:
    return [trial.state.name for trial in trials]
