"""Overrides travel as hyperparameters and come back as the same values, whatever they hold."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import environment
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hypothesis import given, settings
from hypothesis import strategies as st

from bincounter.cloud.hyperparameters import MAX_HYPERPARAMETERS, MAX_VALUE_LENGTH, decode_overrides, encode_overrides
from bincounter.errors import ConfigError

# Surrogates are no text, and no program can be given a NUL.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
LOOKALIKES = st.sampled_from(
    [
        *["", " ", "true", "False", "null", "NULL", "nan", "Infinity", "-inf", "0", "-1.5", "1e3", "1_000", "0x1"],
        *["[1]", "{}", "a,b", "it's", '"', "\\", "\\'", "'\\\\", "a=b", "key: value", "é", "😀"],
        *["${oc.env:HOME}", "${a}${b}", "`id`", "$(id)"],
    ]
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT, LOOKALIKES)
KEYS = st.from_regex(r"[a-z][a-z0-9_.-]{0,8}|-?[1-9][0-9]?|1\.5|true|null|[a-z]+\\ [a-z]+|a\\:b\\=\\,", fullmatch=True)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
NASTY = {
    "quotes": """it's "quoted" with \\ and \\' in it""",
    "spaces": "  two  words ",
    "unicode": "Kölner Kästen 📦",
    "shell": "`id` $(id) ${HOME} ; rm -rf / & > x",
    "lines": "one\ntwo\tthree\r",
    "empty": "",
    "number": "64",
    "boolean": "true",
    "option": "--data.source",
}


def source(value: Any) -> str:
    """A value as a careful user would write it; keys of mappings are source text already."""
    if value is None:
        return "null"
    if isinstance(value, str):
        return QuotedString(value, Quote.double).with_quotes()
    if isinstance(value, list):
        return f"[{','.join(map(source, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{source(item)}" for key, item in value.items()) + "}"
    return str(value)


def parsed(override: str) -> tuple[str, Any]:
    read = OverridesParser.create().parse_override(override)
    return read.get_key_element(), read.value()


def same(first: Any, second: Any) -> bool:
    if isinstance(first, float) and math.isnan(first):
        return isinstance(second, float) and math.isnan(second)
    if isinstance(first, list):
        return isinstance(second, list) and len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(value, second[key]) for key, value in first.items())
    return type(first) is type(second) and repr(first) == repr(second)


@settings(deadline=None)
@given(VALUES)
def test_a_value_comes_back_as_it_went(value: Any) -> None:
    override = f"data.source={source(value)}"
    encoded = encode_overrides([override])
    assert re.fullmatch(r"[ -~]*", encoded["data.source"])
    assert not set("'`$") & set(encoded["data.source"])
    (back,) = decode_overrides(encoded)
    key, after = parsed(back)
    assert key == "data.source"
    assert same(parsed(override)[1], after)


@pytest.mark.parametrize(
    "override",
    [
        "model=cnn",
        "model.optimizer.lr=0.01",
        "data.counts=[0,1,2]",
        "+trainer.profiler=simple",
        "++tags=[a]",
        "model/optimizer=sgd",
        "logger@spare=csv",
        "callbacks=[early_stopping,ema]",
        "~logger",
        "~model.head=null",
        "data.source=s3://bucket/some/bins",
        "task_name=",
        "trainer.max_time=00:01:00:00",
        "tags=[${task_name},'two words']",
        "data.layout={_target_:a.B,nested:{x:[1,2.5,null,true]}}",
        "seed=int('7')",
    ],
)
def test_every_kind_of_override_comes_back(override: str) -> None:
    (back,) = decode_overrides(encode_overrides([override]))
    assert parsed(back) == parsed(override)


def test_the_console_shows_what_a_person_would_write() -> None:
    encoded = encode_overrides(
        ["model.optimizer.lr=0.01", "model=cnn", "data.source=s3://b/p", "data.counts=[0,1]", "test=false"]
    )
    assert encoded == {
        "model.optimizer.lr": "0.01",
        "model": "cnn",
        "data.source": "s3://b/p",
        "data.counts": "[0,1]",
        "test": "false",
    }


def test_the_last_of_several_wins_and_order_does_not_matter() -> None:
    assert encode_overrides(["seed=1", "seed=2"]) == {"seed": "2"}
    assert encode_overrides(["+a.b=1", "a.b=2"]) == {"+a.b": "2"}
    assert decode_overrides(encode_overrides(["~a", "+a=3"])) == ["~a", "+a=3"]
    assert encode_overrides(["+a=3", "~a"]) == {"~a": ""}
    assert decode_overrides({"model.optimizer.lr": "1", "model": "cnn", "model/optimizer": "sgd", "a": "0"}) == [
        "a=0",
        "model=cnn",
        "model/optimizer=sgd",
        "model.optimizer.lr=1",
    ]


def test_what_a_tuning_job_sends_is_read() -> None:
    sent = {
        "data.batch_size": "64",
        "model.optimizer.lr": "0.01",
        "model/optimizer": '"adamw"',
        "model": "resnet18",
        "_tuning_objective_metric": "val/accuracy",
        "sagemaker_program": "start.py",
        "sagemaker_submit_directory": "s3://bucket/source.tar.gz",
    }
    assert decode_overrides(sent) == [
        "data.batch_size=64",
        "model=resnet18",
        "model/optimizer=adamw",
        "model.optimizer.lr=0.01",
    ]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["seed=1,2"], "add -m"),
        (["model.optimizer.lr=interval(0,1)"], "add -m"),
        ([f"+a{i}=1" for i in range(MAX_HYPERPARAMETERS + 1)], "conf/experiment"),
        ([f"task_name={'x' * (MAX_VALUE_LENGTH + 1)}"], "conf/experiment"),
        ([f"+{'a' * 300}=1"], "conf/experiment"),
        (["sagemaker_program=other.py"], "++sagemaker_program"),
        (["task_name='a\0b'"], "NUL"),
    ],
)
def test_what_a_training_job_does_not_take_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        encode_overrides(overrides)


PROGRAM = """
import json, os, sys
from bincounter.cloud.hyperparameters import decode_overrides
base = os.environ["SAGEMAKER_BASE_DIR"]
with open(f"{base}/input/config/hyperparameters.json") as file:
    overrides = decode_overrides(json.load(file))
with open(f"{base}/output/told.json", "w") as file:
    json.dump(overrides, file)
"""


def test_nasty_values_pass_through_the_toolkit(tmp_path: Path) -> None:
    code, config = tmp_path / "program", tmp_path / "base" / "input" / "config"
    code.mkdir()
    (code / "start.py").write_text(PROGRAM)
    config.mkdir(parents=True)
    (tmp_path / "base" / "output").mkdir()
    overrides = [f"+{key}={source(value)}" for key, value in NASTY.items()]
    hyperparameters = {
        "sagemaker_program": "start.py",
        "sagemaker_submit_directory": str(code),
        **encode_overrides(overrides),
    }
    (config / "hyperparameters.json").write_text(json.dumps(hyperparameters))
    (config / "resourceconfig.json").write_text(json.dumps({"current_host": "localhost", "hosts": ["localhost"]}))
    (config / "inputdataconfig.json").write_text("{}")
    done = subprocess.run(
        [str(Path(sys.executable).parent / "train")],
        env={**environment(), "SAGEMAKER_BASE_DIR": str(tmp_path / "base")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = dict(map(parsed, json.loads((tmp_path / "base" / "output" / "told.json").read_text())))
    assert told == {f"+{key}": value for key, value in NASTY.items()}
