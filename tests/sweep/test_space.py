"""Search spaces: parsing, checks, and conversion for Optuna and SageMaker."""

import re
from collections.abc import Iterator
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator
from commands import REPOSITORY
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from bincounter.cloud.hyperparameters import decode_overrides
from bincounter.config.checks import metric_mode
from bincounter.config.quoting import override_of
from bincounter.config.train_schema import register
from bincounter.errors import ConfigError
from bincounter.sweep.distributions import from_sagemaker, params_of, to_optuna, to_sagemaker, values_of
from bincounter.sweep.search_space import Choice, Interval, Parameter, check_space, read_space

LR, BATCH, EPOCHS = "model.optimizer.lr", "data.batch_size", "trainer.max_epochs"
PUBLISHED: list[Parameter] = [
    Interval(LR, 0.001, 0.1, log=True),
    Choice(BATCH, (32, 64, 128, 256, 512)),
    Interval(EPOCHS, 1, 5, integer=True, step=1),
]


@pytest.fixture(scope="module", autouse=True)
def app() -> Iterator[None]:
    register()
    OmegaConf.register_new_resolver("mode_of", metric_mode, replace=True)
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        yield


def compose(overrides: list[str]) -> DictConfig:
    return hydra_compose("train", overrides=overrides)


@pytest.fixture(scope="module")
def base(app: None) -> DictConfig:
    return compose(["hparams_search=optuna"])


def one(written: str, base: DictConfig) -> Parameter:
    (parameter,), others = read_space({}, [written], base)
    assert others == []
    return parameter


def refused(overrides: list[str], base: DictConfig) -> str:
    """The one line that a search over these is refused by."""
    with pytest.raises(ConfigError) as caught:
        parameters, others = read_space({}, overrides, base)
        check_space(parameters, lambda more: compose([*others, *more]))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("group", "expected"), [("optuna", PUBLISHED), ("capstone_80_10_10", [PUBLISHED[0], Choice(BATCH, (32, 64, 128))])]
)
def test_the_published_spaces(group: str, expected: list[Parameter]) -> None:
    cfg = compose([f"hparams_search={group}"])
    parameters, others = read_space(cfg.hparams_search.space, [f"hparams_search={group}", "seed=1"], cfg)
    assert parameters == expected
    assert others == [f"hparams_search={group}", "seed=1"]
    check_space(parameters, lambda more: compose([*others, *more]))


