"""Tables and checkpoints that commands write."""

import csv
from pathlib import Path

import torch


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a table, by the names of their columns."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def tensors(node: object, path: str = "") -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, by their place in it."""
    if isinstance(node, torch.Tensor):
        return {path: node}
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    return {name: value for key, child in items for name, value in tensors(child, f"{path}/{key}").items()}
