"""Pruning of trials, by a callback in a local run or by the sweeper from the log of a remote job.

Both report each epoch's validation score to the study, with epochs counted from 1, and ask its pruner.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import lightning as L
from omegaconf import DictConfig, OmegaConf

from bincounter.config.checks import plain_of
from bincounter.config.launcher_schema import runs_locally
from bincounter.config.search_schema import OptunaConfig
from bincounter.errors import Pruned
from bincounter.number_format import format_score
from bincounter.sweep.search_plan import EPOCHS
from bincounter.sweep.study import exported_storage_url, make_pruner, open_storage, reopen_trial

if TYPE_CHECKING:
    from optuna import Trial

SAVED_SECONDS = "saved_seconds"  # attribute of a pruned trial


class PruningPolicy:
    """Reports the epochs of a trial to its study and asks the pruner.

    Args:
        trial: running trial.
        epochs: number of epochs of the whole trial.
    """

    def __init__(self, trial: "Trial", epochs: int) -> None:
        self._trial, self._epochs = trial, epochs
        # A resumed trial repeats epochs; their first report stays.
        self._reported = set(trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values)
        self._first: int | None = None
        self._started = time.monotonic()

    def should_stop(self, epoch: int, value: float, seconds: float | None = None) -> bool:
        """Report an epoch; return True to prune the trial, never after its last epoch.

        Args:
            epoch: epoch, counted from 1.
            value: value of the metric.
            seconds: seconds since the run began; by default, since this object was created.
        """
        first = self._first = epoch if self._first is None else self._first
        if epoch not in self._reported and not math.isnan(value):
            self._trial.report(value, epoch)
            self._reported.add(epoch)
        if epoch >= self._epochs or not self._trial.should_prune():
            return False
        per_epoch = (time.monotonic() - self._started if seconds is None else seconds) / (epoch - first + 1)
        self._trial.set_user_attr(SAVED_SECONDS, round(per_epoch * (self._epochs - epoch), 3))
        return True


class PruningCallback(L.Callback):
    """Lightning callback that raises :class:`Pruned` when the study's pruner ends the trial.

    Args:
        make_policy: called at the start of the fit, on rank 0 only.
        metric: metric logged by the validation, such as ``val/accuracy``.
        trial: number in the study.
    """

    def __init__(self, make_policy: Callable[[], PruningPolicy | None], metric: str, trial: int) -> None:
        self._make_policy, self._metric, self._trial = make_policy, metric, trial
        self._policy: PruningPolicy | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the trial and start its clock."""
        self._policy = self._make_policy() if trainer.is_global_zero else None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the epoch, and prune; before the epoch's checkpoint, so that a killed trial reports it again."""
        if trainer.sanity_checking or self._metric not in trainer.callback_metrics:
            return
        epoch = trainer.current_epoch + 1
        value = float(trainer.callback_metrics[self._metric])
        stop = self._policy is not None and self._policy.should_stop(epoch, value)
        if trainer.strategy.broadcast(stop):
            raise Pruned(
                f"Trial {self._trial} was pruned after epoch {epoch} of {trainer.max_epochs}: "
                f"its {self._metric} is {format_score(self._metric, value, unit=True)}."
            )


def pruning_callbacks(cfg: DictConfig) -> list[L.Callback]:
    """Return the callback of a run that is a trial of a search with a pruner, else an empty list.

    Args:
        cfg: the run's whole configuration.
    """
    url = exported_storage_url()
    search = cfg.hparams_search
    if OmegaConf.get_type(search) is not OptunaConfig or not runs_locally(cfg.launcher) or url is None:
        return []
    if search.trial is None or not search.pruner:
        return []
    settings = plain_of(search)

    def make_policy() -> PruningPolicy | None:
        trial = running_trial(url, settings)
        return None if trial is None else PruningPolicy(trial, int(cfg.trainer.max_epochs))

    return [PruningCallback(make_policy, pruning_metric(cfg), search.trial)]


def pruning_metric(cfg: DictConfig) -> str:
    """Return the metric to prune by, the only objective."""
    metrics = cfg.hparams_search.metrics
    return metrics[0] if metrics else cfg.optimized_metric


def remote_pruning_policy(
    url: str, settings: Mapping[str, Any], cfg: DictConfig
) -> Callable[[int, int, Mapping[str, float], float], bool]:
    """Return the pruning callback of remote jobs: (trial number, epoch from 1, scores, seconds since start) -> stop?

    It is thread-safe.

    Args:
        url: URL of the study's storage.
        settings: ``hparams_search``, resolved.
        cfg: configuration shared by the trials.
    """
    policies: dict[int, PruningPolicy | None] = {}
    lock = threading.Lock()
    metric = pruning_metric(cfg)

    def should_stop(number: int, epoch: int, scores: Mapping[str, float], seconds: float) -> bool:
        with lock:
            if number not in policies:
                trial = running_trial(url, {**settings, "trial": number})
                epochs = 0 if trial is None else int(trial.params.get(EPOCHS, cfg.trainer.max_epochs))
                policies[number] = None if trial is None else PruningPolicy(trial, epochs)
            policy = policies[number]
            return policy is not None and metric in scores and policy.should_stop(epoch, scores[metric], seconds)

    return should_stop


def running_trial(url: str, settings: Mapping[str, Any]) -> "Trial | None":
    """Open the trial of a job in its sweeper's study; ``None`` if it is not running."""
    import optuna

    study = optuna.load_study(
        study_name=settings["study_name"],
        storage=open_storage(url),
        sampler=optuna.samplers.RandomSampler(),  # not used: the trial has its values
        pruner=make_pruner(settings["pruner"]),
    )
    running = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
    found = next((trial for trial in running if trial.number == settings["trial"]), None)
    return None if found is None else reopen_trial(study, found)
