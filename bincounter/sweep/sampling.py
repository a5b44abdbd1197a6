"""The sampler and the pruner of a study, made from their ``_target_``.

A sampler is seeded anew for every trial from (seed, trial number): a search that was killed proposes what an
undisturbed one would have, and processes that share a study do not propose the same. What Optuna's samplers have to
remember they keep in the study. Two walk one sequence through all trials, and keep their seed: the grid and QMC.
"""

import inspect
import itertools
import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bincounter.config.targets import check_target, imported
from bincounter.errors import ConfigError
from bincounter.sweep.distributions import to_optuna
from bincounter.sweep.space import Choice, Interval, Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

log = logging.getLogger(__name__)

_SAMPLER, _PRUNER = "hparams_search.sampler", "hparams_search.pruner"


class Sampling:
    """Makes the sampler of each trial.

    Args:
        node: ``_target_`` of an Optuna sampler, with its arguments.
        parameters: the space.
        objectives: how many there are.

    Raises:
        ConfigError: there is no such sampler, or it cannot search this space.
    """

    def __init__(self, node: Mapping[str, Any], parameters: Space, objectives: int) -> None:
        from optuna.samplers import BaseSampler, CmaEsSampler, GridSampler, QMCSampler

        check_target(_SAMPLER, node, given=("search_space",))
        self._type = imported(_SAMPLER, node["_target_"])
        if not (inspect.isclass(self._type) and issubclass(self._type, BaseSampler)):
            raise ConfigError(f"{_SAMPLER}._target_={node['_target_']} is no sampler of Optuna: see optuna.samplers")
        self._node = dict(node)
        self._one_sequence = issubclass(self._type, (GridSampler, QMCSampler))
        self.most: int | None = None
        if issubclass(self._type, GridSampler):
            grid = {each.key: _listed(each, to_optuna([each])[each.key]) for each in parameters}
            self._node["search_space"] = grid
            self.most = math.prod(map(len, grid.values()))
        if issubclass(self._type, CmaEsSampler):
            self._fit_cmaes(parameters, objectives)
        if "seed" in inspect.signature(self._type).parameters:
            self._node.setdefault("seed", 0)
        self.of(0)

    def total(self, asked: int) -> int:
        """How many of the trials asked for there can be."""
        return asked if self.most is None else min(asked, self.most)

    def _fit_cmaes(self, parameters: Space, objectives: int) -> None:
        if objectives > 1:
            raise ConfigError(f"{_SAMPLER}=cmaes searches one metric: use nsgaii or tpe for several")
        drawn = [parameter.key for parameter in parameters if isinstance(parameter, Choice)]
        self._node.setdefault("warn_independent_sampling", False)  # said here, once
        if drawn:
            log.warning("CMA-ES searches numbers: %s are drawn at random beside it.", ", ".join(drawn))

    def of(self, number: int) -> "BaseSampler":
        """The sampler that chooses the values of trial ``number``."""
        node = self._node
        if node.get("seed") is not None and not self._one_sequence:
            node = {**node, "seed": _seed(int(node["seed"]), number)}
        return _made(_SAMPLER, node)


def _seed(seed: int, number: int) -> int:
    import numpy as np

    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _listed(parameter: Interval | Choice, distribution: "BaseDistribution") -> list[Any]:
    """Every value, as it stands in the study."""
    if isinstance(parameter, Choice):
        return list(distribution.choices)  # type: ignore[attr-defined]
    values = parameter.values()
    if values is None:
        raise ConfigError(
            f"{_SAMPLER}=grid tries every value, and {parameter.key} is an interval without end: list values, as in "
            f"{parameter.key}=choice({parameter.low:g},{parameter.high:g})"
        )
    return list(itertools.islice(values, 100_000))


def make_pruner(node: Mapping[str, Any] | None) -> "BasePruner":
    """The pruner of a study; none ends no trial.

    Raises:
        ConfigError: there is no such pruner.
    """
    from optuna.pruners import BasePruner, NopPruner

    if not node:
        return NopPruner()
    check_target(_PRUNER, node)
    kind = imported(_PRUNER, node["_target_"])
    if not (inspect.isclass(kind) and issubclass(kind, BasePruner)):
        raise ConfigError(f"{_PRUNER}._target_={node['_target_']} is no pruner of Optuna: see optuna.pruners")
    return _made(_PRUNER, node)


def _made(key: str, node: Mapping[str, Any]) -> Any:
    from hydra.errors import HydraException
    from hydra.utils import instantiate

    try:
        return instantiate(dict(node), _convert_="all")
    except HydraException as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ConfigError(f"{key} cannot be made ({reason}): correct its arguments, see {node['_target_']}") from None
