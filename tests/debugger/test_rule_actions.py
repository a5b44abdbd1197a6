"""Actions of rules: a run warns, stops or fails, and its records show it afterwards."""

import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from bins import square_bins
from commands import Run
from faulty import fit
from outputs import tensors
from test_resume import last_checkpoint

from bincounter.debugger.rule_runner import RuleFailed

RECIPE = [
    "data=folders",
    "data.image_size=32",
    "data.batch_size=8",
    "data.num_workers=0",
    "model=cnn",
    "model.backbone.width=8",
    "trainer=cpu",
    "trainer.max_epochs=3",
    "callbacks=[early_stopping]",  # which must not mind
    "callbacks.early_stopping.patience=50",
    "+trainer.enable_progress_bar=false",
    "logger=[csv]",
    "test=false",
    "debugger=tensors",
    "debugger.every_n_train_steps=2",
]
VANISHED = ["debugger.rules.vanishing_gradient.threshold=1000", "debugger.rules.vanishing_gradient.patience=2"]
TRAINED_OUT = [
    "debugger.rules.overtraining.delta=1000",
    "debugger.rules.overtraining.patience_train=1",
    "debugger.rules.overtraining.patience_validation=1",
]


def action(rule: str, does: str) -> str:
    return f"debugger.rules.{rule}.action={does}"


def states(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "debugger" / "rules.json").read_text())


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    bins = square_bins(tmp_path_factory.mktemp("bins"))
    return [*RECIPE, f"data.source={bins}", f"paths.cache_dir={tmp_path_factory.mktemp('cache')}"]


