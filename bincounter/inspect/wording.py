"""What a report says of its run in whole sentences: the score, what was trained, and what that beats."""

from collections.abc import Mapping
from typing import Any

from bincounter.inspect.page import percent, whole
from bincounter.inspect.run_folder import Run


def headline(scores: Mapping[str, Any], side: str) -> str:
    """Put the score of ``side`` (``val`` or ``test``) into one line."""
    if not scores:
        return "This run has not been scored"
    unseen = {"test": "test bins", "val": "validation bins"}[side]
    return f"{percent(scores['accuracy'])} of {whole(scores['n'])} {unseen} counted right"


def lead(run: Run, scores: Mapping[str, Any], side: str) -> str:
    """Say in plain words what was trained, and whether it beats always giving the same answer."""
    sentences = [_what_was_trained(run)]
    if not scores:
        return f"{sentences[0]} It ended before its scores were written, so this page shows what there is."
    majority = scores.get("majority_accuracy")
    if majority is not None:
        low, high = scores.get("intervals", {}).get("accuracy", (scores["accuracy"], scores["accuracy"]))
        verdict = "no better than" if low <= majority <= high else "better than" if low > majority else "worse than"
        strength = "" if low <= majority <= high else "clearly "
        sentences.append(f"That is {strength}{verdict} {constant_answer(run)}, right on {percent(majority)} of them.")
    if side == "val":
        sentences.append("There are no scores on test photos; checkpoints were chosen on these same validation photos.")
    return " ".join(sentences)


def _training(run: Run) -> dict[int, int]:
    """Photos per count that this run trained on; none where it only scored a checkpoint."""
    return run.photos("train") if run.config.get("train", True) else {}


def _what_was_trained(run: Run) -> str:
    model = run.config.get("model") or {}
    backbone = model.get("backbone") or {}
    name = str(backbone.get("name") or str(backbone.get("_target_", "A model")).rpartition(".")[2])
    training = _training(run)
    if not training:
        return f"{name}, scored without training in this run."
    epochs = (run.config.get("trainer") or {}).get("max_epochs")
    limit = f" for at most {epochs} epoch{'s' * (epochs != 1)}" if epochs else ""
    start = f"started from {model['weights']} weights" if model.get("weights") else "from scratch"
    return f"{name}, {start}, trained on {whole(sum(training.values()))} photos{limit}."


def constant_answer(run: Run) -> str:
    """Name the majority baseline: the most frequent count of the training photos."""
    training = _training(run)
    return f"always answering {max(training, key=lambda count: training[count])}" if training else "a constant answer"


def mean_answer(run: Run) -> str:
    """Name the mean baseline."""
    training = _training(run)
    if not training:
        return "a constant answer"
    mean = sum(count * photos for count, photos in training.items()) / sum(training.values())
    return f"always answering {mean:.2f}, the mean"


def footer(run: Run) -> str:
    """Say what made the page."""
    commit = str(run.provenance.get("commit") or "")[:12]
    return "Made by bincounter" + (f" at commit {commit}" if commit else "") + ". This file needs no network."
