"""Heads: ``float[B, D]`` features -> ``float[B, out_features]`` outputs that an objective reads."""

from torch import nn


def head(
    in_features: int, out_features: int, *, layers: int = 0, width: int = 512, dropout: float = 0.0
) -> nn.Sequential:
    """Build a fully connected head.

    Args:
        in_features: features per photo.
        out_features: outputs per photo.
        layers: extra fully connected layers (linear, ReLU, dropout) before the output layer.
        width: features of each extra layer.
        dropout: fraction of features dropped after each extra layer, or before the output layer where there is none.
    """
    modules: list[nn.Module] = []
    for _ in range(layers):
        modules += [nn.Linear(in_features, width), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        in_features = width
    if layers == 0 and dropout > 0:
        modules.append(nn.Dropout(dropout))
    return nn.Sequential(*modules, nn.Linear(in_features, out_features))
