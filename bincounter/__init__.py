"""Count the items in a warehouse bin from one photo."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bincounter.api import BinDataModule, Prediction, Predictor, Run, load, train

__version__ = "0.1.0"
__all__ = ["BinDataModule", "Prediction", "Predictor", "Run", "__version__", "load", "train"]


def __getattr__(name: str) -> Any:
    """Import the Python API on first use: torch takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module 'bincounter' has no attribute {name!r}")
    from bincounter import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return __all__