def test_the_command_line_adds_replaces_and_takes_out(base: DictConfig) -> None:
    given = ["task_name=mine", f"{BATCH}=64", f"{LR}=interval(1e-4,1e-2)", "model.head.dropout=0.1,0.2"]
    parameters, others = read_space(base.hparams_search.space, given, base)
    assert parameters == [PUBLISHED[2], Interval(LR, 1e-4, 1e-2), Choice("model.head.dropout", (0.1, 0.2))]
    assert others == ["task_name=mine", f"{BATCH}=64"]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("trainer.max_epochs=interval(1,5)", Interval(EPOCHS, 1, 5, integer=True)),
        ("data.num_workers=interval(0,2)", Interval("data.num_workers", 0, 2, integer=True)),  # null, and int by schema
        ("trainer.max_epochs=tag(float,interval(1,5.5))", Interval(EPOCHS, 1, 5.5)),
        ("+a.b=interval(1,5)", Interval("+a.b", 1, 5)),
        ("+a.b=int(interval(1,5))", Interval("+a.b", 1, 5, integer=True)),
        ("+a.b=tag(int,log,interval(1,5))", Interval("+a.b", 1, 5, integer=True, log=True)),
        ("data.batch_size=tag(log,range(1,65))", Interval(BATCH, 1, 64, integer=True, log=True, step=1)),
        ("data.batch_size=range(9,0,-3)", Interval(BATCH, 3, 9, integer=True, step=3)),
        ("data.batch_size=sort(range(1,6,2))", Interval(BATCH, 1, 5, integer=True, step=2)),
        ("model.head.dropout=range(0,0.3,0.1)", Interval("model.head.dropout", 0, 0.2, step=0.1)),
        ("model.head.dropout=float(range(0,2))", Interval("model.head.dropout", 0, 1, step=1)),
        ("model.head.dropout=interval(0.1,0.1)", Interval("model.head.dropout", 0.1, 0.1)),
        ("task_name='64',64,null,'a,b'", Choice("task_name", ("64", 64, None, "a,b"))),
        ("data.counts=choice([0,1],[0,1,2])", Choice("data.counts", ([0, 1], [0, 1, 2]))),
        ("model.head={layers:0},{layers:1,width:8}", Choice("model.head", ({"layers": 0}, {"layers": 1, "width": 8}))),
        ("model/optimizer=adamw,sgd", Choice("model/optimizer", ("adamw", "sgd"))),
        ("model=glob(resnet*)", Choice("model", ("resnet18", "resnet34", "resnet50"))),
        ("data.batch_size=sort(8,2,4)", Choice(BATCH, (2, 4, 8))),
    ],
)
def test_what_can_be_written(written: str, expected: Parameter, base: DictConfig) -> None:
    found = one(written, base)
    assert found == expected
    if isinstance(found, Interval) and found.integer:
        assert isinstance(found.low, int)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (f"{LR}=choice()", "empty choice"),
        (f"{EPOCHS}=range(5,5)", "is empty: its end is left out"),
        (f"{EPOCHS}=range(5,1)", "is empty"),
        (f"{EPOCHS}=range(1,5,0)", "a step of 0"),
        ("model=glob(vgg*)", "model has no option to choose from"),
        (f"{BATCH}=interval(5,1)", "write interval(1,5)"),
        (f"{LR}=tag(log,interval(0,1))", "has no logarithm"),
        (f"{BATCH}=tag(log,range(0,8))", "write 1 or more"),
        (f"{BATCH}=tag(log,range(1,9,2))", "write tag(log, interval(1,7))"),
        (f"{LR}=interval(0,nan)", "write finite ones"),
        (f"{LR}=interval(0.1,inf)", "write finite ones"),
        (f"{LR}=0.1,nan", "list finite ones"),
        (f"{EPOCHS}=interval(1,5.5)", "write whole bounds, as in interval(1,6)"),
        (f"{LR}=tag(int,range(0,1,0.5))", "not whole"),
        (f"{LR}=tag(lgo,interval(1,2))", "the tag lgo is not one of log"),
        (f"{LR}=tag(log,choice(1,2))", "write the choice without"),
        (f"{LR}=interval(1,2", "cannot be read (a bracket or quote is off)"),
        (f"{LR}=interval(1)", "missing a required argument: 'end'"),
        (f"{BATCH}=1,2,1.0", "data.batch_size=1.0 is listed twice"),
        ("data.counts=[0,1],[0,1]", "data.counts=[0,1] is listed twice"),
        ("data.batch_sise=1,2", "Unknown setting 'data.batch_sise'; did you mean 'data.batch_size'?"),
        ("batch_size=1,2", "Unknown setting 'batch_size'; did you mean 'data.batch_size'?"),
        ("model=resnet18,resnet35", "model=resnet35 is not one of cnn, cnn_small, "),
        ("data.batch_size=a,b", "Value 'a' of type 'str' could not be converted to Integer"),
        (f"{LR}=interval(0,1)", "the search would try model.optimizer.lr=0.0:"),
        ("data.batch_size=range(8,-1,-1)", "data.batch_size=0 is out of range: it must be at least 1"),
        ("+trainer.epochs=1,2", "trainer.epochs is not an argument of lightning.Trainer"),
        ("launcher=local,rehearsal", "launcher is the same for all trials"),
        ("hparams_search.n_trials=1,2", "the same for all trials"),
        ("paths.log_dir=a,b", "the same for all trials"),
        ("test=true,false", "the same for all trials"),
        ("seed=1", "nothing is left to search: name a key"),
    ],
)
def test_a_bad_space_is_refused_in_one_line(written: str, said: str, base: DictConfig) -> None:
    assert said in refused([written], base)


def test_a_value_that_another_override_forbids_is_refused(base: DictConfig) -> None:
    said = refused(["model.class_weights=balanced", "data.balanced=false,true"], base)
    assert said.startswith("the search would try data.balanced=true: ")


def test_a_space_holds_no_fixed_values(base: DictConfig) -> None:
    with pytest.raises(ConfigError, match=re.escape("has one value for data.batch_size, 64: write choice(A,B)")):
        read_space({BATCH: "64"}, [], base)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("hparams_search.space={}", "leaves the space as it is"),
        ("ckpt_path=last", "leave ckpt_path out"),
        ("trainer.devices=2", "set trainer.devices=1"),
    ],
)
def test_what_makes_no_search_is_refused(override: str, said: str, base: DictConfig) -> None:
    assert said in refused(["data.batch_size=32,64", override], base)


@pytest.mark.parametrize(
    ("parameter", "told"),
    [
        (Interval("a", 1, 4, integer=True, step=1), "1 to 4"),
        (Interval("a", 0.001, 0.1, log=True), "0.001 to 0.1, on a logarithmic scale"),
        (Interval("a", 0, 0.5, step=0.25), "0 to 0.5, in steps of 0.25"),
        (Choice("a", (32, "64", None, "b c")), "32, '64', null, 'b c'"),
    ],
)
def test_a_space_is_formatted_for_the_log(parameter: Parameter, told: str) -> None:
    assert str(parameter) == told


def test_outer_values_of_long_lists_are_tried(base: DictConfig) -> None:
    values = [*range(2, 90), 0, 90]
    assert "data.batch_size=0" in refused([f"data.batch_size={','.join(map(str, values))}"], base)


