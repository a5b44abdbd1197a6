"""Where requests go: to AWS, or to a control plane on this machine for as long as a command lasts.

Hydra imports this module at the start of every app of the environment, so that everything heavy is imported on use.
"""

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bincounter.config.launcher import RehearsalConfig

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
    """
    if not rehearsed:
        yield
        return
    from sagemaker_rehearsal import rehearsed as control_plane
    from sagemaker_rehearsal import without_aws

    before = dict(os.environ)
    with (
        tempfile.TemporaryDirectory(prefix="bincounter-rehearsal-") as folder,
        control_plane(Path(folder)) as variables,
    ):
        log.info("Rehearsing on this machine: nothing is billed, and the spot discount shown is invented.")
        _replace_environment({**without_aws(before), **variables})
        try:
            yield
        finally:
            _replace_environment(before)


def _replace_environment(variables: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)