def test_warnings_are_said_once_and_shown_in_the_report(
    recipe: list[str], train: Run, run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    done = train(*recipe, *VANISHED, action("dead_relu", "off"), f"paths.output_dir={folder}")
    assert done.stderr.count("Rule vanishing_gradient at step 2, epoch 1: the gradients of ") == 1
    told = states(folder)
    assert told["vanishing_gradient"] | {"reason": "", "advice": ""} == {
        "action": "warn",
        "state": "found",
        "epoch": 0,
        "step": 2,
        "reason": "",
        "advice": "",
    }
    assert told["dead_relu"] == {"action": "off", "state": "off"}
    page = (folder / "report.html").read_text()
    assert "<h3>Rules</h3>" in page
    assert "vanishing_gradient" in page
    assert "have been below 1000 on average" in page
    # Afterwards, by the same bounds and by others.
    done = run("-m", "bincounter", "rules", str(folder))
    assert "Rule vanishing_gradient at step 2, epoch 1: " in done.stdout.replace("\n", " ")
    done = run("-m", "bincounter", "rules", str(folder), "debugger.rules.vanishing_gradient.threshold=1e-7")
    assert "Rule vanishing_gradient" not in done.stdout
    stricter = "debugger.rules.overfit.ratio_threshold=0", "debugger.rules.overfit.patience=1"
    run("-m", "bincounter", "rules", str(folder), *stricter, action("vanishing_gradient", "fail"), code=1)
    wrong = {
        "debugger.rules.dead_relu.threshold_inactivity=3": "changing it takes another run",
        "debugger.rules.overfit.patience=0": "debugger.rules.overfit.patience=0 is out of range",
        "debugger.rules.overfitting.patience=1": "did you mean 'debugger.rules.overfit.patience'?",
        "data.batch_size=3": "is not about rules",
    }
    for override, sentence in wrong.items():
        assert sentence in run("-m", "bincounter", "rules", str(folder), override, code=2).stderr


def test_a_run_without_records_has_nothing_to_judge(recipe: list[str], train: Run, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    plain = [override for override in recipe if not override.startswith("debugger")]
    train(*plain, "trainer.max_epochs=1", f"paths.output_dir={folder}")
    assert not (folder / "debugger").exists()
    assert "<h3>Rules</h3>" not in (folder / "report.html").read_text()
    assert "has no records" in run("-m", "bincounter", "rules", str(folder), code=2).stderr


def test_a_stopped_run_is_scored_and_stays_stopped(recipe: list[str], train: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = train(*recipe, *VANISHED, action("vanishing_gradient", "stop"), f"paths.output_dir={folder}")
    assert "debugger.rules.vanishing_gradient.action=stop ends the fit after step 2." in done.stderr
    assert last_checkpoint(folder)["global_step"] == 3
    assert json.loads((folder / "metrics.json").read_text())["val"]["n"] > 0
    assert "stopped the run" in (folder / "report.html").read_text()
    before = {name: (folder / "debugger" / name).read_text() for name in ("losses.csv", "rules.json")}
    # Killed while it was scored, it goes on with that.
    (folder / "metrics.json").unlink()
    (folder / "debugger" / "rules.json").unlink()
    train("ckpt_path=last", f"paths.output_dir={folder}")
    assert last_checkpoint(folder)["global_step"] == 3
    assert (folder / "metrics.json").exists()
    assert {name: (folder / "debugger" / name).read_text() for name in before} == before


@pytest.mark.long
@pytest.mark.parametrize(
    ("rule", "bounds", "step"), [("vanishing_gradient", VANISHED, 3), ("overtraining", TRAINED_OUT, 18)]
)
def test_a_failed_run_keeps_a_checkpoint_that_can_be_gone_on_from(
    rule: str, bounds: list[str], step: int, recipe: list[str], train: Run, tmp_path: Path
) -> None:
    """In mid-epoch, and at an epoch's end."""
    folder = tmp_path / "run"
    done = train(*recipe, *bounds, action(rule, "fail"), f"paths.output_dir={folder}", code=1)
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f"Error: Rule {rule} at step {step - 1}, epoch ")
    assert error.endswith(f"ckpt_path=last debugger.rules.{rule}.action=warn")
    assert not (folder / "metrics.json").exists()
    assert last_checkpoint(folder)["global_step"] == step
    again = train("ckpt_path=last", f"paths.output_dir={folder}", code=1)
    assert again.stderr.splitlines()[-1] == error
    done = train("ckpt_path=last", action(rule, "warn"), f"paths.output_dir={folder}")
    assert f"Rule {rule} at" not in done.stderr  # it has been said
    train(*recipe, *bounds, f"paths.output_dir={tmp_path / 'undisturbed'}")
    a, b = tensors(last_checkpoint(folder)), tensors(last_checkpoint(tmp_path / "undisturbed"))
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    for name in ("tensors.csv", "losses.csv", "counts.csv", "rules.json"):
        assert (folder / "debugger" / name).read_text() == (tmp_path / "undisturbed" / "debugger" / name).read_text()


class Poison(L.Callback):
    """Weights that are no numbers from some step on."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            next(iter(pl_module.parameters())).data.fill_(math.nan)


@pytest.mark.parametrize("last_of_epoch", [False, True])
def test_a_divergence_stops_where_there_is_a_checkpoint_to_score(last_of_epoch: bool, tmp_path: Path) -> None:
    """With eight steps an epoch: in the second epoch the first one has left a checkpoint to score."""
    stop = "rules.exploding_tensor.action=stop"
    step = 15 if last_of_epoch else 12
    found = fit(tmp_path / "later", stop, callbacks=[Poison(step)])["exploding_tensor"]
    assert found["step"] == step
    best = torch.load(tmp_path / "later" / "best.ckpt", weights_only=True)
    assert best["epoch"] == 0
    assert all(value.isfinite().all() for value in best["state_dict"].values())
    for action_ in ("stop", "fail"):
        with pytest.raises(RuleFailed, match=f"at step {step - 8}, epoch 1: values are not finite"):
            fit(tmp_path / action_, f"rules.exploding_tensor.action={action_}", callbacks=[Poison(step - 8)])
        assert (tmp_path / action_ / "last.ckpt").exists()
