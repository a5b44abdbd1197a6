"""In a SageMaker job smdebug's hook saves what the job's DebugHookConfig says, where AWS takes it from."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import REPOSITORY, environment
from test_resume import kill_after

from bincounter.cloud.hyperparameters import encode_overrides
from bincounter.errors import UserError

pytest.importorskip("smdebug.pytorch", reason="smdebug's own environment is missing here: make test-smdebug")

from smdebug.pytorch import create_trial, modes

from bincounter.smdebug.hook import open_hook

JOB = [
    "experiment=demo",
    "data.layout.photos=96",
    "data.image_size=32",
    "data.batch_size=8",
    "data.num_workers=0",
    "model=cnn",
    "model.backbone.width=8",
    "trainer=cpu",
    "trainer.max_epochs=4",
    "trainer.log_every_n_steps=1",
    "checkpoint.every_n_train_steps=1",
    "+trainer.enable_progress_bar=false",
    "callbacks=[none]",
    "logger=[csv]",
    "debugger=smdebug",
]
HOOK = {
    "S3OutputPath": "s3://bucket/jobs",
    "HookParameters": {"train.save_interval": "2", "eval.save_interval": "3", "predict.save_interval": "1"},
    "CollectionConfigurations": [{"CollectionName": "gradients"}],
}


def container(base: Path) -> Path:
    """The folders that a job starts with; returns the program that it starts."""
    config = base / "input" / "config"
    config.mkdir(parents=True)
    (config / "hyperparameters.json").write_text(json.dumps(encode_overrides(JOB)))
    (config / "debughookconfig.json").write_text(json.dumps({**HOOK, "LocalPath": str(base / "output" / "tensors")}))
    code = base / "code"
    code.mkdir()
    for name in ("bincounter", "conf", "train.py"):
        (code / name).symlink_to(REPOSITORY / name)
    program = "import sys\n\nfrom bincounter.cli.container_command import main\n\n"  # imported by its processes, too
    (code / "start.py").write_text(f'{program}if __name__ == "__main__":\n    sys.exit(main())\n')
    return code / "start.py"


def test_a_job_whose_machine_is_taken_away_leaves_one_whole_trial(tmp_path: Path) -> None:
    base = tmp_path / "ml"
    program = container(base)

    def start(*_: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(program)],
            env={**environment(), "SAGEMAKER_BASE_DIR": str(base), "TRAINING_JOB_NAME": "job"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    kill_after(start, base / "checkpoints", 13)
    kept, tensors = tmp_path / "debug-output", base / "output" / "tensors"
    tensors.rename(kept)  # AWS has brought it to S3, and does not bring it back
    again = start()
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert "Resuming from" in said
    shutil.copytree(tensors, kept, dirs_exist_ok=True)
    (kept / "training_job_end.ts").touch()  # the service does so

    metrics = (base / "checkpoints" / "logs" / "metrics.csv").read_text().splitlines()
    column = metrics[0].split(",").index("step")
    batches = 1 + max(int(line.split(",")[column]) for line in metrics[1:])
    trial = create_trial(str(kept))
    assert trial.steps(mode=modes.TRAIN) == list(range(0, batches, 2))
    assert trial.steps(mode=modes.PREDICT)
    gradients = trial.tensor_names(collection="gradients")
    assert gradients
    assert all(trial.tensor(name).steps(mode=modes.TRAIN) == list(range(0, batches, 2)) for name in gradients)
    assert not (base / "checkpoints" / "debugger" / "smdebug").exists()


def test_a_jobs_container_says_what_is_saved_and_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tmp_path / "ml" / "input" / "config" / "debughookconfig.json"
    given.parent.mkdir(parents=True)
    given.write_text(json.dumps({"HookParameters": {"save_interval": "3"}, "CollectionConfigurations": None}))
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path / "ml"))
    _resumed_by_smdebug_itself(tmp_path / "ml", monkeypatch)
    settings = {"collections": ["gradients"], "include_regex": [], "save_interval": {"train": 1, "eval": 1}}
    hook = open_hook(settings, tmp_path / "run", None)
    assert hook.out_dir == str(tmp_path / "ml" / "output" / "tensors")
    assert hook.state()["step"] == -1
    assert hook.include_collections == ["losses"]
    assert hook.save_config.get_save_config(modes.EVAL).save_interval == 3
    hook.close()
    with pytest.raises(UserError, match="already has tensors of a run"):
        open_hook(settings, tmp_path / "other", None)


def _resumed_by_smdebug_itself(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that make smdebug go on from a state of its own, beside the one in our checkpoints."""
    config = base / "input" / "config" / "checkpointconfig.json"
    config.write_text(json.dumps({"LocalPath": str(base / "checkpoints")}))
    monkeypatch.setenv("CHECKPOINT_CONFIG_FILE_PATH", str(config))
    state = {"training-run": 0, "latest-global-step-saved": 4, "latest-global-step-seen": 4, "latest-mode-step": {}}
    (base / "checkpoints").mkdir()
    (base / "checkpoints" / "metadata.json").write_text(json.dumps([state]))
