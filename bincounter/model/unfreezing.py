"""Trained part of a backbone: all, nothing, its last stages, or one more stage every few epochs."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from bincounter.errors import ConfigError, check_choice
from bincounter.model.backbones import stages as stages_of

TRAINED = ("all", "frozen", "last_stages", "gradual")


@dataclass(frozen=True, slots=True)
class Unfreezing:
    """Schedule of the trained stages of a backbone.

    Gradual unfreezing follows Howard and Ruder (ULMFiT, ACL 2018, https://arxiv.org/abs/1801.06146): only the head in
    the first ``every`` epochs, then one more stage every ``every`` epochs, from the output to the input.

    Attributes:
        trained: ``all``, ``frozen``, ``last_stages`` or ``gradual``.
        stages: number of stages trained by ``last_stages``.
        every: epochs between two stages of ``gradual``.
    """

    trained: str = "all"
    stages: int = 1
    every: int = 1

    def check(self, backbone: nn.Module) -> None:
        """Check the schedule against a backbone.

        Raises:
            ConfigError: an unknown name, a backbone without stages, or a number out of range.
        """
        check_choice("model.trained", self.trained, TRAINED)
        if self.trained in ("all", "frozen"):
            return
        stages = stages_of(backbone)
        if not stages:
            raise ConfigError(
                f"model.trained={self.trained} needs a backbone with stages, which {type(backbone).__name__} does not "
                "name; use model.trained=all or frozen."
            )
        if self.trained == "last_stages" and not 1 <= self.stages <= len(stages):
            raise ConfigError(f"model.stages={self.stages} must be 1 to {len(stages)}, the stages of this backbone.")
        if self.trained == "gradual" and self.every < 1:
            raise ConfigError(f"model.unfreeze_every={self.every} must be at least 1 epoch.")

    def open_stages(self, backbone: nn.Module, epoch: int) -> Sequence[Sequence[nn.Module]] | None:
        """Stages trained in ``epoch``; ``None`` for the whole backbone, with parameters outside its stages."""
        if self.trained == "all":
            return None
        if self.trained == "frozen":
            return ()
        stages = stages_of(backbone) or ()
        number = self.stages if self.trained == "last_stages" else epoch // self.every
        return None if number >= len(stages) else stages[len(stages) - number :]

    def require_gradients(self, backbone: nn.Module, epoch: int) -> None:
        """Let gradients reach the stages trained in ``epoch``, and none below them."""
        if self.trained == "all":
            return  # a backbone may have frozen parameters of its own
        opened = self.open_stages(backbone, epoch)
        backbone.requires_grad_(opened is None)
        for stage in opened or ():
            for module in stage:
                module.requires_grad_(True)

    def train(self, backbone: nn.Module, epoch: int) -> None:
        """Put stages trained in ``epoch`` in training mode and all others in evaluation mode.

        In evaluation mode batch normalisation keeps its statistics, and dropout passes features through unchanged.
        Modules without parameters, such as dropout, follow the module around them.
        """
        opened = self.open_stages(backbone, epoch)
        backbone.train(opened is None)
        modules = [module for stage in opened or () for module in stage]
        for module in modules:
            module.train()
        _train_inside(backbone, {id(each) for module in modules for each in module.parameters()})


def _train_inside(module: nn.Module, trained: set[int]) -> None:
    """Put the largest modules all of whose parameters are trained in training mode."""
    for child in module.children():
        parameters = [id(each) for each in child.parameters()]
        if parameters and trained.issuperset(parameters):
            child.train()
        else:
            _train_inside(child, trained)
