"""``bincounter runs``: run folders and sweeps of this and earlier versions as a list, best first."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import REPOSITORY, Run
from made_runs import make_run

from bincounter.cli.main import main
from bincounter.files import lock

ASSETS = REPOSITORY / "tests" / "assets"


@pytest.fixture
def listed(capsys: pytest.CaptureFixture[str]) -> Any:
    """The JSON document of ``bincounter runs``."""

    def list_(*folders: Path) -> dict[str, Any]:
        assert main(["runs", *map(str, folders), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return list_


def edit(path: Path, **changes: Any) -> None:
    """Change the values of a JSON or YAML file; ``None`` removes one."""
    content = yaml.safe_load(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def states(runs: list[dict[str, Any]]) -> dict[str, str]:
    return {Path(run["folder"]).name: run["state"] for run in runs}


def test_runs_are_listed_best_first_those_without_test_scores_behind(tmp_path: Path, listed: Any) -> None:
    for name, skill in (("weak", 0.2), ("strong", 2.5), ("middle", 1.2), ("untested", 4.0)):
        make_run(tmp_path / "logs" / "train" / name, skill=skill, photos=300)
    edit(tmp_path / "logs/train/untested/metrics.json", test=None)
    scores = json.loads((tmp_path / "logs/train/weak/metrics.json").read_text())["test"]
    edit(tmp_path / "logs/train/weak/metrics.json", test=scores | {"rmse": float("nan")})  # of an earlier version
    runs = listed(tmp_path / "logs")["runs"]
    assert [Path(run["folder"]).name for run in runs] == ["strong", "middle", "weak", "untested"]
    assert [run["scored_on"] for run in runs] == ["test", "test", "test", "val"]
    assert runs[2]["scores"]["rmse"] is None
    scores = json.loads((tmp_path / "logs/train/strong/metrics.json").read_text())["test"]
    assert runs[0]["scores"]["accuracy"] == scores["accuracy"]
    assert runs[0]["intervals"]["accuracy"] == scores["intervals"]["accuracy"]
    assert (runs[0]["model"], runs[0]["epochs"], runs[0]["planned_epochs"]) == ("resnet18", 8, 8)
    assert runs[0]["photos"] == sum("train" in line for line in (tmp_path / "logs/train/weak/split.csv").open())


def test_state_says_what_can_be_done_with_a_run(tmp_path: Path, listed: Any) -> None:
    for name in ("done", "debug", "running", "resumable", "never_saved", "corrupt", "of_other_types"):
        make_run(tmp_path / name, photos=60)
    for name in ("running", "resumable", "never_saved"):
        (tmp_path / name / "metrics.json").unlink()
    (tmp_path / "resumable" / "checkpoints").mkdir()
    (tmp_path / "resumable" / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "corrupt" / "metrics.json").write_text("{")
    edit(tmp_path / "of_other_types" / "provenance.json", epochs=[1], planned_epochs={})
    edit(tmp_path / "of_other_types" / "config.yaml", model={"backbone": {"name": 3}}, hparams_search=[])
    (tmp_path / "of_other_types" / "logs" / "metrics.csv").write_text("epoch,step,train/loss_epoch\n,1,2.0\n")
    (tmp_path / "linked").symlink_to(tmp_path / "done")
    (tmp_path / "back").symlink_to(tmp_path)
    edit(tmp_path / "debug" / "provenance.json", debug=True)
    with (tmp_path / "running" / ".lock").open("w") as file:
        assert lock(file)
        runs = listed(tmp_path)["runs"]
    assert states(runs) == {
        "done": "done",
        "debug": "done",
        "running": "running",
        "resumable": "resumable",
        "never_saved": "failed",
        "corrupt": "broken",
        "of_other_types": "broken",
    }
    by_name = {Path(run["folder"]).name: run for run in runs}
    assert [name for name, run in by_name.items() if run["debug"]] == ["debug"]
    assert "metrics.json is corrupt" in by_name["corrupt"]["reason"]


def test_an_extended_search_has_its_new_total_and_a_scored_model_no_epochs(listed: Any, tmp_path: Path) -> None:
    shutil.copytree(ASSETS / "killed_sweep", tmp_path / "extended")
    last = tmp_path / "extended" / "1" / "config.yaml"
    last.write_text(last.read_text().replace("n_trials: 2", "n_trials: 5"))
    scored = shutil.copytree(ASSETS / "classification", tmp_path / "scored")
    (scored / "provenance.json").unlink()
    (scored / "config.yaml").write_text((scored / "config.yaml").read_text().replace("train: true", "train: false"))
    below = listed(tmp_path)
    assert [sweep["planned_trials"] for sweep in below["sweeps"]] == [5]
    assert [(run["epochs"], run["planned_epochs"]) for run in below["runs"]] == [(0, None)]


def test_sweeps_are_one_line_unless_they_are_named(listed: Any) -> None:
    below = listed(ASSETS)
    sweeps = {Path(sweep["folder"]).name: sweep for sweep in below["sweeps"]}
    assert sweeps["sweep"]["state"] == sweeps["tuning"]["state"] == "done"
    killed = sweeps["killed_sweep"]
    assert (killed["state"], killed["trials"], killed["planned_trials"]) == (
        "resumable",
        {"done": 1, "resumable": 1},
        2,
    )
    assert Path(killed["best"]["folder"]).name == "0"
    assert killed["metric"] == "val/accuracy"
    runs = {Path(run["folder"]).name: run for run in below["runs"]}
    assert not {"0", "1"} & runs.keys()
    assert runs["job"]["rehearsed"] and runs["killed"]["state"] == "resumable"
    named = listed(ASSETS / "killed_sweep")
    assert states(named["runs"]) == {"0": "done", "1": "resumable"}
    assert named["sweeps"] == []


def test_best_trial_has_the_lowest_loss_where_that_is_optimised(tmp_path: Path, listed: Any) -> None:
    for number, loss in enumerate((0.9, 0.4, 0.7)):
        run = make_run(tmp_path / "logs" / "sweep" / str(number), photos=60)
        edit(run / "config.yaml", optimized_metric="val/cross_entropy")
        scores = json.loads((run / "metrics.json").read_text())
        test = scores["test"] | {"cross_entropy": 1 - loss}  # the job of a plain sweep scores these, too
        edit(run / "metrics.json", val=scores["val"] | {"cross_entropy": loss}, test=test)
    make_run(tmp_path / "logs" / "sweep" / "best", photos=60)  # the retrained one is no trial
    (failed := tmp_path / "logs" / "sweep" / "0" / "trial.json").write_text('{"error": "out of memory"}')
    [sweep] = listed(tmp_path)["sweeps"]
    assert Path(sweep["best"]["folder"]).name == "1"
    assert sweep["trials"] == {"failed": 1, "done": 2}
    assert listed(failed.parent)["runs"][0]["reason"] == "out of memory"


def test_list_fits_80_columns_and_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = make_run(tmp_path / "a_task_with_a_long_name" / "2026-11-28_18-11-04_123456", photos=60)
    edit(long / "config.yaml", model={"backbone": {"name": "\x1b\n"}})  # as a stranger's run may say
    edit(long / "metrics.json", caveats=["The model was trained on 3 of these photos."])
    for number in range(3):
        shutil.copytree(long, tmp_path / "sweep" / str(number))
    (make_run(tmp_path / "torn", photos=60) / "config.yaml").write_text("a: [")
    assert main(["runs", str(tmp_path)]) == 0
    screen = capsys.readouterr().out
    table = screen.split("† Its scores")[0].splitlines()
    assert max(map(len, table)) <= 80
    assert sum(line.startswith("2026-11-28_18-11-04_123456 ") for line in table) == 1
    assert "done †" in screen and "\x1b" not in screen and r" \u001b\n " in screen
    assert "torn/config.yamliscorrupt" in "".join(screen.split())
    for title in ("Runs, best first by accuracy on test photos", "Sweeps, best first"):
        assert title in screen


def test_folder_without_runs_and_no_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "No runs: start one by `bincounter train`, or name a folder that holds runs.\n"
    assert run("-m", "bincounter", "runs", str(tmp_path)).stdout == said
    monkeypatch.chdir(tmp_path)  # without logs
    assert main(["runs"]) == 0
    assert capsys.readouterr().out == said
    assert main(["runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"runs": [], "sweeps": []}
    assert "nowhere is not a folder" in run("-m", "bincounter", "runs", str(tmp_path / "nowhere"), code=2).stderr
