"""Overrides: text stays as typed, ``~`` is a home, printed commands can be pasted, wrong overrides are explained."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import REPOSITORY, Run
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from bincounter.cli.composition import Composer
from bincounter.cli.hydra_app import compose
from bincounter.cli.hydra_internals import prepare_hydra, split_jobs
from bincounter.cli.main import main
from bincounter.cloud.hyperparameters import decode_overrides, encode_overrides
from bincounter.config.deploy_schema import check_deploy
from bincounter.config.overrides import with_recipe, without_recipe
from bincounter.config.quoting import parse, shell_command
from bincounter.config.validate import validate
from bincounter.errors import ConfigError

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
S3 = ["trainer=gpu", "data=s3", "data.source=s3://my-bucket/bins"]


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("paths.output_dir=2024_01_15", "2024_01_15"),
        ("data.source=7e4", "7e4"),
        ("data.source=1.10", "1.10"),
        ("data.source=inf", "inf"),
        ("task_name=007", "007"),
        ("task_name=0x10", "0x10"),
        ("task_name=True", "True"),
        ("data.source=null", None),
        ("data.source=my bins (1)", "my bins (1)"),
        ("data.source=lr=0.1", "lr=0.1"),
        ("data.source=#1, März", "#1, März"),
        ("data.source=新加卷", "新加卷"),
        ("data.source='quoted, 1_0'", "quoted, 1_0"),
        ("tags=[2024_01,a=b,'c']", ["2024_01", "a=b", "c"]),
        ("logger.tensorboard.save_dir=1_0", "1_0"),
        ("logger.tensorboard.name=a=b", "a=b"),
        ("+logger.tensorboard.prefix=1e3", "1e3"),
        ("logger.tensorboard.version=2024_01", "2024_01"),
        ("logger.tensorboard.version=1.10", "1.10"),
        ("logger.tensorboard.version=3", 3),
        ("data.sync={only:counts,stream:true}", {"only": "counts", "stream": True}),
        ("+data.layout={seed:3}", {"seed": 3}),
        ("launcher.environment.OMP_NUM_THREADS=4", "4"),
        ("launcher.environment.VERSION=1.10", "1.10"),
        ("launcher.environment={A:true,B:2024_01}", {"A": "true", "B": "2024_01"}),
        ("deploy target.environment.FLAG=true", "true"),
        ("deploy parity.source=1e3", "1e3"),
        ("deploy parity={source:2024_01,photos:3}", {"source": "2024_01", "photos": 3}),
    ],
)
def test_text_settings_keep_what_was_typed(override: str, value: Any) -> None:
    command = "deploy" if override.startswith("deploy ") else "train"
    override = override.removeprefix("deploy ")
    group = ["target=realtime"] if command == "deploy" else ["launcher=sagemaker"]
    key = override.partition("=")[0].lstrip("+")
    found = OmegaConf.select(compose([*group, override], config_name=command), key)
    assert ({name: found[name] for name in value} if isinstance(value, dict) else found) == value
    # As a hyperparameter of a job, too.
    prepare_hydra()
    (kept,) = Composer(command, command).keep_text([override])
    (sent,) = decode_overrides(encode_overrides([kept])) if value is not None else [kept]
    assert parse(sent).value() == value


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["callbacks=early_stopping"], "callbacks.early_stopping.mode", "max"),
        (
            ["callbacks=early_stopping", "callbacks.early_stopping.monitor=val/loss"],
            "callbacks.early_stopping.mode",
            "min",
        ),
        (["callbacks=early_stopping", "optimized_metric=val/rmse"], "callbacks.early_stopping.mode", "min"),
        (["experiment=capstone_80_5_15"], "model.optimizer._target_", "torch.optim.Adam"),
        (["experiment=capstone_80_5_15", "model/optimizer=adamw"], "model.optimizer._target_", "torch.optim.AdamW"),
        (["experiment=capstone_80_10_10", "model/optimizer=sgd"], "model.optimizer._target_", "torch.optim.SGD"),
    ],
)
def test_settings_follow_those_that_they_belong_to(overrides: list[str], key: str, value: str) -> None:
    assert OmegaConf.select(compose(overrides, config_name="train"), key) == value


@pytest.mark.parametrize(
    ("override", "kept"),
    [
        ("task_name=7e4,1.10", "task_name='7e4','1.10'"),
        ("task_name=choice(a, b)", "task_name=choice(a, b)"),
        ("task_name=sort(b,a,reverse=true)", "task_name=sort(b,a,reverse=true)"),
        ("task_name=März,'a,b'", "task_name='März','a,b'"),
        ("tags=[1_0],[2_0]", "tags=['1_0'],['2_0']"),
        ("data.batch_size=1_0,20", "data.batch_size=1_0,20"),
        ("hydra.sweep.dir=2024_01", "hydra.sweep.dir='2024_01'"),
        ("hydra.searchpath=[file:///a,pkg://b]", "hydra.searchpath=[file:///a,pkg://b]"),
        ("model.optimizer.lr=1e-3,1e-2", "model.optimizer.lr=1e-3,1e-2"),
        ("task_name=choice()", "task_name=choice()"),
        ("task_name=tag(log,interval(1,9))", "task_name=tag(log,interval(1,9))"),
    ],
)
def test_values_of_a_sweep_stay_text(override: str, kept: str) -> None:
    prepare_hydra()
    assert Composer("train", "train").keep_text([override], sweep=True) == [kept]


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("task_name=choice(7e4, a=b)", ["7e4", "a=b"]),
        ("task_name=choice('1_0',b)", ["1_0", "b"]),
        ("task_name=shuffle(7e4,1.10,2024_01)", ["1.10", "2024_01", "7e4"]),
        ("task_name=sort(b, 7e4, 'it, is', reverse=true)", ["it, is", "b", "7e4"]),
        ("task_name=shuffle(choice(1_0,true))", ["1_0", "true"]),
        ("task_name=sort(sweep=choice(b,1_0))", ["1_0", "b"]),
        ("task_name=tag(first,choice(1_0,b))", ["1_0", "b"]),
        ("tags=shuffle([1_0],[2_0])", [["1_0"], ["2_0"]]),
        ("tags=sort([b,1_0])", [["1_0", "b"]]),
        ("data.batch_size=sort(20,1_0)", [10, 20]),
        ("+logger.tensorboard.version=shuffle(2024_01,3)", ["2024_01", 3]),
    ],
)
def test_texts_in_functions_of_a_sweep_stay_text(override: str, values: list[Any]) -> None:
    prepare_hydra()
    (kept,) = Composer("train", "train").keep_text(["logger=tensorboard", override], sweep=True)[1:]
    tried = [parse(text).value() for (text,) in split_jobs([parse(kept)])]
    assert (sorted(tried, key=str) if "shuffle" in override else tried) == values


@pytest.fixture
def config_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(
        "# @package _global_\ntask_name: 2024_01_15\ntags: [007, b]\ndata: {batch_size: 1_0, source: ~/bins}\n"
    )
    (folder / "job.yaml").write_text(
        "# @package _global_\ndefaults:\n  - mine\n  - override /launcher: sagemaker\n"
        "launcher:\n  environment: {OMP_NUM_THREADS: 4, FLAG: true, A.B: 007}\n"
        "logger: {mine: {_target_: lightning.pytorch.loggers.CSVLogger, save_dir: x, name: 1_0, version: 2024_01}}\n"
    )
    (tmp_path / "conf" / "hparams_search" / "space").mkdir(parents=True)
    (tmp_path / "conf" / "hparams_search" / "space" / "mine.yaml").write_text("model.weights: choice(1e3,2_0)\n")
    return tmp_path / "conf"


def test_text_settings_of_files_keep_what_was_typed(config_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    cfg = compose(["experiment=job"], config_dir=config_dir)
    assert cfg.task_name == "2024_01_15"
    assert cfg.tags == ["007", "b"]
    assert cfg.launcher.environment == {"OMP_NUM_THREADS": "4", "FLAG": "true", "A.B": "007"}
    assert (cfg.logger.mine.name, cfg.logger.mine.version) == ("1_0", "2024_01")
    assert cfg.data.batch_size == 10
    assert cfg.data.source == "/home/me/bins"


@pytest.mark.parametrize(
    "override",
    [
        "data.source=~/a",
        "model.weights=~/a",
        "ckpt_path=~/a",
        "paths.data_dir='~/a'",
        "paths.output_dir=~/a",
        "paths.model_dir=~/a",
        "data.source=${oc.env:PLACE}",
        "logger.tensorboard.save_dir=~/a",
        "+trainer.default_root_dir=~/a",
        "data=abid data.layout.ids=~/a",
        "hparams_search=optuna hparams_search.warm_start=[~/a]",
        "deploy archive=~/a",
        "deploy input=~/a",
        "deploy parity.source=~/a",
        "deploy paths.log_dir=~/a",
    ],
)
def test_a_tilde_is_the_home(override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("PLACE", "~/a")
    command = "deploy" if override.startswith("deploy ") else "train"
    overrides = override.removeprefix("deploy ").split()
    key = overrides[-1].partition("=")[0].lstrip("+")
    assert OmegaConf.select(compose(overrides, config_name=command), key) in ("/home/me/a", ["/home/me/a"])


def test_a_tilde_that_is_no_path_stays() -> None:
    cfg = compose(
        ["launcher=sagemaker", "launcher.environment.A=~/a", "task_name=~b", "model.weights=~nobody_of_that/a"]
    )
    assert (cfg.launcher.environment.A, cfg.task_name, cfg.model.weights) == ("~/a", "~b", "~nobody_of_that/a")


def test_arguments_of_commands_know_the_home(run: Run, tmp_path: Path) -> None:
    done = run("-m", "bincounter", "compare", "~/nothing", code=2, HOME=str(tmp_path))
    assert f"{tmp_path}/nothing" in done.stderr


@settings(deadline=None)
@given(TEXT)
@example("/my runs (1)/lr=0.1")
@example("it's")
@example("/tmp/a-1.2/3e4/null")
@example("$HOME `id` \\ \"'")
def test_a_printed_command_can_be_pasted(value: str) -> None:
    *program, override = shlex.split(shell_command("python", "train.py", settings={"paths.output_dir": value}))
    assert program == ["python", "train.py"]
    assert parse(override).value() == value


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ("-m objective=glob(*,exclude=co*) seed=-1", "objective=classification seed=-1): seed=-1 is out of range"),
        ("-m objective=glob(zz*)", "objective=glob(zz*) names nothing to try"),
        ("--config-dir=CONF experiment=mine data.batch=3", "did you mean 'data.batch_size'?"),
        (
            "-m --config-dir=CONF experiment=mine seed=-1",
            "experiment=mine seed=-1): seed=-1 is out of range",
        ),
        ("seed=3 -m hydra.searchpath=[CONF] experiment=mine seed=-1", "seed=-1 is out of range"),
        (
            "-m hydra.searchpath=[CONF] experiment=glob(mi*) seed=-1",
            "experiment=mine seed=-1): seed=-1 is out of range",
        ),
        ("--config-dir=/nowhere seed=3", "--config-dir=/nowhere is not a folder"),
        ("--config-dir=CONF experiment=job data.source=s3://b/c trainer=gpu", "would be missing in the container"),
        ("trainer.limit_train_batches=0.5", "add it with +trainer.limit_train_batches=0.5"),
        ("+experiment=demo", "write experiment=demo, without +"),
        ("+logger.csv.folder=x", "write logger.csv.folder=x, without +"),
        ("hydra/sweeper=optuna", "write hparams_search=optuna"),
        ("task_name=a,b", """add -m to try each, or write "task_name='a,b'" for one text"""),
        ("+logger.wandb.notes=a=b", """or write one text as "+logger.wandb.notes='a=b'\""""),
        ("=3", "has no key: write KEY=VALUE"),
        ("+db.password=hunter2(", "+db.password=*** cannot be parsed: put its value in single quotes"),
        ("hydra.searchpath=CONF", "hydra.searchpath"),
        (
            "--config-dir=CONF hparams_search=optuna hparams_search/space=mine",
            "the search would try model.weights='1e3': ",
        ),
        ("launcher=sagemaker launcher.environment.A=null", "launcher.environment.A=null is not a text"),
        ("paths.output_dir=", "paths.output_dir= is empty; name a file or a folder, or remove it"),
        ("data.batch_size=null", "data.batch_size=null: this setting cannot be null"),
        (
            "data.split.seed=4294967296",
            "data.split.seed=4294967296 is out of range: it must be at least 0 and at most 4294967295",
        ),
        ("+data.imagesize=1", "+data.imagesize is read by nothing: did you mean data.image_size, without +?"),
        ("+foo=1", "+foo is read by nothing: remove it"),
        ("launcher=container", "launcher=container is not one of local, rehearsal, sagemaker, sagemaker_spot"),
        ("data=schema", "data=schema is not one of abid, demo, folders, s3, shards"),
        ("~logger", "~logger: logger cannot be left out: write logger=none"),
        ("~data=demo", "~data=demo: data cannot be left out: choose one of abid, demo, folders, s3, shards"),
        ("-m seed=1,2 --cfg job", "--cfg shows one configuration: remove -m, and give each setting one value"),
        ("-m seed=1,2 --info defaults", "--info shows one configuration: remove -m"),
        ("--run --cfg job", "--cfg and --run exclude each other: remove one of them"),
        ("--resolve seed=1", "--resolve is for --cfg: add --cfg job"),
        ("--experimental-rerun x.pickle", "--experimental-rerun is not offered"),
        ("debugger=none_schema", "debugger=none_schema is not one of none, smdebug, tensors"),
    ],
)
def test_a_wrong_override_is_answered_with_the_right_one(
    overrides: str, sentence: str, run: Run, config_dir: Path, tmp_path: Path
) -> None:
    given_ = shlex.split(overrides.replace("CONF", str(config_dir)))
    done = run("train.py", f"paths.output_dir={tmp_path}/run", *given_, code=2)
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    left = [path.name for path in (tmp_path / "run").rglob("*")]
    assert left in ([], ["multirun.yaml"])  # Hydra writes it before it calls a launcher


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ("objective.label_smoothing=2", "objective.label_smoothing=2 must be at least 0 and below 1"),
        ("objective.label_smoothing=nan data.counts=[1,0]", "objective.label_smoothing=nan must be at least 0"),
        ("objective=neighbour objective.temperature=0", "objective.temperature=0 must be above 0"),
        ("model.trained=last_stages model.stages=99", "model.stages=99 must be 1 to 5, the stages of this backbone"),
        ("model=efficientnet_lite0 model.trained=last_stages model.stages=9", "model.stages=9 must be 1 to 8"),
    ],
)
def test_what_a_model_refuses_is_refused_before_a_job_starts(overrides: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        validate(compose(["launcher=sagemaker_spot", *S3, *overrides.split()]))


def six(counts):
    """Objective of six counts, as that of a run that learns photos above those that it answers."""
    if len(counts) != 6:
        raise ValueError(counts)


@pytest.mark.parametrize("counts", [["data.counts=null"], ["data.counts=[1,2,3]", "data.learn_above=3"]])
def test_an_objective_of_ones_own_is_built_as_a_run_builds_it(counts: list[str]) -> None:
    dropped = ["~objective.label_smoothing", "~objective.squared_error"]
    validate(compose(["trainer=cpu", f"objective._target_={__name__}.six", *dropped, *counts]))


def test_a_search_can_be_without_the_space_of_an_option() -> None:
    composed = compose(["hparams_search=optuna", "~hparams_search/space", "model.optimizer.lr=0.1"])
    assert composed.hparams_search.n_trials


@pytest.mark.parametrize("key", ["data.source", "model.weights", "paths.data_dir", "ckpt_path", "deploy ckpt_path"])
def test_an_empty_variable_is_no_path(key: str) -> None:
    name = key.removeprefix("deploy ")
    with pytest.raises(ConfigError, match=f"^{name}= is empty; name a file or a folder, or remove it$"):
        if key != name:
            check_deploy(compose([f"{name}="], config_name="deploy"))
        else:
            validate(compose(["trainer=cpu", f"{name}="]))


@pytest.mark.parametrize("words", [["predict", ""], ["audit", "a", "--record", ""], ["predict", "a", "--ckpt-path="]])
def test_an_empty_argument_is_no_path(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert "the name is empty: write that of a file or a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("launcher.bucket=Bad_Bucket", "launcher.bucket=Bad_Bucket is not the name of a bucket"),
        ("launcher.bucket=192.168.0.1", "is not the name of a bucket"),
        ("launcher.bucket=s3://mine", "is not the name of a bucket"),
        ("launcher.volume_size=999999", "launcher.volume_size=999999 is out of range"),
        ("launcher.role=arn:aws:iam::12:role/x", "is not a role"),
        ("launcher.instance_type=ml.g5", "is not a SageMaker instance type"),
        ("launcher.image=Mine", "is not the URI of an image"),
        ("launcher.checkpoint_uri=s3://Bad_Bucket/a", "is not an S3 folder"),
        ("launcher.environment.A=" + 513 * "x", "launcher.environment.A has 513 characters"),
        ("+launcher.request.VpcConfig={Subnets:[a],SecurityGroupIds:[sg-1]}", "VpcConfig.Subnets=a is not an id"),
        ("+launcher.request.Tags=[{Key:a,Value:b},{Key:a,Value:c}]", "has a key twice"),
        ("+launcher.request.Tags=[{Key:'aws:a',Value:b}]", "no key that begins with aws:"),
        ("deploy target.bucket=Bad_Bucket", "target.bucket=Bad_Bucket is not the name of a bucket"),
        ("deploy target.role=a b", "target.role=a b is not a role"),
        ("deploy target.image=ftp://x", "is not the URI of an image"),
        ("deploy target.instance_type=m5.large", "is not a SageMaker instance type"),
    ],
)
def test_names_that_aws_refuses_are_refused_first(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        if override.startswith("deploy "):
            check_deploy(compose(["target=realtime", override.removeprefix("deploy ")], config_name="deploy"))
        else:
            validate(compose(["launcher=sagemaker", *S3, override]))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["callbacks=early_stopping", "callbacks.early_stopping.monitor=train/loss"],
            "train/loss is not one of val/loss, .*; did you mean callbacks.early_stopping.monitor=val/loss",
        ),
        (["+callbacks.mine={_target_:lightning.pytorch.callbacks.ModelCheckpoint,monitor:train/loss}"], "val/loss, "),
        (["+trainer.val_check_interval=1"], "has no effect here: runs validate as epochs end"),
        (["model.head.width=12000"], "model.head.width=12000 is out of range: .* at most 10000"),
        (["model.head.layers=12000"], "model.head.layers=12000 is out of range: .* at most 10000"),
        (
            [f"model.backbone._target_={__name__}.count_to", f"+model.backbone.path=hf_{'a1' * 16}"],
            "model.backbone.path looks like a secret, which no checkpoint keeps",
        ),
        (["+trainer.limit_test_batches=1"], "has no effect here: scores are of all photos"),
        (["+callbacks.mine.monitor=val/loss"], "callbacks.mine needs a _target_"),
        (["callbacks=[ema]", "trainer.precision=bf16-true"], "set trainer.precision=bf16-mixed, or remove ema"),
        (
            ["model.optimizer._target_=torch.optim.LBFGS", "~model.optimizer.weight_decay"],
            "refused by torch.optim.LBFGS: .*parameter groups",
        ),
        (["trainer.min_epochs=20"], "trainer.min_epochs=20 is above trainer.max_epochs=10"),
        (["+trainer.gradient_clip_algorithm=value"], "has no effect here: set trainer.gradient_clip_val, too"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_settings_of_a_fit_that_cannot_work_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate(compose(["trainer=cpu", "model=cnn", "callbacks=none", *overrides]))


def test_a_changed_file_of_options_is_read_again_and_a_dangling_link_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "gone.yaml").symlink_to(tmp_path / "nowhere")
    mine = tmp_path / "experiment" / "mine.yaml"
    for target in ("builtins.dict", "bincounter.data.layouts.Abid"):
        mine.write_text(f"# @package _global_\ndata:\n  layout:\n    _target_: {target}\n    ids: null\n")
        cfg = compose(["experiment=mine", "data.layout.ids=7"], config_dir=tmp_path)
        assert cfg.data.layout.ids == (7 if target == "builtins.dict" else "7")


