"""Exports: other runtimes compute what the checkpoint does, or the export is stopped in a sentence."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import openvino
import pytest
import torch
from bins import COUNTS
from served_runs import checkpoint_alone
from torch import Tensor

from bincounter import errors
from bincounter.cli.main import main
from bincounter.data.preprocessing import Normalize
from bincounter.errors import UserError
from bincounter.model.build import load_counter
from bincounter.serving.application.engines import open_model
from bincounter.serving.packing import export
from bincounter.serving.packing.export import network_of, to_onnx, write_export
from bincounter.serving.packing.parity import check_export
from bincounter.serving.packing.parity_photos import parity_photos
from bincounter.training.results import find_run_of_checkpoint

METADATA = {"counts": list(COUNTS), "image_size": 32}
_OWN = """
import torch

class Branching(torch.nn.Module):
    feature_size = 3

    def forward(self, image):
        return image.mean((2, 3)) if image.sum() > 0 else image.amax((2, 3))

class FixedBatch(torch.nn.Module):
    feature_size = 3

    def forward(self, image):
        return image.mean((2, 3)) + image.new_zeros(len(image), 3)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_alone(tmp_path_factory.mktemp("alone"))


def metadata(path: Path) -> dict[str, object]:
    """Read what the file says of its counts, as a user of the format would."""
    if path.suffix == ".onnx":
        return json.loads({prop.key: prop.value for prop in onnx.load(path).metadata_props}["bincounter"])
    if path.suffix == ".xml":
        return json.loads(openvino.Core().read_model(path).get_rt_info("bincounter").astype(str))
    files = {"bincounter": ""}
    torch.jit.load(str(path), _extra_files=files)
    return json.loads(files["bincounter"])


@pytest.mark.parametrize(("kind", "suffix"), [("onnx", ".onnx"), ("openvino", ".xml"), ("torchscript", ".pt")])
def test_an_export_is_compared_with_the_checkpoint(
    kind: str, suffix: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", str(checkpoint), "--to", kind]
    assert main(arguments) == 0
    path = checkpoint.parent / "export" / f"model{suffix}"
    parity, name = capsys.readouterr().out.splitlines()
    assert parity.startswith("Parity: 70 photos")
    assert name == str(path)
    assert metadata(path) == METADATA
    assert not [file for file in path.parent.iterdir() if file.name.startswith(".")]
    assert main(arguments) == 2
    assert "exists already: remove it, or name another file with --output" in capsys.readouterr().err


@pytest.mark.parametrize("flips", [False, True], ids=["once", "with flips"])
def test_onnx_is_the_same_bytes_for_any_batch_and_names_no_folder(flips: bool, tmp_path: Path) -> None:
    counter, description = load_counter(checkpoint_alone(tmp_path, average_flips=flips))
    network = network_of(counter, description)
    content = to_onnx(network, description)
    assert content == to_onnx(network, description)
    assert str(Path(export.__file__).parents[3]).encode() not in content
    assert "BatchNormalization" not in {node.op_type for node in onnx.load_from_string(content).graph.node}
    (tmp_path / "model.onnx").write_bytes(content)
    forwards: list[Callable[[Tensor], Tensor]] = [network]
    forwards += [open_model(engine, tmp_path / "model.onnx") for engine in ("onnxruntime", "openvino")]
    forwards.append(write_export(network, description, "torchscript", tmp_path / "model.pt"))
    for batch in (1, 5):
        photos = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8)
        with torch.inference_mode():
            expected = counter.probabilities(Normalize()(photos))
            for forward in forwards:
                assert torch.allclose(forward(photos), expected, atol=1e-5)


def test_an_export_that_answers_otherwise_is_stopped(checkpoint: Path, tmp_path: Path) -> None:
    counter, description = load_counter(checkpoint)
    network = network_of(counter, description)
    photos = parity_photos(find_run_of_checkpoint(checkpoint), 2, source=None, data_dir=tmp_path)
    with pytest.raises(UserError, match=r"the probability of count \d is 0\.\d+ in training and 0\.\d+"):
        check_export(counter, lambda pixels: network(pixels).flip(1), photos, 32)


@pytest.mark.parametrize(
    ("backbone", "kind", "said", "advice"),
    [
        (
            "Branching",
            "onnx",
            "The backbone Branching cannot be exported to ONNX",
            "use engine=torch, or bincounter export --to torchscript",
        ),
        ("FixedBatch", "onnx", "fixes the number of photos", "write tensor.shape[0] there, or use engine=torch"),
        ("FixedBatch", "torchscript", "The exported model fails in its runtime", "write tensor.shape[0] there"),
    ],
)
def test_a_backbone_that_cannot_be_exported_is_named(
    backbone: str,
    kind: str,
    said: str,
    advice: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "exported_nets.py").write_text(_OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    checkpoint = checkpoint_alone(tmp_path, backbone={"_target_": f"exported_nets.{backbone}"})
    assert main(["export", str(checkpoint), "--to", kind, "--trust", "exported_nets"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert line.endswith(advice)


@pytest.mark.parametrize(
    ("arguments", "missing", "said"),
    [
        (["--to", "onnx"], ["onnxscript"], "needs onnxscript: pip install 'bincounter[onnx]'"),
        (["--to", "openvino"], ["openvino"], "needs openvino: pip install 'bincounter[openvino]'"),
        (["--to", "onnx", "--output", "model.pt"], [], "is not a name for --to onnx: let it end in .onnx"),
    ],
    ids=str,
)
def test_a_missing_extra_and_a_wrong_suffix_are_named(
    arguments: Sequence[str],
    missing: Sequence[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    find = errors.find_spec
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name in missing else find(name))
    assert main(["export", str(checkpoint_alone(tmp_path)), *arguments]) == 2
    assert said in capsys.readouterr().err
