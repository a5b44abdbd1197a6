"""Where requests go: to AWS, or to a control plane on this machine for as long as a command lasts.

Hydra imports this module at the start of every app of the environment, so that everything heavy is imported on use.
"""

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bincounter.config.launcher import RehearsalConfig
from bincounter.errors import ConfigError, ResourceError

log = logging.getLogger(__name__)


def is_rehearsal(settings: Any) -> bool:
    """Whether a composed ``launcher`` asks for a control plane on this machine."""
    kind = OmegaConf.get_type(settings)
    return isinstance(kind, type) and issubclass(kind, RehearsalConfig)


@contextmanager
def place(*, rehearsed: bool) -> Iterator[None]:
    """Let AWS's clients find what they are to speak to.

    Args:
        rehearsed: start a control plane here, which ends with this context.

    Raises:
        ConfigError: the rehearsal is not installed.
        ResourceError: it did not start.
    """
    if not rehearsed:
        yield
        return
    try:
        import sagemaker_rehearsal
    except ModuleNotFoundError:
        raise ConfigError(
            "The rehearsal needs the package sagemaker-rehearsal: pip install 'bincounter[rehearsal]'"
        ) from None
    before = dict(os.environ)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bincounter-rehearsal-"))
        try:
            variables = stack.enter_context(sagemaker_rehearsal.rehearsed(Path(folder)))
        except sagemaker_rehearsal.StartError as error:
            raise ResourceError(str(error)) from None
        log.info("Rehearsing on this machine: nothing is billed, and the spot discount shown is invented.")
        _replace_environment({**sagemaker_rehearsal.without_aws(before), **variables})
        try:
            yield
        finally:
            _replace_environment(before)


def _replace_environment(variables: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)
