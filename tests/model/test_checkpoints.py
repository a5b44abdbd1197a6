import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from bincounter.errors import ConfigError, UserError
from bincounter.model.backbones import cnn
from bincounter.model.build import build_counter, check_loadable, checkpoint_metadata, load_counter, without_pretrained
from bincounter.model.counter import BinCounter
from bincounter.model.objectives import Objective
from bincounter.model.trust import own_targets
from bincounter.training.averaging import EMAWeightAveraging

COUNTS = [0, 1, 2, 3]
CONF = Path(__file__).resolve().parents[2] / "conf"
Config = dict[str, Any]
OWN, CLASSIFICATION = "bincounter.model.backbones", "bincounter.model.objectives.Classification"
SHOP_BACKBONES = """
from torch import nn

def tiny(features, norm=nn.Identity, pretrained=False):
    further = [nn.Linear(features, features)] if pretrained else []
    return nn.Sequential(nn.Conv2d(3, features, 3), norm(features), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *further)
"""


def save(path: Path, counter: BinCounter, model_cfg: Config, objective_cfg: Config) -> Path:
    description = checkpoint_metadata(
        model_cfg,
        objective_cfg,
        COUNTS,
        image_size=32,
        train_counts={0: 3, 3: 5},
        train_ids=["a.png", "b.png"],
        train_content=torch.tensor([-1, 2]),
    )
    torch.save({"state_dict": counter.state_dict(), "bincounter": description}, path)
    return path


@pytest.fixture
def saved(tmp_path: Path, model_cfg: Config, objective_cfg: Config) -> Path:
    return save(tmp_path / "best.ckpt", build_counter(model_cfg, objective_cfg, COUNTS), model_cfg, objective_cfg)


@pytest.mark.parametrize("objective", ["Classification", "NeighbourSoftened", "Corn"])
def test_a_trained_checkpoint_gives_the_same_model_again(
    objective: str, model_cfg: Config, loader: DataLoader, tmp_path: Path
) -> None:
    objective_cfg = {"_target_": f"bincounter.model.objectives.{objective}"}
    model_cfg["class_weights"] = "balanced"
    train_counts = dict.fromkeys(COUNTS, 8)
    counter = build_counter(model_cfg, objective_cfg, COUNTS, train_counts)
    counter.steps_per_epoch, counter.total_steps = 4, 8
    counter.description = checkpoint_metadata(
        model_cfg,
        objective_cfg,
        COUNTS,
        image_size=32,
        train_counts=train_counts,
        train_ids=["a.png"],
        train_content=torch.tensor([-5]),
    )
    callbacks = [EMAWeightAveraging(decay=0.8), ModelCheckpoint(tmp_path, filename="last")]
    quiet: Any = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", callbacks=callbacks, **quiet)
    trainer.fit(counter, loader, loader)  # after which the averaged weights are the model's

    again, description = load_counter(tmp_path / "last.ckpt")
    image = next(iter(loader))["image"]
    assert torch.equal(again.probabilities(image), counter.eval().probabilities(image))
    assert not again.training and again.counts == tuple(COUNTS)
    assert description["image_size"] == 32 and description["train_ids"] == ["a.png"]
    assert description["train_counts"] == train_counts and description["train_content"].tolist() == [-5]
    assert again.description == description


def test_a_checkpoints_backbone_serves_as_weights(saved: Path, model_cfg: Config, objective_cfg: Config) -> None:
    again = build_counter({**model_cfg, "weights": str(saved)}, objective_cfg, [1, 2])
    kept = load_counter(saved)[0].backbone.state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in again.backbone.state_dict().items())


