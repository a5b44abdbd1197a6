"""The request for a tuning job as the command line makes it; what else is in it: tests/sweep/test_tuner.py."""

import json
from pathlib import Path

from bins import square_bins
from commands import Run

SEARCH = ["hparams_search=sagemaker_tuner", "launcher=rehearsal", "launcher.instance_type=ml.m5.xlarge", "dry_run=true"]
SMALL = ["data=folders", "data.image_size=32", "model=cnn", "trainer=cpu", "data.batch_size=8,16"]


def test_tuning_request_separates_set_and_searched_parameters(train: Run, tmp_path: Path) -> None:
    bins = square_bins(tmp_path / "bins", photos=40)
    # No paths.output_dir: the configured folder holds the time, which is another whenever it is composed.
    done = train(*SEARCH, *SMALL, f"data.source={bins}")
    request = json.loads(done.stdout)
    assert request["HyperParameterTuningJobName"].startswith("bincounter-train-")
    ranges = request["HyperParameterTuningJobConfig"]["ParameterRanges"]
    searched = {each["Name"] for kind in ranges.values() for each in kind}
    assert searched == {"model.optimizer.lr", "data.batch_size", "trainer.max_epochs"}
    static = request["TrainingJobDefinition"]["StaticHyperParameters"]
    assert static["test"] == "false"
    assert not searched & static.keys()
    assert not any(key.startswith(("hparams_search", "launcher", "dry_run")) for key in static)
