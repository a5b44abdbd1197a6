import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bincounter.errors import ConfigError, UserError
from bincounter.model.build import build_counter
from bincounter.model.counter import BinCounter
from bincounter.model.scores import score
from bincounter.model.unfreezing import Unfreezing
from bincounter.training.averaging import EMAWeightAveraging

COUNTS = [0, 1, 2, 3]
Build = Callable[..., BinCounter]


@pytest.fixture
def build(model_cfg: dict[str, Any], objective_cfg: dict[str, Any], loader: DataLoader) -> Build:
    def make(
        epochs: int = 1, objective: str = "Classification", train_counts: Any = None, **options: Any
    ) -> BinCounter:
        torch.manual_seed(0)
        target = {"_target_": f"bincounter.model.objectives.{objective}"}
        counter = build_counter({**model_cfg, **options}, target, COUNTS, train_counts)
        counter.steps_per_epoch, counter.total_steps = len(loader), epochs * len(loader)
        return counter

    return make


def trainer(epochs: int = 1, *callbacks: Callback, **options: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    checkpoints = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    return L.Trainer(
        max_epochs=epochs, callbacks=list(callbacks), enable_checkpointing=checkpoints, **{**quiet, **options}
    )


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("objective", ["Classification", "NeighbourSoftened", "Corn"])
def test_a_small_model_learns_to_count_squares(objective: str, build: Build, big_loader: DataLoader) -> None:
    counter = build(objective=objective)
    counter.steps_per_epoch, counter.total_steps = len(big_loader), 4 * len(big_loader)
    fit = trainer(4)
    fit.fit(counter, big_loader, big_loader)
    assert fit.callback_metrics["val/accuracy"] > 0.75  # always answering one count: 0.25
    assert fit.callback_metrics["val/loss"] < 1.0


def test_validation_metrics_are_of_the_whole_epoch_and_ignore_padding(build: Build, loader: DataLoader) -> None:
    counter = build().eval()
    fit = trainer()
    fit.validate(counter, loader, verbose=False)
    whole = {name: value.item() for name, value in fit.callback_metrics.items()}
    padded = list(loader)
    padded[0] = {**padded[0], "count": padded[0]["count"].clone()}
    padded.append({**padded[0], "count": torch.full((8,), -1)})
    fit.validate(counter, DataLoader(padded, batch_size=None), verbose=False)  # type: ignore[arg-type]
    assert {name: value.item() for name, value in fit.callback_metrics.items()} == pytest.approx(whole, abs=1e-6)
    assert whole["val/loss"] == pytest.approx(whole["val/cross_entropy"], abs=1e-5)


@pytest.mark.parametrize("objective", ["Classification", "Corn"])
def test_a_diverged_model_has_one_cross_entropy(objective: str, build: Build, loader: DataLoader) -> None:
    counter = build(objective=objective).eval()
    with torch.no_grad():
        counter.head[-1].weight *= 1e4  # type: ignore[index]
    fit = trainer()
    fit.validate(counter, loader, verbose=False)
    answers = [counter.predict_step(batch, 0) for batch in loader]
    columns = {name: torch.cat([each[name] for each in answers]) for name in answers[0] if name != "id"}
    stored = score(columns["probabilities"], columns["count"], COUNTS, {}, columns["log_probabilities"])
    assert stored["cross_entropy"] > 200  # far below the least float32
    assert fit.callback_metrics["val/cross_entropy"].item() == pytest.approx(stored["cross_entropy"], rel=1e-5)
    assert fit.callback_metrics["val/loss"].item() == pytest.approx(stored["cross_entropy"], rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_scores_are_exact_where_the_weights_have_another_precision(
    precision: Any, build: Build, loader: DataLoader
) -> None:
    counter = build()
    fit = trainer(precision=precision)
    fit.fit(counter, loader, loader)
    photos = sum(len(batch["count"]) for batch in loader)
    right = fit.callback_metrics["val/accuracy"].item() * photos
    assert counter.dtype == {"bf16-true": torch.bfloat16, "64-true": torch.float64}[precision]
    assert right == pytest.approx(round(right), abs=1e-4)
    assert fit.callback_metrics["val/loss"].item() == pytest.approx(fit.callback_metrics["val/cross_entropy"].item())


def test_training_and_validation_loss_are_weighted_alike(build: Build, loader: DataLoader) -> None:
    counter = build(class_weights="balanced", train_counts={0: 9, 1: 1, 2: 1, 3: 1}).eval()
    photos = [len(batch["count"]) for batch in loader]
    training = [counter.training_step(batch, 0).item() for batch in loader]
    fit = trainer()
    fit.validate(counter, loader, verbose=False)
    assert fit.callback_metrics["val/loss"].item() == pytest.approx(np.average(training, weights=photos), rel=1e-5)


@pytest.mark.parametrize("objective", ["Classification", "Corn"])
def test_averaged_weights_leave_the_scores_right(objective: str, build: Build, loader: DataLoader) -> None:
    # Averaging averages buffers too: a support kept in one would drift, and both losses with it.
    fit = trainer(3, EMAWeightAveraging(decay=0.9))
    fit.fit(build(epochs=3, objective=objective), loader, loader)
    scores = fit.callback_metrics
    assert scores["val/loss"].item() == pytest.approx(scores["val/cross_entropy"].item(), abs=1e-5)


def test_averaged_weights_of_a_short_fit_are_near_its_last(build: Build, loader: DataLoader) -> None:
    averaged, last = build(epochs=10), build(epochs=10)
    initial, average = state(last), pickle.loads(pickle.dumps(EMAWeightAveraging()))  # as sent to a spawned process
    trainer(10, average).fit(averaged, loader)
    trainer(10).fit(last, loader)
    name = "backbone.blocks.0.0.weight"
    begun, kept, ended = initial[name], averaged.state_dict()[name], last.state_dict()[name]
    assert 0 < (kept - ended).norm() < 0.5 * (begun - ended).norm()


def test_a_frozen_backbone_keeps_weights_and_statistics(build: Build, loader: DataLoader) -> None:
    counter = build(trained="frozen")
    before = state(counter)
    trainer().fit(counter, loader, loader)
    assert {name.split(".")[0] for name in changed(before, counter)} == {"head"}
    counter.train()
    assert counter.head.training and not any(module.training for module in counter.backbone.modules())


def test_last_stages_train_from_the_output_down(build: Build, loader: DataLoader) -> None:
    counter = build(trained="last_stages", stages=2)
    before = state(counter.backbone)
    trainer().fit(counter, loader)
    assert {".".join(name.split(".")[:2]) for name in changed(before, counter.backbone)} == {"blocks.1", "blocks.2"}


def test_dropout_follows_the_stage_around_it() -> None:
    backbone = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.Dropout()) for _ in range(3)), nn.Dropout())
    backbone.stages = [[block[0]] for block in backbone[:3]]  # type: ignore[assignment, index]
    Unfreezing("last_stages", stages=2).train(backbone, 0)
    assert [each.training for each in backbone.modules() if isinstance(each, nn.Dropout)] == [False, True, True, False]