@pytest.mark.parametrize("place", ["model", "backbone"])
def test_loading_does_not_look_for_the_weights_training_began_with(
    place: str, saved: Path, model_cfg: Config, objective_cfg: Config
) -> None:
    node = model_cfg if place == "model" else model_cfg["backbone"]
    node["weights"] = "gone.pth"
    counter = load_counter(saved)[0]
    again, _ = load_counter(save(saved, counter, model_cfg, objective_cfg))
    assert torch.equal(again.backbone.blocks[0][0].weight, counter.backbone.blocks[0][0].weight)  # type: ignore[index, union-attr]


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "torch.nn.Identity",
        "bincounter.files.write_text",  # ours, but no part of a model
        "bincounter.model.backbones.torch.nn.Identity",  # reached through a part of ours
        "bincounter.model.backbones.nowhere",
    ],
)
@pytest.mark.parametrize("place", ["backbone", "nested", "objective"])
def test_only_parts_of_bincounter_are_called(
    target: str, place: str, saved: Path, model_cfg: Config, objective_cfg: Config
) -> None:
    counter = load_counter(saved)[0]
    if place == "nested":
        model_cfg["backbone"]["width"] = {"_target_": target, "command": "exit 1"}
    else:
        {"backbone": model_cfg["backbone"], "objective": objective_cfg}[place]["_target_"] = target
    with pytest.raises(UserError, match=target):
        load_counter(save(saved, counter, model_cfg, objective_cfg))


def test_interpolations_of_a_checkpoint_are_not_resolved(saved: Path, model_cfg: Config, objective_cfg: Config) -> None:
    counter = load_counter(saved)[0]
    model_cfg["backbone"]["width"] = "${oc.env:HOME}"
    with pytest.raises(UserError, match="interpolation"):
        load_counter(save(saved, counter, model_cfg, objective_cfg))


def test_parts_of_ones_own_are_trusted_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_cfg: Config, objective_cfg: Config
) -> None:
    (tmp_path / "shop_backbones.py").write_text(SHOP_BACKBONES)
    monkeypatch.syspath_prepend(tmp_path)
    model_cfg["backbone"] = {"_target_": "shop_backbones.tiny", "features": 6}
    counter = build_counter(model_cfg, objective_cfg, COUNTS)
    path = save(tmp_path / "own.ckpt", counter, model_cfg, objective_cfg)
    sys.modules.pop("shop_backbones")
    with pytest.raises(UserError, match=r"shop_backbones\.tiny, which is not part of bincounter"):
        load_counter(path)
    assert "shop_backbones" not in sys.modules  # not even imported
    image = torch.randn(2, 3, 32, 32)
    again = load_counter(path, trusted=["shop_backbones"])[0]
    assert torch.equal(again.probabilities(image), counter.eval().probabilities(image))


def test_what_a_fit_accepts_is_loaded_from_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_cfg: Config, objective_cfg: Config
) -> None:
    (tmp_path / "shop_layers.py").write_text(SHOP_BACKBONES)
    (tmp_path / "shop_front.py").write_text("from shop_layers import tiny\n")
    monkeypatch.syspath_prepend(tmp_path)

    def begun(backbone: Config) -> tuple[BinCounter, list[str]]:
        model_cfg["backbone"] = backbone
        counter = build_counter(model_cfg, objective_cfg, COUNTS)
        path = save(tmp_path / "own.ckpt", counter, model_cfg, objective_cfg)
        counter.description = torch.load(path, weights_only=True)["bincounter"]
        return counter, own_targets({"model": model_cfg, "objective": objective_cfg})

    norm = {"_target_": "torch.nn.BatchNorm2d", "_partial_": True}
    counter, trusted = begun({"_target_": "shop_front.tiny", "features": 6, "norm": norm})
    check_loadable(counter, trusted)
    load_counter(tmp_path / "own.ckpt", trusted)
    said = r"tiny, which is defined in shop_layers; if .*, name the module, too: --trust shop_layers for"
    with pytest.raises(UserError, match=said):
        load_counter(tmp_path / "own.ckpt", ["shop_front"])
    for backbone, why in (
        ({"_target_": f"{OWN}.cnn", "width": 12_000, "blocks": 1}, "a number above 10,000"),
        ({"_target_": "shop_front.tiny", "features": 6, "pretrained": True}, "Error.* in loading state_dict"),
    ):
        with pytest.raises(ConfigError, match=rf"could not be rebuilt from its checkpoints \({why}.*\): change model"):
            check_loadable(*begun(backbone))