def test_what_optuna_is_given() -> None:
    mixed = Choice("a", (True, 1, None, "x"))
    lists = Choice("b", ([1, 2], "[1,2]", {"c": None}))
    stepped = Interval("c", 0, 0.3, step=0.1)
    space: list[Parameter] = [*PUBLISHED, mixed, lists, stepped]
    assert to_optuna(space) == {
        LR: FloatDistribution(0.001, 0.1, log=True),
        BATCH: CategoricalDistribution([32, 64, 128, 256, 512]),
        EPOCHS: IntDistribution(1, 5),
        "a": CategoricalDistribution(["true", "1", "null", "x"]),
        "b": CategoricalDistribution(["[1,2]", "'[1,2]'", "{c:null}"]),
        "c": FloatDistribution(0, 0.3, step=0.1),
    }
    params = {"c": 0.1 + 0.2, "b": "{c:null}", "a": "1", EPOCHS: 3, "elsewhere": 1}
    values = values_of(params, space)
    assert list(values) == [EPOCHS, "a", "b", "c"]
    assert (values["a"] is True, values["b"], values["c"]) == (False, {"c": None}, 0.3)
    assert params_of(values, space) == {EPOCHS: 3, "a": "1", "b": "{c:null}", "c": 0.3}


def checked(ranges: dict[str, Any]) -> dict[str, Any]:
    """Ranges that AWS's own model of the request accepts."""
    model = botocore.session.get_session().get_service_model("sagemaker")
    report = ParamValidator().validate(ranges, model.shape_for("ParameterRanges"))
    assert not report.has_errors(), report.generate_report()
    return ranges


def test_what_sagemaker_is_given() -> None:
    assert checked(to_sagemaker(PUBLISHED)) == {
        "ContinuousParameterRanges": [
            {"Name": LR, "MinValue": "0.001", "MaxValue": "0.1", "ScalingType": "Logarithmic"}
        ],
        "CategoricalParameterRanges": [{"Name": BATCH, "Values": ["32", "64", "128", "256", "512"]}],
        "IntegerParameterRanges": [{"Name": EPOCHS, "MinValue": "1", "MaxValue": "5", "ScalingType": "Linear"}],
    }
    stepped: list[Parameter] = [
        Interval("a", 0, 8, integer=True, step=4),
        Interval("b", 0, 0.2, step=0.1),
        Interval("c", 2.5, 2.5),
    ]
    assert checked(to_sagemaker(stepped))["CategoricalParameterRanges"] == [
        {"Name": "a", "Values": ["0", "4", "8"]},
        {"Name": "b", "Values": ["0.0", "0.1", "0.2"]},
        {"Name": "c", "Values": ["2.5"]},
    ]
    assert from_sagemaker({"a": "4", "b": "0.1", "seed": "1"}, stepped) == {"a": 4, "b": 0.1}


def test_a_grid_lists_whole_numbers() -> None:
    grid = checked(to_sagemaker(PUBLISHED[1:], "Grid"))
    assert grid["CategoricalParameterRanges"][1] == {"Name": EPOCHS, "Values": ["1", "2", "3", "4", "5"]}
    with pytest.raises(ConfigError, match=re.escape(f"write {LR}=choice(0.001,0.1)")):
        to_sagemaker(PUBLISHED, "Grid")


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ([Interval(f"+k{number}", 0, 1) for number in range(31)], "30 keys at most, not 31"),
        ([Choice("a", tuple(range(31)))], "a has 31 values"),
        ([Interval("a", 0, 62, integer=True, step=2)], "a has 32 values"),
        ([Interval("a" * 257, 0, 1)], "256 characters"),
    ],
)
def test_what_sagemaker_cannot_search_is_refused(space: list[Parameter], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        to_sagemaker(space)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXT)


def parsed(override: str) -> Any:
    return OverridesParser.create().parse_override(override).value()


@settings(deadline=None, max_examples=40)
@given(st.lists(st.one_of(SCALARS, st.lists(SCALARS, max_size=3)), min_size=1, max_size=5, unique_by=repr))
def test_a_choice_travels_to_either_chooser_and_back(values: list[Any]) -> None:
    choice = Choice("data.source", tuple(values))
    (sent,) = checked(to_sagemaker([choice]))["CategoricalParameterRanges"]
    (distribution,) = to_optuna([choice]).values()
    assert isinstance(distribution, CategoricalDistribution)
    for value, text, param in zip(values, sent["Values"], distribution.choices, strict=True):
        told = {choice.key: text}
        (override,) = decode_overrides(told)
        chosen = [from_sagemaker(told, [choice])[choice.key], values_of({choice.key: param}, [choice])[choice.key]]
        for back in (parsed(override), parsed(override_of(choice.key, value)), *chosen):
            assert repr(back) == repr(value)
