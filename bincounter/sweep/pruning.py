"""Ending trials that promise less than others: by a callback in the run itself, or from afar by whoever reads its log.

Both report each epoch's validation score to the study, epochs counted from 1, and ask the study's pruner.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import lightning as L
from omegaconf import DictConfig, OmegaConf

from bincounter.config.launcher_schema import carried_out_here
from bincounter.config.search_schema import OptunaConfig
from bincounter.errors import Pruned
from bincounter.sweep.study import make_pruner, open_storage, reopen_trial, storage_of_job

if TYPE_CHECKING:
    from optuna import Trial

EPOCHS = "trainer.max_epochs"
SAVED_SECONDS = "saved_seconds"  # attribute of a pruned trial


class Judge:
    """Reports a trial's epochs, and tells when to end it.

    Args:
        trial: running.
        epochs: that it has in all.
    """

    def __init__(self, trial: "Trial", epochs: int) -> None:
        self._trial, self._epochs = trial, epochs
        # A trial that was gone on with tells an epoch twice; the first report stands.
        self._reported = set(trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values)
        self._first: int | None = None
        self._started = time.monotonic()

    def ends(self, epoch: int, value: float, seconds: float | None = None) -> bool:
        """Report an epoch; whether the trial is not worth going on with.

        After its last epoch a trial is complete, whatever its score.

        Args:
            epoch: counted from 1.
            value: of the metric.
            seconds: since the run began; by default since this judge was made.
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
    """Ends the fit with :class:`Pruned` when the study's pruner says so.

    Args:
        judge: made when the fit starts, on the first process alone.
        metric: logged by the validation, such as ``val/accuracy``.
        trial: number in the study.
    """

    def __init__(self, judge: Callable[[], Judge], metric: str, trial: int) -> None:
        self._make, self._metric, self._trial = judge, metric, trial
        self._judge: Judge | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to take the time."""
        self._judge = self._make() if trainer.is_global_zero else None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the epoch; before its checkpoint is written, so that a killed sweeper's trial is judged again."""
        if trainer.sanity_checking or self._metric not in trainer.callback_metrics:
            return
        epoch = trainer.current_epoch + 1
        value = float(trainer.callback_metrics[self._metric])
        ends = self._judge is not None and self._judge.ends(epoch, value)
        if trainer.strategy.broadcast(ends):
            raise Pruned(
                f"Trial {self._trial} was pruned after epoch {epoch} of {trainer.max_epochs}: others promise more than "
                f"its {self._metric} of {value:.4g}."
            )


def pruning_callbacks(cfg: DictConfig) -> list[L.Callback]:
    """The callback of a run that is a trial of a search that prunes, or none.

    Args:
        cfg: the run's whole configuration.
    """
    url = storage_of_job()
    search = cfg.hparams_search
    if OmegaConf.get_type(search) is not OptunaConfig or not carried_out_here(cfg.launcher) or url is None:
        return []
    if search.trial is None or not search.pruner:
        return []
    settings: Mapping[str, Any] = OmegaConf.to_container(search, resolve=True)  # type: ignore[assignment]

    def judge() -> Judge:
        return Judge(running_trial(url, settings), int(cfg.trainer.max_epochs))

    return [PruningCallback(judge, pruned_by(cfg), search.trial)]


def pruned_by(cfg: DictConfig) -> str:
    """The metric whose course ends trials early: the search's only one."""
    metrics = cfg.hparams_search.metrics
    return metrics[0] if metrics else cfg.optimized_metric


def judge_of_jobs(
    url: str, settings: Mapping[str, Any], cfg: DictConfig
) -> Callable[[int, int, Mapping[str, float], float], bool]:
    """A judge of trials whose jobs run elsewhere.

    It is told a trial's number, an epoch counted from 1, its scores and the seconds since the run began, and says
    whether to stop the job; it may be called from several threads.

    Args:
        url: of the study's storage.
        settings: of the search.
        cfg: what its trials have in common.
    """
    judges: dict[int, Judge] = {}
    lock = threading.Lock()
    metric = pruned_by(cfg)

    def ends(number: int, epoch: int, scores: Mapping[str, float], seconds: float) -> bool:
        with lock:
            if number not in judges:
                trial = running_trial(url, {**settings, "trial": number})
                judges[number] = Judge(trial, int(trial.params.get(EPOCHS, cfg.trainer.max_epochs)))
            return metric in scores and judges[number].ends(epoch, scores[metric], seconds)

    return ends


def running_trial(url: str, settings: Mapping[str, Any]) -> "Trial":
    """The trial that a job is, in the study that its sweeper keeps."""
    import optuna

    study = optuna.load_study(
        study_name=settings["study_name"],
        storage=open_storage(url),
        sampler=optuna.samplers.RandomSampler(),  # values have been chosen
        pruner=make_pruner(settings["pruner"]),
    )
    running = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
    return reopen_trial(study, next(trial for trial in running if trial.number == settings["trial"]))