def test_text_is_kept_beside_arguments_whose_types_cannot_be_read() -> None:
    assert compose(["logger=wandb", "logger.wandb.project=2024_01"]).logger.wandb.project == "2024_01"


def count_to(path="bins", most=3, **further):
    """Takes arguments without types."""


def test_an_argument_without_a_type_is_text_where_its_default_is() -> None:
    target = [f"model.backbone._target_={__name__}.count_to", "~model.backbone.name"]
    backbone = compose([*target, "+model.backbone.path=1_0", "+model.backbone.most=1_0"]).model.backbone
    assert (backbone.path, backbone.most) == ("1_0", 10)


def test_a_role_in_a_folder_is_a_role() -> None:
    validate(compose(["launcher=sagemaker", *S3, "launcher.role=service-role/AmazonSageMaker-ExecutionRole-2024"]))


def test_what_another_setting_reads_can_be_added() -> None:
    cfg = compose(["+epochs=2", "trainer.max_epochs=${epochs}", "trainer=cpu"])
    validate(cfg)
    assert cfg.trainer.max_epochs == 2
    with pytest.raises(ConfigError, match=re.escape("+epochs is read by nothing")):
        validate(compose(["+epochs=2", "trainer=cpu"]))


@pytest.mark.parametrize("option", ["--config-dir={}", "hydra.searchpath=[file://{}]"])
def test_help_lists_what_can_be_chosen(option: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").touch()
    groups = run("train.py", "--help", option.format(tmp_path)).stdout.partition("== Config ==")[0]
    listed = dict(line.split(": ") for line in groups.splitlines() if re.match(r"[\w/]+: ", line))
    conf = REPOSITORY / "conf"
    folders = [path for path in conf.rglob("*") if path.is_dir() and path.relative_to(conf).parts[0] != "hydra"]
    options = {path.relative_to(conf).as_posix(): {each.stem for each in path.glob("*.yaml")} for path in folders}
    del options["target"]  # of deploy.py
    options["model"].add("mine")
    options["launcher"].discard("container")  # of bincounter itself, as schemas are
    assert {group: set(text.split(", ")) for group, text in listed.items()} == options


@pytest.mark.parametrize("program", ["train.py", "deploy.py"])
def test_the_version_is_bincounters(program: str, run: Run) -> None:
    assert run(program, "--version").stdout.startswith("bincounter ")


def test_options_stand_between_overrides(run: Run) -> None:
    done = run("train.py", "seed=3", "--cfg", "job", "task_name=1_0")
    assert {"seed": 3, "task_name": "1_0"}.items() <= yaml.safe_load(done.stdout).items()


@pytest.mark.parametrize("multirun", [[], ["-m"]], ids=["single", "multirun"])
@pytest.mark.parametrize("name", ["a/b", "a=b", "a,b<c> #1 ü"])
def test_any_name_of_a_task_names_its_folder(name: str, multirun: list[str], train: Run, tmp_path: Path) -> None:
    (tmp_path / "bins" / "0").mkdir(parents=True)  # refused once the run has its folder
    given_ = ["model=cnn", "trainer=cpu", "data=folders", f"data.source={tmp_path / 'bins'}", f"task_name='{name}'"]
    assert "No readable photo in" in train(*multirun, *given_, code=2).stderr
    (config,) = (tmp_path / "log" / name).rglob("config.yaml")
    assert yaml.safe_load(config.read_text(encoding="utf-8"))["task_name"] == name
    assert config.parent.name == "0" if multirun else config.parent.parent == tmp_path / "log" / name


def test_a_data_set_alone_brings_the_recipe_that_counts_best_on_it(run: Run) -> None:
    done = run("train.py", "data=abid", "data.source=photos", "data.image_size=96", "--cfg", "job")
    cfg = OmegaConf.create(done.stdout)
    assert done.stderr.startswith("data=abid: trained as experiment=abid_small_moderate")
    assert (cfg.model.backbone.name, cfg.data.source, cfg.data.image_size) == ("tf_efficientnet_lite0", "photos", 96)
    assert cfg.data.counts == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "overrides",
    [
        *("data=abid data.source=a model=cnn", "data=abid data.source=a ~experiment", "data=abid", "seed=2"),
        *("data=abid data.source=a -m hparams_search=optuna", "data=abid,folders data.source=a", "data=folders"),
        *("data=abid data.source=a ckpt_path=RUN/checkpoints/best.ckpt", "data=abid data.source=a ckpt_path=latest"),
    ],
)
def test_a_chosen_recipe_stays_as_it_is(overrides: str) -> None:
    given = [each for each in overrides.split() if each != "-m"]
    assert with_recipe(given) == given


def test_what_is_printed_of_a_search_has_no_recipe() -> None:
    given = ["data=abid", "data.source=a", "model.optimizer.lr=0.1"]
    assert with_recipe(without_recipe(given)) == without_recipe(given) == ["~experiment", *given]
    assert compose(without_recipe(given), config_name="train").model.backbone.name == "resnet50"
    assert without_recipe(["model=cnn", *given]) == ["model=cnn", *given]


def test_a_restartable_run_has_the_recipe_until_it_is_a_run(tmp_path: Path) -> None:
    given = ["data=abid", "data.source=a", "ckpt_path=last", f"paths.output_dir={tmp_path}"]
    assert with_recipe(given) == ["experiment=abid_small_moderate", *given]
    (tmp_path / "overrides.txt").touch()
    assert with_recipe(given) == given
