"""Refusals of deploy.py: one line each, before a checkpoint is read."""

import subprocess
import sys
from pathlib import Path

import pytest
from commands import REPOSITORY, Run, environment

from bincounter.cli.hydra_app import compose
from bincounter.config.deploy_schema import check_deploy
from bincounter.errors import UserError


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as refused:
        check_deploy(compose(list(overrides), config_name="deploy"))
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    (tmp_path / "best.ckpt").write_bytes(b"")
    return f"ckpt_path={tmp_path / 'best.ckpt'}"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["action=deplyo"], "did you mean action=deploy?"),
        (["target=relatime"], "did you mean target=realtime?"),
        (["target.prot=1"], "Unknown setting 'target.prot'; did you mean 'target.port'?"),
        (["model=resnet18"], "Unknown setting 'model'"),
        (["target.port=eighty"], "target.port"),
        (["target.port=70000"], "at most 65535"),
        (["precision=fp8"], "not one of fp32, bf16, int8"),
        (["engine=tensorrt"], "not one of torch, onnxruntime, openvino"),
        (["precision=int8", "engine=torch"], "is computed by engine=onnxruntime or openvino"),
        (["precision=bf16", "engine=openvino"], "is computed by engine=torch only"),
        (["coverage=0.5", "archive=README.md", "parity.photos=0"], "is packed already: remove coverage"),
        (["precision=int8", "archive=README.md", "parity.photos=0"], "is packed already: remove precision"),
        (["limits.max_body_mb=100", "archive=README.md", "parity.photos=0"], "is packed already: remove limits"),
        (["audit.error_rate=0.2", "archive=README.md", "parity.photos=0"], "is packed already: remove audit"),
        (["ckpt_path=README.md", "precision=int8", "parity.source=docs"], "remove parity.source"),
        (["coverage=50"], "coverage=50 is out of range"),
        (["engine=openvino", "archive=README.md", "parity.photos=0"], "is packed already: remove engine"),
        (["trust=[timm]", "archive=README.md", "parity.photos=0"], "is packed already: remove trust"),
        (["name=my_endpoint"], "letters, digits and hyphens"),
        (["name=" + "a" * 64], "at most 63"),
        (["trust=[a/b]"], "as it is imported"),
        (["trust=timm"], "write it in brackets"),
        (["trust=true"], "is for an existing archive"),
        ([f"archive_sha256={'0' * 64}"], "is that of an existing archive"),
        (["archive_sha256=abc"], "is not a sha256"),
        (["limits.max_batch=0"], "limits.max_batch=0 is out of range"),
        (["limits.timeout_s=inf"], "limits.timeout_s=inf is out of range"),
        (["limits.max_queue=8"], "below limits.max_instances=32"),
        (["limits.url_hosts=[https://a.org]"], "without https://"),
        (["limits.url_hosts=['*']"], "is not a host name"),
        (["limits.url_hosts=['*.org']"], "is not a host name"),
        (["limits.url_hosts=[10.0.0.1]"], "is not a host name"),
        (["parity.photos=-1"], "at least 0"),
        (["target=serverless", "target.memory_mb=1500"], "1024, 2048, 3072, 4096, 5120 or 6144"),
        (["target=serverless", "target.max_concurrency=201"], "at most 200"),
        (["target=realtime", "target.instance_type=m5.xlarge"], "begin with ml."),
        (["target=realtime", "target.stack=triton"], "not one of ray, pytorch"),
        (["target=realtime", "target.max_usd_per_hour=0"], "above 0"),
        (["target=realtime", "target.environment.A-B=1"], "environment variable"),
        (["target=async", "target.output_uri=bucket/out"], "s3://bucket/folder"),
        ([], "action=deploy needs a checkpoint: name it with ckpt_path="),
        (["action=package", "archive=there.tar.gz"], "needs a checkpoint"),
        (["ckpt_path=nowhere.ckpt"], "is not a file"),
        (["ckpt_path=docs"], "is not a file"),
        (
            ["ckpt_path=README.md", "archive=README.md/x.tar.gz"],
            "README.md/x.tar.gz cannot be created (not a directory)",
        ),
        (["ckpt_path=README.md", "parity.source=nowhere"], "parity.source=nowhere does not exist"),
        (["ckpt_path=last"], "resumes a training"),
        (["archive=nowhere.tar.gz"], "does not exist"),
        (["archive=README.md"], "parity.photos=0"),
        (["archive=docs"], "archive=docs/model.tar.gz"),
        (["action=update"], "action=delete"),
        (["action=invoke"], "add input=photo.jpg"),
        (["action=list", "input=a.jpg"], "add action=invoke"),
        (["action=invoke", "input=a.jpg", "ckpt_path=latest"], "and action=invoke packs none: remove ckpt_path"),
        (["action=status", "limits.max_batch=4"], "and action=status packs none: remove limits"),
        (["action=delete", "parity.photos=0"], "and action=delete packs none: remove parity"),
        (["target=realtime", "action=list", "archive=a.tar.gz"], "and action=list packs none: remove archive"),
        (["action=list", "trust=[timm]"], "and action=list packs none: remove trust"),
        (["action=invoke", "input=a.jpg", "output=b"], "action=transform only"),
        (["action=transform", "input=s3://b/in"], "bincounter predict"),
        (["action=transform", "target=serverless", "input=s3://b/in"], "use target=realtime"),
        (["action=transform", "target=realtime", "input=photos"], "s3://bucket/folder"),
        (["action=transform", "target=realtime", "input=s3://bucket/in"], "output=s3://bucket/answers"),
    ],
    ids=str,
)
def test_one_line_says_what_is_wrong_and_what_to_write(overrides: list[str], said: str) -> None:
    assert said in refusal(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["action=package", "precision=bf16", "trust=[timm, my_nets.]"],
        ["target.port=0", "limits.url_hosts=[photos.example.org, '*.example.org', a-b.example.org:8443]"],
        ["target=serverless", "target.memory_mb=6144", "target.max_concurrency=200"],
        ["target=realtime", "target.instance_type=ml.g5.xlarge", "target.environment.A=1", "name=a-1"],
        ["target=realtime", "action=transform", "input=s3://bucket/in", "output=s3://bucket/out/"],
        ["target=async", "target.output_uri=s3://bucket/out"],
    ],
    ids=str,
)
def test_what_can_be_done_passes(overrides: list[str], checkpoint: str) -> None:
    check_deploy(compose([checkpoint, *overrides], config_name="deploy"))


def test_the_command_answers_in_one_line_with_exit_code_2(run: Run) -> None:
    for overrides, said in {
        (): "needs a checkpoint",
        ("nme=x",): "did you mean 'name'?",
        ("-m", "name=a,b"): "remove -m",
    }.items():
        done = run("deploy.py", *overrides, code=2)
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert said in done.stderr


_QUICK = """
import sys
sys.argv = ["deploy.py", *sys.argv[1:]]
import deploy
code = deploy.main()
sys.exit(code or ("torch" in sys.modules))
"""


@pytest.mark.parametrize("arguments", [["--help"], ["ckpt_path=nowhere.ckpt"]], ids=str)
def test_help_and_refusals_come_before_torch_is_imported(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _QUICK, *arguments],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (2 if "ckpt_path=nowhere.ckpt" in arguments else 0), done.stderr
    assert "action" in done.stdout or "is not a file" in done.stderr
