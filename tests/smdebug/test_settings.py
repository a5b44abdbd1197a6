"""Settings of debugger=smdebug, and the message where smdebug does not run."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import REPOSITORY, Run

from bincounter.errors import ConfigError
from bincounter.smdebug import settings
from bincounter.smdebug.settings import check_smdebug, require_smdebug

SETTINGS = {
    "kind": "smdebug",
    "collections": ["losses"],
    "include_regex": [r"backbone\.layer4"],
    "save_interval": {"train": 500, "eval": 10, "predict": 10},
    "sagemaker_rules": ["overfit"],
    "sagemaker_parameters": {"overfit": {"patience": 3}},
}

elsewhere = pytest.mark.skipif(bool(settings._version("smdebug")), reason="smdebug runs here")


@elsewhere
def test_a_wrong_environment_is_answered_before_anything_starts(train: Run, tmp_path: Path) -> None:
    done = train("debugger=smdebug", f"paths.output_dir={tmp_path / 'run'}", code=2)
    (line,) = done.stderr.splitlines()
    assert "smdebug is not installed here" in line
    assert "make install-smdebug" in line
    assert ".venv-smdebug/bin/python train.py debugger=smdebug" in line
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


@elsewhere
def test_importing_it_in_a_wrong_environment_says_the_same() -> None:
    code = "import bincounter.smdebug.hook"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert "make install-smdebug" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({"smdebug": "1.0.34", "numpy": "2.2.6", "protobuf": "3.20.3"}, None),
        ({"smdebug": "1.0.34", "numpy": "2.4.6", "protobuf": "3.20.3"}, "smdebug does not run beside numpy 2.4.6;"),
        (
            {"smdebug": "1.0.34", "numpy": "1.26.4", "protobuf": "6.33.6"},
            "smdebug does not run beside protobuf 6.33.6;",
        ),
        ({"smdebug": "", "numpy": "2.2.6", "protobuf": "3.20.3"}, "smdebug is not installed here;"),
    ],
)
def test_what_is_in_the_way_is_named(
    versions: dict[str, str], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "_version", versions.__getitem__)
    if said is None:
        require_smdebug()
    else:
        with pytest.raises(ConfigError, match=said):
            require_smdebug()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"collections": ["gradient"]}, "did you mean debugger.collections=gradients"),
        ({"include_regex": ["("]}, "not a regular expression"),
        ({"include_regex": ["a{1,2}"]}, "comma"),
        ({"save_interval": {"train": 0}}, "debugger.save_interval.train=0"),
        ({"sagemaker_rules": ["overfitting"]}, "did you mean debugger.sagemaker_rules=overfit"),
        ({"sagemaker_rules": ["overfit", "overfit"]}, "names overfit twice"),
        ({"sagemaker_rules": ["overfit", "vanishing_gradient"]}, "reads gradients, which debugger.collections does"),
        (
            {"sagemaker_rules": ["overfit", "dead_relu"], "include_regex": []},
            r"debugger.include_regex=\['relu_output'\]",
        ),
        ({"sagemaker_parameters": {"overtraining": {}}}, "not in debugger.sagemaker_rules: add overtraining"),
        ({"sagemaker_parameters": {"overfit": 3}}, "debugger.sagemaker_parameters.overfit=3 has no parameter name"),
        (
            {"sagemaker_parameters": {"overfit": {"patienc": 3}}},
            "did you mean debugger.sagemaker_parameters.overfit=pat",
        ),
        ({"sagemaker_parameters": {"overfit": {"patience": [3]}}}, "write a number or a string"),
    ],
)
def test_settings_that_smdebug_cannot_follow_are_refused(changed: dict[str, Any], said: str) -> None:
    check_smdebug(SETTINGS, here=False)
    with pytest.raises(ConfigError, match=said):
        check_smdebug({**SETTINGS, **changed}, here=False)
