"""Run deploy.py's SageMaker actions in this process, with configurations composed as on the command line."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from bincounter.cli.deploy_command import check_sagemaker, run_on_sagemaker
from bincounter.cli.hydra_app import compose
from bincounter.serving.packing.archive import Package

ROLE = "arn:aws:iam::123456789012:role/rehearsal"


def act(*overrides: str, archive: Path | None = None) -> int:
    """``bincounter deploy OVERRIDES`` for a package that exists; returns the exit code."""
    if archive is not None and not any(each.startswith("paths.cache_dir=") for each in overrides):
        overrides = (*overrides, f"paths.cache_dir={archive.parent / 'cache'}")
    cfg = compose(["target.region=us-east-1", *overrides], config_name="deploy")
    package = None
    if archive is not None:
        check_sagemaker(cfg)
        package = Package(archive, "bincounter-0", hashlib.sha256(archive.read_bytes()).hexdigest())
    return run_on_sagemaker(cfg, package)


def requests(capsys: pytest.CaptureFixture[str], *overrides: str, archive: Path) -> dict[str, dict[str, Any]]:
    """The requests that ``dry_run=true`` prints, by their operation."""
    capsys.readouterr()
    given = (f"target.role={ROLE}", "target.bucket=my-bucket", "target.image=123.dkr.ecr/ray:1", "dry_run=true")
    assert act(*overrides, *given, archive=archive) == 0
    text, decoder, position = capsys.readouterr().out, json.JSONDecoder(), 0
    found: dict[str, dict[str, Any]] = {}
    while position < len(text.rstrip()):
        call, position = decoder.raw_decode(text, position)
        position += 1  # the end of its last line
        found[call["operation"].partition(":")[2]] = call["request"]
    return found
