"""What an archive says of its model to people: its task and its scores."""

import json
from pathlib import Path
from typing import Any

import yaml

_SCORES = {"accuracy": ("Accuracy", "{:.1%}"), "rmse": ("RMSE", "{:.3f}")}


def read_card(folder: Path) -> dict[str, Any]:
    """Read ``model.json`` and the front matter of the model card, where there is one.

    Args:
        folder: the unpacked archive.

    Returns:
        ``task_name``, and ``scores``: by title, with the photos they are of.
    """
    described = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    scores = {}
    for result in _results(folder / "README.md"):
        photos = f"{result['dataset']['split']} photos of {result['dataset']['name']}"
        for metric in result["metrics"]:
            title, form = _SCORES.get(metric["type"], (metric["type"], "{}"))
            scores[title] = f"{form.format(metric['value'])} on {photos}".replace("%", " %")
    return {"task_name": described.get("task_name"), "scores": scores}


def _results(card: Path) -> list[dict[str, Any]]:
    if not card.is_file():
        return []
    _, front_matter, _ = card.read_text(encoding="utf-8").split("---\n", 2)
    return [result for model in yaml.safe_load(front_matter).get("model-index", []) for result in model["results"]]