class ChangedPerEpoch(Callback):
    """Notes which blocks of the backbone each epoch changed."""

    def __init__(self) -> None:
        self.blocks: list[set[str]] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.before = state(pl_module.backbone)  # type: ignore[arg-type]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.blocks.append({name.split(".")[1] for name in changed(self.before, pl_module.backbone)})  # type: ignore[arg-type]


def test_gradual_unfreezing_adds_a_stage_every_few_epochs(build: Build, loader: DataLoader) -> None:
    note = ChangedPerEpoch()
    trainer(8, note).fit(build(epochs=8, trained="gradual", unfreeze_every=2), loader, loader)
    assert note.blocks == [set(), set(), {"2"}, {"2"}, {"1", "2"}, {"1", "2"}, {"0", "1", "2"}, {"0", "1", "2"}]


class StopAfter(Callback):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.steps:
            raise KeyboardInterrupt


@pytest.mark.parametrize("step", [5, 8, 10])  # in the middle and at the end of an epoch
def test_gradual_unfreezing_goes_on_exactly(step: int, build: Build, loader: DataLoader, tmp_path: Path) -> None:
    # All batches alike, since a plain loader does not remember its place.
    batches: Any = DataLoader([next(iter(loader))] * len(loader), batch_size=None)  # type: ignore[arg-type]
    whole = build(epochs=4, trained="gradual")
    trainer(4).fit(whole, batches, batches)
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    with pytest.raises(SystemExit):
        trainer(4, save, StopAfter(step + 1)).fit(build(epochs=4, trained="gradual"), batches, batches)
    resumed = build(epochs=4, trained="gradual")
    trainer(4).fit(resumed, batches, batches, ckpt_path=str(tmp_path / f"step={step}.ckpt"))
    assert changed(state(whole), resumed) == set()


def test_the_rate_warms_up_then_falls_to_its_final_factor(build: Build) -> None:
    counter = build(schedule={"name": "cosine", "warmup_epochs": 1.0, "final_factor": 0.1})
    counter.total_steps = 24  # of which 4 warm up
    rates = learning_rates(counter, 24)
    assert rates[:5] == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[14] == pytest.approx(0.0055) and rates[24] == pytest.approx(0.001)


