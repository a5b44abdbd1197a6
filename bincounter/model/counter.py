"""BinCounter: backbone -> head -> objective, as one LightningModule."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric

from bincounter.errors import ConfigError, UserError, check_choice
from bincounter.model.answer import ANSWERS
from bincounter.model.backbones import cam_layer, feature_size
from bincounter.model.objectives import Objective
from bincounter.model.scores import CountMetrics, MeanLoss
from bincounter.model.unfreezing import Unfreezing


class BinCounter(L.LightningModule):
    """Counts the items in bin photos.

    Batches are ``{"image": float[B, 3, S, S] (normalised), "count": int[B], "id": list[str]}``; in training they may
    hold ``"target": float[B, K]``, distributions over the support made by mixing photos. A count of -1 marks padding.
    Where the backbone is frozen, its features ``"feature": [B, D]`` may stand in the place of ``"image"``.

    Before fitting, the caller sets :attr:`total_steps` and :attr:`steps_per_epoch`: reading them from the trainer in
    ``configure_optimizers`` would discard the restored state of the data loader.

    Args:
        backbone: photos to features, see :mod:`bincounter.model.backbones`.
        objective: loss, and distribution over counts, of the outputs.
        optimizer: parameter groups -> optimizer; needed only to fit.
        head: arguments ``layers``, ``width`` and ``dropout`` of :func:`bincounter.model.objectives.head`.
        schedule: ``name`` (``cosine`` or ``constant``), ``warmup_epochs`` (epochs, fractions allowed) and
            ``final_factor`` (the last learning rate as a fraction of the highest, for ``cosine``).
        trained: trained part of the backbone: ``all``, ``frozen``, ``last_stages`` or ``gradual``.
        stages: number of stages trained by ``last_stages``.
        unfreeze_every: epochs between two stages of ``gradual``.
        channels_last: keep photos and weights in channels-last memory order, which is quicker on CPUs and tensor cores.
        average_flips: answer with the mean of the distributions for a photo and for its mirror image.
        answer: count that a distribution answers with, ``mode`` or ``median``, see :mod:`bincounter.model.answer`.
        class_weights: ``balanced`` weighs each photo by ``n / (K * n_count)`` over the training photos, else ``None``.
        train_counts: photos per count in training; needed for ``balanced``.

    Attributes:
        total_steps: optimizer steps of the whole fit, ``None`` if its end is not set.
        steps_per_epoch: optimizer steps per epoch.
        description: metadata of checkpoints, see :func:`bincounter.model.build.checkpoint_metadata`.

    Raises:
        ConfigError: incompatible options, named in the message.
    """

    class_weights: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer] | None = None,
        *,
        head: Mapping[str, Any] | None = None,
        schedule: Mapping[str, Any] | None = None,
        trained: str = "all",
        stages: int = 1,
        unfreeze_every: int = 1,
        channels_last: bool = True,
        average_flips: bool = False,
        answer: str = "mode",
        class_weights: str | None = None,
        train_counts: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.total_steps: int | None = None
        self.steps_per_epoch: int | None = None
        self.description: dict[str, Any] | None = None
        self._average_flips = average_flips
        check_choice("model.answer", answer, ANSWERS)
        self.answer = answer
        self._configure_model(backbone, objective, head or {}, channels_last)
        self._configure_loss(class_weights, train_counts)
        self._configure_metrics()
        self._configure_fit(optimizer, dict(schedule or {}), Unfreezing(trained, stages, unfreeze_every))

    def _configure_model(
        self, backbone: nn.Module, objective: Objective, head: Mapping[str, Any], channels_last: bool
    ) -> None:
        if objective.spatial and not hasattr(backbone, "maps"):
            raise ConfigError(
                f"objective {type(objective).__name__} reads feature maps, but backbone {type(backbone).__name__} has "
                "no method maps; choose another objective or backbone."
            )
        self.backbone = backbone
        self.head = objective.head(feature_size(backbone), **head)
        self.objective = objective
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self._memory_format)

    def _configure_loss(self, class_weights: str | None, train_counts: Mapping[int, int] | None) -> None:
        weights = torch.ones(len(self.objective.counts))
        if class_weights is not None:
            check_choice("model.class_weights", class_weights, ["balanced", "null"])
        if class_weights == "balanced":
            if train_counts is None:
                raise ValueError("class_weights=balanced needs train_counts")
            weights = _balanced(train_counts, self.objective.counts)
        self.register_buffer("class_weights", weights)

    def _configure_metrics(self) -> None:
        self.val_metrics = CountMetrics(self.counts, answer=self.answer).clone(prefix="val/")
        self.val_loss = MeanLoss(self.counts, torch.float32)

    def _configure_fit(
        self,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer] | None,
        schedule: dict[str, Any],
        unfreezing: Unfreezing,
    ) -> None:
        check_choice("model.schedule.name", schedule.setdefault("name", "cosine"), ["cosine", "constant"])
        unfreezing.check(self.backbone)
        self._optimizer, self._schedule, self._unfreezing = optimizer, schedule, unfreezing
        if unfreezing.trained != "gradual":  # DDP wraps the model before the first epoch and must see all it will train
            unfreezing.require_gradients(self.backbone, epoch=0)
        self.train()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for module in self.modules():
            if isinstance(module, Metric):
                module.set_dtype(torch.float32)  # sums of many photos, also where the weights have 16 bits
        return self

    @property
    def counts(self) -> tuple[int, ...]:
        """The support: counts the model can predict, ascending."""
        return self.objective.answered

    @property
    def cam_layer(self) -> nn.Module:
        """Layer explained by Grad-CAM."""
        return cam_layer(self.backbone)

    @property
    def trained(self) -> str:
        """Trained part of the backbone: ``all``, ``frozen``, ``last_stages`` or ``gradual``."""
        return self._unfreezing.trained

    def size(self) -> str:
        """Describe the number of parameters."""
        parameters = list(self.parameters())
        total, trained = sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
        return f"{total / 1e6:.1f} million parameters, {trained / 1e6:.1f} million of them trained"

    def forward(self, image: Tensor) -> Tensor:
        """``float[B, 3, S, S]``, normalised -> outputs of the head, ``float[B, out_features]``."""
        return self.head(self.features(image))

    def features(self, image: Tensor) -> Tensor:
        """``float[B, 3, S, S]``, normalised -> features ``float[B, D]``; maps if the objective is spatial."""
        image = image.to(self.dtype).contiguous(memory_format=self._memory_format)  # trainer.precision=bf16-true
        backbone: Any = self.backbone
        return backbone.maps(image) if self.objective.spatial else backbone(image)

    def _outputs(self, batch: Mapping[str, Any]) -> Tensor:
        """Outputs for a batch, computed from its features if it has them."""
        return self.head(batch["feature"]) if "feature" in batch else self(batch["image"])

    def probabilities(self, image: Tensor) -> Tensor:
        """``float[B, 3, S, S]``, normalised -> distributions over the support, ``float32[B, K]``."""
        return self._distributions(self._views({"image": image}))["probabilities"]

    def probabilities_of_view(self, image: Tensor) -> Tensor:
        """Like :meth:`probabilities`, but of the photos as they are alone, also with ``average_flips``."""
        return self._distributions([self(image)])["probabilities"]

    def _views(self, batch: Mapping[str, Any]) -> list[Tensor]:
        """Outputs for a batch, and with ``average_flips`` those for its mirror images."""
        mirrored = [self(batch["image"].flip(-1))] if self._average_flips and "image" in batch else []
        return [self._outputs(batch), *mirrored]

    def _distributions(self, views: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return ``probabilities`` and ``log_probabilities``, ``float32[B, K]``."""
        with torch.autocast(views[0].device.type, enabled=False):  # bfloat16 has too few digits for probabilities
            wide = [outputs.to(_wide(outputs)) for outputs in views]
            return {
                "probabilities": self.objective.calibrated(*wide).float(),
                "log_probabilities": self.objective.log_calibrated(*wide).float(),
            }

    def _losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the loss per photo, times its class weight, ``float32[B]``."""
        with torch.autocast(outputs.device.type, enabled=False):
            target = target.to(_wide(outputs))
            return self.objective.loss(outputs.to(target.dtype), target) * (target @ self.class_weights.to(target))

    def losses(self, outputs: Tensor, count: Tensor) -> Tensor:
        """Losses of the labelled photos, with the class weights of training.

        Args:
            outputs: ``float[B, out_features]``.
            count: ``int[B]``, -1 for an unknown count.

        Returns:
            ``float32[n]`` with ``n <= B``.
        """
        return self._losses(outputs, self._labels(count))[count >= 0]

    def _labels(self, count: Tensor) -> Tensor:
        """``int[B]`` -> one-hot rows ``float32[B, K]``; padding gives a row of zeros."""
        return (count[:, None] == self.objective.support).float()

    def setup(self, stage: str) -> None:
        """Reset the metrics: spawned processes share the memory of their sums."""
        self.val_metrics.reset()
        self.val_loss.reset()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Mean loss of a batch."""
        target = batch["target"] if "target" in batch else self._labels(batch["count"])
        loss = self._losses(self._outputs(batch), target).mean()
        if batch_idx % 10 == 0:  # it takes an eighth of a step on stored features
            # For display; TrainingLog writes it to the logs.
            self.log("train/loss", loss, prog_bar=True, logger=False, batch_size=len(batch["count"]))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add a batch to the validation metrics."""
        views = self._views(batch)
        self.val_metrics.update(counts=batch["count"], **self._distributions(views))
        self.val_loss.update(self.losses(views[0], batch["count"]))
        self.log_dict(self.val_metrics, on_step=False, on_epoch=True, batch_size=len(batch["count"]))
        self.log("val/loss", self.val_loss, on_step=False, on_epoch=True, batch_size=len(batch["count"]))

    def on_validation_epoch_end(self) -> None:
        """Stop a diverged training.

        Raises:
            UserError: the validation loss is not finite, and the training does not stop by itself.
        """
        if not self.val_loss.compute().isfinite() and not self.trainer.should_stop:
            raise UserError("The validation loss is not finite any more; lower model.optimizer.lr.")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Predict a batch.

        Returns:
            ``{"id": list[str], "count": int[B] or None, "probabilities": float32[B, K], "log_probabilities":
            float32[B, K]}``.
        """
        return {"id": batch["id"], "count": batch.get("count"), **self._distributions(self._views(batch))}

    def train(self, mode: bool = True) -> Self:
        """Set the training mode; frozen stages stay in evaluation mode."""
        super().train(mode)
        if mode and self._unfreezing.trained != "all":
            self._unfreezing.train(self.backbone, self.current_epoch)
        return self

    def on_train_start(self) -> None:
        """Open the stages of the current epoch: resuming in mid-epoch calls no ``on_train_epoch_start``."""
        self.on_train_epoch_start()

    def on_train_epoch_start(self) -> None:
        """Open the stages trained in this epoch."""
        self._unfreezing.require_gradients(self.backbone, self.current_epoch)
        self.train()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the optimizer, and a scheduler that sets the learning rate before each optimizer step."""
        if self._optimizer is None:
            raise ValueError("a BinCounter without an optimizer cannot be fitted")
        optimizer = self._optimizer(_parameter_groups(self))
        _fuse(optimizer)
        scheduler = LambdaLR(optimizer, self._learning_rate_factor())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _learning_rate_factor(self) -> Callable[[int], float]:
        """Linear warm-up, then constant or half a cosine (Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983)."""
        warmup_epochs, final = self._schedule.get("warmup_epochs", 0.0), self._schedule.get("final_factor", 0.0)
        if warmup_epochs and self.steps_per_epoch is None:
            raise ValueError("steps_per_epoch must be set before fitting with warmup_epochs")
        warmup = round(warmup_epochs * (self.steps_per_epoch or 0))
        total, cosine = self.total_steps, self._schedule["name"] == "cosine"
        if cosine and total is None:
            raise ConfigError(
                "model.schedule.name=cosine needs the number of steps; set trainer.max_epochs or trainer.max_steps, or "
                "model.schedule.name=constant."
            )

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            if not cosine or total is None:
                return 1.0
            progress = min((step - warmup) / max(total - warmup, 1), 1.0)
            return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

        return factor

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the metadata needed to rebuild the model."""
        if self.description is not None:
            checkpoint["bincounter"] = self.description


def _wide(outputs: Tensor) -> torch.dtype:
    """Precision of losses and probabilities: single, or double with ``trainer.precision=64-true``."""
    return torch.promote_types(outputs.dtype, torch.float32)


def _fuse(optimizer: Optimizer) -> None:
    """Update all weights on a CPU in one pass, 4 times quicker: 7 % of a step of a ResNet18 at 96 pixels.

    Not by an argument of the optimizer, with which Lightning refuses to clip gradients. A resumed run keeps what its
    checkpoint says.
    """
    for group in optimizer.param_groups:
        free = "fused" in group and group["fused"] is None and not (group.get("foreach") or group.get("differentiable"))
        if free and all(parameter.device.type == "cpu" for parameter in group["params"]):
            group["fused"] = True


def _balanced(train_counts: Mapping[int, int], counts: Iterable[int]) -> Tensor:
    photos = torch.tensor([train_counts.get(count, 0) for count in counts], dtype=torch.float32)
    # A count without photos has no loss to weigh.
    return torch.where(photos > 0, photos.sum() / (len(photos) * photos.clamp(min=1)), 1.0)


def _parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Trained parameters in two groups: matrices, and vectors (biases, normalisation scales) without weight decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.ndim > 1]},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
