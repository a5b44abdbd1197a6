"""Batch sizes of a search against the photos there are, before the first trial."""

from collections.abc import Iterable

from omegaconf import DictConfig

from bincounter.config.launcher import carried_out_here
from bincounter.data.s3.address import is_remote
from bincounter.errors import ConfigError
from bincounter.sweep.space import Interval, Parameter


def refuse_too_large(parameters: Iterable[Parameter], cfg: DictConfig) -> None:
    """Refuse batch sizes above the number of training photos: such trials would all be the same.

    Args:
        parameters: of the search.
        cfg: the configuration that they are laid over.

    Raises:
        ConfigError: naming the largest batch size and the number of photos.
        DataError: the photos cannot be read.
    """
    parameter = next((parameter for parameter in parameters if parameter.key == "data.batch_size"), None)
    photos = None if parameter is None else _training_photos(cfg)
    if parameter is None or photos is None:
        return
    largest = parameter.high if isinstance(parameter, Interval) else max(parameter.values)
    if largest > photos:
        fitting = [str(2**power) for power in range(10) if 2**power <= max(photos // 2, 1)][-3:]
        raise ConfigError(
            f"data.batch_size={largest:g} is larger than the {photos} training photos: search smaller ones, as in "
            f"data.batch_size={','.join(fitting)}"
        )


def _training_photos(cfg: DictConfig) -> int | None:
    """How many there are, or ``None`` where only a job at SageMaker reads them."""
    from bincounter.training.run import data_module

    data = data_module(cfg)
    if carried_out_here(cfg.launcher):
        data.prepare()  # the trials need it too, and find it done
        return len(data.side("training"))
    if cfg.data.source is not None and is_remote(cfg.data.source):
        return None
    return round(len(data.find()) * cfg.data.split.fractions[0])
