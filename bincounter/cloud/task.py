"""Hydra apps other than bincounter's own: their task function travels pickled."""

import sys
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from bincounter.errors import ConfigError

RESULT = "job_return.pkl"  # in the job's folder
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def pickled(task_function: TaskFunction, hydra_context: HydraContext, config: DictConfig) -> bytes:
    """What :func:`run_pickled` needs to run one job of a sweep.

    Args:
        task_function: the app.
        hydra_context: Hydra's.
        config: the job's whole configuration.
    """
    import cloudpickle
    from hydra.core.singleton import Singleton

    # What the app registered, such as resolvers and schemas, has to travel too.
    task = cloudpickle.dumps((task_function, hydra_context, config, Singleton.get_state()))
    return _PYTHON.encode() + b"\n" + task


def run_pickled(path: Path, output: Path) -> int:
    """Run a pickled job, its folder at ``output``; its JobReturn is left there.

    Raises:
        ConfigError: another version of Python pickled it.
        Exception: whatever the task raised.
    """
    import cloudpickle
    from hydra.core.singleton import Singleton

    python, _, task = path.read_bytes().partition(b"\n")
    if python.decode() != _PYTHON:
        raise ConfigError(
            f"the task was pickled by Python {python.decode()}, which the image's {_PYTHON} cannot read: launch from "
            "that version, or set launcher.image to one that has it"
        )
    task_function, hydra_context, config, state = cloudpickle.loads(task)
    setup_globals()
    Singleton.set_state(state)
    with open_dict(config):
        config.hydra.sweep.dir = str(output)
    returned = run_job(
        task_function=task_function,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key=None,
        hydra_context=hydra_context,
    )
    (output / RESULT).write_bytes(cloudpickle.dumps(returned))
    if returned.status == JobStatus.FAILED:
        raise returned._return_value
    return 0


def result(folder: Path) -> JobReturn:
    """What the job whose folder was fetched returned."""
    import cloudpickle

    returned: JobReturn = cloudpickle.loads((folder / RESULT).read_bytes())
    assert OmegaConf.is_config(returned.cfg)
    returned.working_dir = str(folder)
    return returned
