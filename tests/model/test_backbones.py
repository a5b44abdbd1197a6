from pathlib import Path

import pytest
import torch
import torchvision
from commands import REPOSITORY
from torch import Tensor, nn

from bincounter.errors import ConfigError, ResourceError
from bincounter.model.backbones import cam_layer, cnn, feature_size, resnet


@pytest.mark.parametrize(("name", "features"), [("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)])
def test_resnets_have_torchvisions_parameters_and_features(name: str, features: int, tmp_path: Path) -> None:
    reference = torchvision.models.get_model(name, weights=None).eval()
    state = reference.state_dict()
    if name != "resnet50":  # IMAGENET1K_V1 is from before batch normalisation counted batches
        state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "weights.pth")
    backbone = resnet(name, weights=str(tmp_path / "weights.pth")).eval()
    reference.fc = nn.Identity()
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(image), reference(image))
        assert backbone.maps(image).shape == (2, features, 2, 2)
    assert feature_size(backbone) == backbone.feature_size == features


@pytest.mark.parametrize("backbone", [resnet("resnet18"), cnn(width=4, blocks=3)], ids=["resnet", "cnn"])
def test_stages_hold_every_parameter_once_and_end_in_the_cam_layer(backbone: nn.Module) -> None:
    stages: list[list[nn.Module]] = backbone.stages  # type: ignore[assignment]
    staged = [parameter for stage in stages for module in stage for parameter in module.parameters()]
    assert [id(parameter) for parameter in staged] == [id(parameter) for parameter in backbone.parameters()]
    assert cam_layer(backbone) is stages[-1][-1]


def test_the_plain_cnn_halves_and_doubles_per_block() -> None:
    backbone = cnn(width=4, blocks=3)
    assert backbone.maps(torch.zeros(2, 3, 32, 32)).shape == (2, 16, 4, 4)
    assert backbone(torch.zeros(2, 3, 32, 32)).shape == (2, feature_size(backbone)) == (2, 16)


class Foreign(nn.Module):
    """A backbone that says nothing of itself."""

    def __init__(self, pooled: bool = True) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 7, 3)
        self.pooled = pooled

    def forward(self, image: Tensor) -> Tensor:
        features = self.last(self.stem(image))
        return features.mean((2, 3)) if self.pooled else features


def test_what_a_foreign_backbone_does_not_say_is_inferred() -> None:
    backbone = Foreign()
    assert feature_size(backbone) == 7
    assert cam_layer(backbone) is backbone.last
    assert backbone.training


def test_a_backbone_without_features_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"features \[B, D\], but gave \[1, 7, 220, 220\]"):
        feature_size(Foreign(pooled=False))
    with pytest.raises(ConfigError, match="feature_size and failed"):
        feature_size(nn.Linear(3, 2))
    with pytest.raises(ConfigError, match="cam_layer"):
        cam_layer(nn.Linear(3, 2))


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"model\.backbone\.name=resnet43 .*did you mean .*resnet34\?"):
        resnet("resnet43")
    with pytest.raises(ConfigError, match=r"IMAGENET1K_V1, DEFAULT for resnet18.*did you mean .*IMAGENET1K_V1\?"):
        resnet("resnet18", weights="IMAGENET1K_V2")
    with pytest.raises(ConfigError, match=r"did you mean .*IMAGENET1K_V2\?"):
        resnet("resnet50", weights="imagenet1k_v2")
    with pytest.raises(ConfigError, match="no weights by name"):
        cnn(weights="IMAGENET1K_V1")


def test_without_a_network_the_answer_says_which_override_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # the discard port: refused at once
    with pytest.raises(ResourceError) as answer:
        resnet("resnet50", weights="IMAGENET1K_V2")
    for part in ("model.weights=null", "model.weights=FILE", "download.pytorch.org/models/resnet50", ".pth"):
        assert part in str(answer.value)


def test_weights_of_a_run_are_those_of_its_best_checkpoint() -> None:
    run = REPOSITORY / "tests/assets/classification"
    stored = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    loaded = cnn(width=8, blocks=3, weights=str(run)).state_dict()
    assert loaded and all(torch.equal(tensor, stored[f"backbone.{name}"]) for name, tensor in loaded.items())


def test_weights_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    with pytest.raises(ConfigError, match="is not a file"):
        resnet("resnet18", weights=str(file))
    file.write_bytes(b"not weights")
    with pytest.raises(ConfigError, match="not a weights file"):
        resnet("resnet18", weights=str(file))
    torch.save({"epoch": 3}, file)
    with pytest.raises(ConfigError, match="no state dict"):
        resnet("resnet18", weights=str(file))
    torch.save(cnn(width=4, blocks=2).state_dict(), file)
    with pytest.raises(ConfigError, match=r"missing \(such as .* unknown"):
        resnet("resnet18", weights=str(file))
    with pytest.raises(ConfigError, match="of another shape"):
        cnn(width=8, blocks=2, weights=str(file))
