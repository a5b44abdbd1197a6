"""Put a checkpoint behind an endpoint: ``python deploy.py ckpt_path=RUN/checkpoints/best.ckpt [KEY=VALUE] ...``.

The checkpoint becomes an archive, its answers are compared with those of training, and it is served: on this machine
(``target=local``) or by SageMaker (``target=realtime|serverless|async``). ``action=`` says what else can be done;
docs/deploy.md explains it all, ``--cfg job`` prints the configuration that a command line composes.
"""

import signal
import sys
from pathlib import Path
from types import FrameType

from omegaconf import DictConfig

from bincounter.command_line import main_once
from bincounter.errors import Stopped


def action(cfg: DictConfig) -> int:
    """Carry out what one composed configuration asks for; returns the exit code."""
    # Imported here, so that --help and tab completion are quick.
    from bincounter.config.deploy import target_of
    from bincounter.config.deploy_rules import SERVES, check_deploy

    check_deploy(cfg)
    signal.signal(signal.SIGTERM, _stop)
    from bincounter.serving import deploying

    if cfg.action == "package":
        print(deploying.checked_package(cfg).path)
        return 0
    if target_of(cfg) == "local":
        return deploying.carry_out_here(cfg)
    from bincounter.cloud.endpoints.actions import carry_out, check

    if cfg.action not in SERVES:
        return carry_out(cfg, None)
    check(cfg)  # what SageMaker would not take, or costs too much, is told before a checkpoint is packed
    return carry_out(cfg, deploying.checked_package(cfg))


def _stop(number: int, frame: FrameType | None) -> None:
    print("Error: Stopped by SIGTERM.", file=sys.stderr)
    raise SystemExit(Stopped.exit_code)  # no Stopped: whatever OmegaConf was at, it would add its own words to it


if __name__ == "__main__":
    sys.exit(main_once(action, config_dir=Path(__file__).parent / "conf", config_name="deploy"))
