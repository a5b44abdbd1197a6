"""Entry point of a SageMaker container, for training jobs and for trials of a tuning job.

Reads hyperparameters and runs the same ``train`` command as anywhere else. The run is kept in ``checkpoints`` under the
base folder, a trial's in its own folder there: SageMaker copies it to S3 as it changes, and back when an interrupted
job restarts. Each new best checkpoint goes into ``model``, and the reason of a failure, in one sentence, into
``output/failure``.
"""

import json
import os
import sys
import tempfile
import traceback
from functools import partial
from pathlib import Path

from bincounter.cloud.container import Instances, base_folder, channel, read_input_config, run_folder
from bincounter.cloud.hyperparameters import SPOT_VARIABLE, decode_overrides
from bincounter.config.overrides import drop_overrides
from bincounter.errors import BinCounterError, ConfigError
from bincounter.files import write_text
from bincounter.training import resume

# Settings that the container chooses itself.
_SETTLED = ("launcher", "dry_run", "paths", "ckpt_path")


def main() -> int:
    """Run the job described in the base folder, with the code in this program's folder.

    Returns:
        The exit code, as for ``bincounter train``.
    """
    base, code = base_folder(), Path(sys.argv[0]).resolve().parent
    keep = partial(_keep_failure, base / "output" / "failure")
    try:
        # Lightning starts this program again for each further process of an instance, with the overrides of the first.
        if "LOCAL_RANK" not in os.environ:
            sys.argv = [str(code / "start.py"), *_overrides(base)]
    except BinCounterError as error:
        print(f"Error: {error}", file=sys.stderr)
        keep(str(error))
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        keep(f"{type(error).__name__}: {error}")
        return 1
    from bincounter.cli import train_command

    return train_command.main(keep_error=keep, internal=True)


def _overrides(base: Path) -> list[str]:
    """Overrides of ``train`` for this job."""
    run = run_folder(base)
    # SageMaker keeps the temporary folder on the volume of launcher.volume_size.
    scratch = Path(tempfile.gettempdir()) / "bincounter"
    given = drop_overrides(decode_overrides(read_input_config(base, "hyperparameters")), *_SETTLED)
    settled = {
        "paths.output_dir": run,
        "paths.data_dir": scratch,
        "paths.cache_dir": scratch / "cache",
        "paths.model_dir": base / "model",
    }
    photos = channel(base)
    if photos is not None:
        given = drop_overrides(given, "data.source")
        settled["data.source"] = photos
    quoted = decode_overrides({key: json.dumps(str(path)) for key, path in settled.items()})
    # An experiment file may choose and set a launcher, which must not launch from inside the container.
    overrides = [*given, "launcher=container", *_launcher(base), *quoted, *_joined(base, given)]
    _clear_leftovers(run)
    # An interrupted job may have copied only the checkpoint to S3, without config.yaml.
    if (run / "config.yaml").exists() or (run / "checkpoints" / "last.ckpt").exists():
        overrides.append("ckpt_path=last")
    return overrides


def _launcher(base: Path) -> list[str]:
    """Overrides that record spot and the job's instances; the settings of the launcher that started it are not sent."""
    resources = read_input_config(base, "resourceconfig")
    found = {"spot": "true"} if os.environ.get(SPOT_VARIABLE) else {}
    if str(resources.get("current_instance_type", "")).startswith("ml."):
        found |= {"instance_type": resources["current_instance_type"], "instance_count": str(len(resources["hosts"]))}
    return [f"launcher.{name}={value}" for name, value in found.items()]


def _joined(base: Path, given: list[str]) -> list[str]:
    """Overrides for DDP over several instances."""
    if not read_input_config(base, "resourceconfig"):
        return []
    instances = Instances.read(base)
    number = len(instances.hosts)
    _refuse_another_number(run_folder(base), number)
    if number == 1:
        return []
    if instances.interface:
        for library in ("NCCL", "GLOO"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", instances.interface)
    chosen = len(drop_overrides(given, "trainer.strategy")) < len(given)
    strategy = [] if chosen else ["++trainer.strategy=ddp"]
    # All instances share one folder in S3: only the first may write to it.
    quiet = [] if instances.rank == 0 else ["hydra/job_logging=stdout"]
    environment = "bincounter.cloud.container.SageMakerEnvironment"
    return [f"++trainer.num_nodes={number}", f"+trainer.plugins=[{{_target_:{environment}}}]", *strategy, *quiet]


def _refuse_another_number(run: Path, instances: int) -> None:
    """Reject a number of instances other than the resumed run's, which would divide the photos differently."""
    stored = resume.stored_config(run)
    before = instances if stored is None else stored["trainer"].get("num_nodes", 1)
    if before != instances:
        raise ConfigError(
            f"launcher.instance_count is {instances} here and {before} in the run to resume: set "
            f"launcher.instance_count={before}, or remove launcher.checkpoint_uri to start a new run"
        )


def _clear_leftovers(run: Path) -> None:
    """Remove temporary files of a killed process, which SageMaker brings back with the rest."""
    for leftover in run.rglob(".*.part"):
        leftover.unlink()


def _keep_failure(path: Path, sentence: str) -> None:
    """Write the failure reason for SageMaker, on one line; only the first, since others often follow from it."""
    if not path.exists():
        write_text(path, " ".join(sentence.split()) + "\n")