def test_what_is_no_checkpoint_is_answered_in_one_sentence(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Checkpoint .*none\.ckpt does not exist"):
        load_counter(tmp_path / "none.ckpt")
    whole = saved.read_bytes()
    broken = tmp_path / "broken.ckpt"
    for content in (b"", b"not a checkpoint", whole[: len(whole) // 2]):
        broken.write_bytes(content)
        with pytest.raises(UserError, match="truncated or not a checkpoint"):
            load_counter(broken)
    others: list[Any] = [{"state_dict": {}}, [1, 2], torch.zeros(3), cnn(4, 2).state_dict()]
    for other in others:
        torch.save(other, broken)
        with pytest.raises(UserError, match="not a checkpoint of bincounter"):
            load_counter(broken)


def test_a_checkpoint_that_does_not_fit_itself_is_refused(saved: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(saved, weights_only=True)
    for name, value in (("counts", [0, 1]), ("model", {}), ("objective", None), ("counts", "all")):
        broken = {**checkpoint, "bincounter": {**checkpoint["bincounter"], name: value}}
        torch.save(broken, tmp_path / "broken.ckpt")
        with pytest.raises(UserError, match=r"broken\.ckpt"):
            load_counter(tmp_path / "broken.ckpt")
    torch.save({**checkpoint, "bincounter": {**checkpoint["bincounter"], "version": 99}}, tmp_path / "broken.ckpt")
    with pytest.raises(UserError, match="version 99"):
        load_counter(tmp_path / "broken.ckpt")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(number: float, saved: Path, model_cfg: Config) -> None:
    checkpoint = torch.load(saved, weights_only=True)
    checkpoint["state_dict"]["head.0.weight"][0, 0] = number
    torch.save(checkpoint, saved)
    with pytest.raises(UserError, match=r"best\.ckpt .*1 of \d+ tensors, such as head\.0\.weight.*earlier checkpoint"):
        load_counter(saved)
    checkpoint["state_dict"]["backbone.blocks.0.0.weight"][0] = number
    torch.save(checkpoint, saved)
    with pytest.raises(ConfigError, match="holds NaN or infinite numbers"):
        build_counter({**model_cfg, "weights": str(saved)}, {"_target_": CLASSIFICATION}, COUNTS)


@pytest.mark.parametrize("size", ["224", 0, 8, 10**9, True, 64.5, None])
def test_a_wrong_image_size_is_blamed_on_the_checkpoint(size: object, saved: Path) -> None:
    checkpoint = torch.load(saved, weights_only=True)
    checkpoint["bincounter"]["image_size"] = size
    torch.save(checkpoint, saved)
    with pytest.raises(UserError, match=r"best\.ckpt .* image_size is "):
        load_counter(saved)


@pytest.mark.parametrize(
    ("backbone", "answer"),
    [
        ({"width": 10**6}, "does not hold what its model needs"),  # before it takes memory
        ({"blocks": 10**6}, "does not hold what its model needs"),
        ({"_target_": f"{OWN}.load_weights", "backbone": None, "weights": "/etc/passwd"}, "not part of bincounter"),
        ({"_target_": f"{OWN}._torchvision_state", "name": "DEFAULT"}, "not part of bincounter"),
        ({"_target_": f"{OWN}.resnet", "_args_": ["resnet18", "IMAGENET1K_V1"]}, "positional arguments"),
        ({"_target_": "shop.tiny", "url": "https://host/x.pth"}, "names a file or an address, 'https://host/x.pth'"),
        ({"_target_": "shop.tiny", "options": {"path": "/etc/passwd"}}, "names a file or an address, '/etc/passwd'"),
        ({"_target_": "shop.tiny", "model_name": "hf_hub:someone/net"}, "names a file or an address"),
        ({"_target_": "shop.tiny", "names": ["x.safetensors"]}, "names a file or an address"),
    ],
)
def test_a_checkpoint_reads_no_other_file_and_no_address(
    backbone: Config,
    answer: str,
    saved: Path,
    model_cfg: Config,
    objective_cfg: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "shop.py").write_text("def tiny(**options):\n    raise SystemExit(options)\n")
    monkeypatch.syspath_prepend(tmp_path)
    counter = load_counter(saved)[0]
    model_cfg["backbone"] = {**model_cfg["backbone"], **backbone} if len(backbone) == 1 else backbone
    with pytest.raises(UserError, match=answer):
        load_counter(save(saved, counter, model_cfg, objective_cfg), trusted=["shop"])


def test_nested_initial_weights_are_not_loaded(model_cfg: Config) -> None:
    nested = {"_target_": "shop.tiny", "inner": {"_target_": "timm.create_model", "pretrained": True, "weights": "X"}}
    assert without_pretrained({**model_cfg, "backbone": nested})["backbone"]["inner"] == {
        "_target_": "timm.create_model",
        "pretrained": False,
        "weights": None,
    }


@pytest.mark.parametrize(
    ("model", "optimizer", "objective"),
    [
        ("resnet50", "adamw", "classification"),
        ("resnet34", "sgd", "corn"),
        ("resnet18", "adamw", "neighbour"),
        ("cnn", "sgd", "classification"),
        ("timm", "sam", "classification"),
    ],
)
def test_every_option_of_the_groups_builds_and_steps(model: str, optimizer: str, objective: str) -> None:
    choices = [
        f"+model={model}",
        f"+objective={objective}",
        f"model/optimizer={optimizer}",
        "model.weights=null",
        "+data.image_size=64",
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(overrides=choices)
    counter = build_counter(cfg.model, cfg.objective, [1, 2, 3])
    counter.total_steps, counter.steps_per_epoch = 2, 2
    configured: Any = counter.configure_optimizers()

    def closure() -> torch.Tensor:
        loss = counter.training_step({"image": torch.randn(2, 3, 64, 64), "count": torch.tensor([1, 3])}, 0)
        loss.backward()
        return loss

    assert configured["optimizer"].step(closure).isfinite() and isinstance(counter.objective, Objective)


@pytest.mark.parametrize(
    ("part", "node", "answer"),
    [
        ("backbone", {"width": 8}, r"model\.backbone needs a _target_"),
        ("backbone", {"_target_": "bincounter.nowhere"}, r"model\.backbone: bincounter\.nowhere cannot be built"),
        ("backbone", {"_target_": "bincounter.model.backbones.cnn", "witdh": 8}, "witdh"),
        ("backbone", {"_target_": "bincounter.model.backbones.resnet", "name": "resnet43"}, "name=resnet34?"),
        ("backbone", {"_target_": "builtins.dict"}, "returns a dict, not a Module"),
        ("optimizer", {"_target_": "torch.optim.Adamm"}, r"model\.optimizer: torch\.optim\.Adamm cannot be built"),
    ],
)
def test_parts_that_cannot_be_built_are_named(
    part: str, node: Config, answer: str, model_cfg: Config, objective_cfg: Config
) -> None:
    with pytest.raises(ConfigError, match=answer):
        build_counter({**model_cfg, part: node}, objective_cfg, COUNTS)


def test_weights_for_a_backbone_that_takes_none_are_refused(model_cfg: Config, objective_cfg: Config) -> None:
    model_cfg["backbone"] = {"_target_": "torch.nn.Flatten"}
    with pytest.raises(ConfigError, match=r"takes no weights; set model\.weights=null"):
        build_counter({**model_cfg, "weights": "x.pth"}, objective_cfg, COUNTS)
