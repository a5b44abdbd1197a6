"""``push`` and ``hf://owner/name``, by the hub's real client against a server on this machine."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
import yaml
from commands import REPOSITORY, Run
from hub_server import TOKEN, Hub, served

import bincounter
from bincounter.cli.push_command import push
from bincounter.errors import ConfigError, UserError
from bincounter.files import checkpoint_file
from bincounter.hub import HubAddress, parse_hub
from bincounter.model.build import load_counter

ASSET = REPOSITORY / "tests/assets/classification"
FOLDERS = REPOSITORY / "tests/assets/folders"
PHOTOS = FOLDERS / "test/1"
SENT = {"README.md", "best.ckpt", "config.yaml", "metrics.json"}
AtHub = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    hub = Hub()
    with served(hub):
        yield hub


@pytest.fixture
def at_hub(run: Run, hub: Hub, tmp_path: Path) -> AtHub:
    """Run ``python ARGUMENTS`` with the hub's client led to the local server; ``HF_TOKEN`` may be another."""

    def run_(*arguments: str, **options: Any) -> CompletedProcess[str]:
        settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
        return run(*arguments, **{**settings, "HF_TOKEN": TOKEN, **options})

    return run_


@pytest.fixture
def owned(tmp_path: Path) -> Path:
    """A run of the user's own, with a page of photos and a secret in its configuration."""
    folder = tmp_path / "run"
    shutil.copytree(ASSET, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config |= {"paths": {"data_dir": "/home/ada/data"}, "launcher": {"role": "arn:aws:iam::123456789012:role/train"}}
    config["data"]["source"] = "s3://bins-123456789012/photos"
    config["data"]["layout"] |= {"api_key": "hunter2", "ids": ["/srv/bins/ids.json", "s3://bins-123456789012/ids"]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "report.html").write_text("<img src='data:image/jpeg;base64,'>")
    return folder


def pushed(at_hub: AtHub, hub: Hub, run_folder: Path, name: str) -> dict[str, bytes]:
    at_hub("-m", "bincounter", "push", str(run_folder), "--to", f"hf://ada/{name}", "--licence", "mit")
    return hub.files[f"ada/{name}"]


def test_push_sends_model_settings_scores_and_card_but_no_photos(
    at_hub: AtHub, hub: Hub, owned: Path, tmp_path: Path
) -> None:
    done = at_hub("-m", "bincounter", "push", str(owned), "--to", "hf://ada/bins", "--licence", "cc-by-nc-sa-3.0")
    files = hub.files["ada/bins"]
    assert set(files) == SENT and hub.private["ada/bins"]
    left_out = re.search(r"Left out.*", done.stdout)
    assert left_out and "report.html" in left_out[0] and "predictions.csv" in left_out[0]
    assert "Sending to hf://ada/bins (private): README.md, best.ckpt, config.yaml, metrics.json" in done.stdout
    everything = b"".join(files.values())
    for hidden in (b"hunter2", b"/home/ada", b"123456789012", b"/srv/bins"):
        assert hidden not in everything
    (tmp_path / "best.ckpt").write_bytes(files["best.ckpt"])
    model, description = load_counter(tmp_path / "best.ckpt")
    before, described = load_counter(ASSET / "checkpoints/best.ckpt")
    assert all(torch.equal(tensor, before.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(description["train_content"], described["train_content"])
    assert not any(description["train_ids"])


def test_the_card_has_the_header_that_the_hub_reads(at_hub: AtHub, hub: Hub, owned: Path) -> None:
    card = pushed(at_hub, hub, owned, "carded")["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "mit" and "bincounter" in front["tags"]
    assert {each["type"] for each in front["model-index"][0]["results"][0]["metrics"]} == {"accuracy", "rmse"}
    assert "bincounter predict --ckpt-path hf://ada/carded" in card


def test_push_calls_nothing_that_a_run_folder_names(at_hub: AtHub, owned: Path, tmp_path: Path) -> None:
    call = {"_target_": "tempfile.mkdtemp", "prefix": "called"}
    config = yaml.safe_load((owned / "config.yaml").read_text())
    config["model"]["backbone"] = call
    (owned / "config.yaml").write_text(yaml.safe_dump(config))
    checkpoint = torch.load(owned / "checkpoints/best.ckpt", weights_only=True)
    checkpoint["bincounter"]["model"]["backbone"] = call
    torch.save(checkpoint, owned / "checkpoints/best.ckpt")
    command = ("-m", "bincounter", "push", str(owned), "--to", "hf://ada/called", "--licence", "MIT")
    done = at_hub(*command, code=2, TMPDIR=str(tmp_path))
    assert not list(tmp_path.glob("called*"))
    assert '"license" must be one of' in done.stderr and "write --licence as" in done.stderr


def test_hub_model_is_used_by_all_commands_and_offline(at_hub: AtHub, hub: Hub, owned: Path, tmp_path: Path) -> None:
    pushed(at_hub, hub, owned, "used")
    here = at_hub("-m", "bincounter", "predict", "--ckpt-path", str(owned), str(PHOTOS)).stdout
    predict = ("-m", "bincounter", "predict", "--ckpt-path", "hf://ada/used@main", str(PHOTOS))
    assert at_hub(*predict).stdout == here
    assert at_hub(*predict, HF_HUB_OFFLINE="1").stdout == here
    assert at_hub(*predict, HF_ENDPOINT="http://127.0.0.1:9").stdout == here
    program = f"import bincounter; print(*[a.count for a in bincounter.load('hf://ada/used').predict({str(PHOTOS)!r})])"
    counts = [str(answer.count) for answer in bincounter.load(owned).predict(str(PHOTOS))]
    assert at_hub("-c", program).stdout.split() == counts
    paths = [f"paths.{name}_dir={tmp_path / name}" for name in ("log", "cache", "data")]
    done = at_hub("deploy.py", "action=package", "ckpt_path=hf://ada/used", "parity.photos=1", *paths)
    assert Path(done.stdout.strip()) == tmp_path / "log/hub/ada/used/endpoint/model.tar.gz"
    done = at_hub("-m", "bincounter", "export", "hf://ada/used", "--to", "torchscript", cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "logs/hub/ada/used/export/model.pt"
    fit = ("train.py", "data=folders", f"data.source={FOLDERS}", "model=resnet18", "trainer=cpu", *paths)
    done = at_hub(*fit, "model.weights=hf://ada/used@main", code=2)
    assert "model.weights=hf://ada/used@main does not fit this backbone" in done.stderr


@pytest.mark.parametrize(
    ("name", "env", "answer"),
    [
        ("hf://ada/nothing", {}, "hf://ada/nothing does not exist or is private: correct the name, or log in"),
        ("hf://ada/open@v9", {}, "hf://ada/open@v9: the repository has no revision v9"),
        ("hf://ada/gated", {}, "hf://ada/gated is gated: accept its terms"),
        ("hf://ada/empty", {}, r"hf://ada/empty has no best\.ckpt"),
        ("hf://ada/open", {"HF_TOKEN": "hf_wrong"}, "hf://ada/open is refused to this login"),
        ("hf://ada/open", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached and is not in the cache"),
        ("hf://ada/open", {"HF_HUB_OFFLINE": "1"}, "cannot be reached and is not in the cache"),
        ("hf://ada", {}, "hf://ada is not an address of the hub: write hf://owner/name"),
    ],
)
def test_what_the_hub_refuses_is_told_in_one_sentence(
    name: str, env: dict[str, str], answer: str, at_hub: AtHub, hub: Hub
) -> None:
    for repository in ("ada/open", "ada/gated", "ada/empty"):
        hub.files[repository], hub.private[repository] = {"README.md": b"nothing"}, False
    hub.gated = {"ada/gated"}
    done = at_hub(
        "-m", "bincounter", "predict", "--ckpt-path", name, str(PHOTOS), code=1 if "reached" in answer else 2, **env
    )
    assert re.search(rf"^Error: {answer}", done.stderr, re.MULTILINE) or re.search(answer, done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("changed", "answer"),
    [
        ({"data.source": "s3://aft-vbi-pds/bin-images"}, "Amazon Bin Image Dataset .CC BY-NC-SA"),
        ({}, r"the licence of its photos \(photos\) is not known"),
        ({"data.source": None, "model.weights": "IMAGENET1K_V1"}, "ImageNet, whose terms allow research only"),
        ({"data.source": None, "model.weights": "/runs/a/best.ckpt"}, r"weights it started from \(best\.ckpt\) have"),
    ],
)
def test_a_licence_has_to_be_confirmed_by_name(owned: Path, changed: dict[str, Any], answer: str) -> None:
    config = yaml.safe_load((owned / "config.yaml").read_text())
    for key, value in changed.items():
        group, _, name = key.partition(".")
        config[group][name] = value
    (owned / "config.yaml").write_text(yaml.safe_dump(config))
    for licence in (None, ""):
        with pytest.raises(UserError, match=rf"{answer}.*--licence"):
            push(owned, "hf://ada/bins", licence)


def test_push_refuses_photos_and_addresses_with_a_revision(owned: Path) -> None:
    with pytest.raises(UserError, match=r"report\.html is not uploaded"):
        push(owned / "report.html", "hf://ada/bins")
    with pytest.raises(UserError, match="names a revision"):
        push(owned, "hf://ada/bins@main")
    with pytest.raises(ConfigError, match="is not an address of the hub"):
        push(owned, "ada/bins")


def test_addresses_are_read_from_texts_and_from_paths() -> None:
    for name in ("hf://ada/bins@v1.0", Path("hf://ada/bins@v1.0")):
        assert parse_hub(name) == HubAddress("ada/bins", "v1.0")
    assert checkpoint_file(os.fspath(ASSET)) == ASSET / "checkpoints/best.ckpt"