def test_a_constant_rate_needs_no_end(build: Build) -> None:
    counter = build(schedule={"name": "constant", "warmup_epochs": 0.5})
    counter.total_steps = None
    assert learning_rates(counter, 5) == pytest.approx([0.01 / 3, 0.02 / 3, 0.01, 0.01, 0.01, 0.01])
    counter = build()
    counter.total_steps = None
    with pytest.raises(ConfigError, match=r"trainer\.max_epochs"):
        counter.configure_optimizers()


def learning_rates(counter: BinCounter, steps: int) -> list[float]:
    configured: Any = counter.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = [scheduler.get_last_lr()[0]]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    return rates


def test_only_matrices_are_decayed_and_every_parameter_is_trained_once(build: Build) -> None:
    configured: Any = build().configure_optimizers()
    decayed, plain = configured["optimizer"].param_groups
    assert decayed["weight_decay"] == 0.05 and plain["weight_decay"] == 0.0
    assert {parameter.ndim for parameter in decayed["params"]} == {2, 4}
    assert {parameter.ndim for parameter in plain["params"]} == {1}
    assert len(decayed["params"]) + len(plain["params"]) == len(list(build().parameters()))


def test_balanced_weights_make_every_count_weigh_alike(build: Build) -> None:
    train_counts = {0: 1, 1: 2, 2: 5}
    weights = build(class_weights="balanced", train_counts=train_counts).class_weights
    torch.testing.assert_close(weights, torch.tensor([8 / 4, 8 / 8, 8 / 20, 1.0]))
    with pytest.raises(ConfigError, match=r"model\.class_weights=balancd.*did you mean .*balanced\?"):
        build(class_weights="balancd", train_counts=train_counts)


def test_class_weights_and_mixed_targets_enter_the_training_loss(build: Build, loader: DataLoader) -> None:
    counter, batch = build(class_weights="balanced", train_counts={0: 1, 1: 1, 2: 1, 3: 5}), next(iter(loader))
    labels = torch.nn.functional.one_hot(batch["count"], 4).float()
    target = 0.5 * labels + 0.5 * labels.roll(1, 0)
    losses = -(target * counter(batch["image"]).log_softmax(1)).sum(1)
    weights = target @ torch.tensor([2.0, 2.0, 2.0, 0.4])
    torch.testing.assert_close(counter.training_step({**batch, "target": target}, 0), (losses * weights).mean())


def test_memory_order_does_not_change_the_answer(build: Build, loader: DataLoader) -> None:
    image = next(iter(loader))["image"]
    last, first = build().eval(), build(channels_last=False).eval()
    assert last.backbone.blocks[1][0].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[index, union-attr]
    torch.testing.assert_close(last.probabilities(image), first.probabilities(image), rtol=1e-4, atol=1e-5)


def test_low_precision_keeps_probabilities_exact(build: Build, loader: DataLoader) -> None:
    predictions: Any = trainer(precision="bf16-mixed").predict(build(objective="Corn"), loader)
    assert [batch["probabilities"].dtype for batch in predictions] == [torch.float32] * 4
    torch.testing.assert_close(predictions[0]["probabilities"].sum(1), torch.ones(8))
    assert predictions[0]["id"] == [f"{number}.png" for number in range(8)]
    assert torch.equal(predictions[0]["count"], next(iter(loader))["count"])


def test_a_training_that_diverged_is_stopped_in_one_sentence(build: Build, loader: DataLoader) -> None:
    counter = build()
    with torch.no_grad():
        counter.head[0].weight.fill_(float("nan"))  # type: ignore[index]
    with pytest.raises(UserError, match=r"model\.optimizer\.lr"):
        trainer().fit(counter, loader, loader)


class Stageless(nn.Module):
    feature_size = 3

    def forward(self, image: Tensor) -> Tensor:
        return image.mean((2, 3))


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"trained": "gradul"}, r"model\.trained=gradul .*all, frozen, last_stages, gradual.*did you mean .*gradual\?"),
        ({"trained": "last_stages", "stages": 4}, r"model\.stages=4 must be 1 to 3"),
        ({"trained": "gradual", "unfreeze_every": 0}, r"model\.unfreeze_every=0"),
        ({"schedule": {"name": "cosinus"}}, r"model\.schedule\.name=cosinus.*did you mean .*cosine\?"),
    ],
)
def test_options_that_do_not_work_are_refused(options: dict[str, Any], answer: str, build: Build) -> None:
    with pytest.raises(ConfigError, match=answer):
        build(**options)


def test_a_backbone_without_stages_is_trained_whole_or_not_at_all(build: Build) -> None:
    objective = build().objective
    assert BinCounter(Stageless(), objective, trained="frozen")(torch.ones(2, 3, 8, 8)).shape == (2, 4)
    with pytest.raises(ConfigError, match=r"model\.trained=all or frozen"):
        BinCounter(Stageless(), objective, trained="gradual")
