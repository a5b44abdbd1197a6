"""Engines of an archive: ONNX Runtime and OpenVINO answer as training does, and int8 keeps the score."""

import io
import json
import logging
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from served_runs import checkpoint_alone

from bincounter import errors
from bincounter.cli.deploy_command import pack_and_check
from bincounter.cli.hydra_app import compose
from bincounter.data.preprocessing import decode
from bincounter.errors import BinCounterError, UserError
from bincounter.model.build import load_counter
from bincounter.serving.application.served_model import ServedModel
from bincounter.serving.packing import export
from bincounter.serving.packing.archive import PackageSettings, package
from bincounter.serving.packing.parity import check_score
from bincounter.serving.packing.parity_photos import scored_photos
from bincounter.serving.packing.tarball import read_member, unpack
from bincounter.training.results import find_run_of_checkpoint

pytestmark = pytest.mark.usefixtures("warm_archives")


def packed(checkpoint: Path, folder: Path, *overrides: str) -> Path:
    """Pack and check a checkpoint, as ``action=package`` does."""
    paths = [f"paths.{name}_dir={folder / name}" for name in ("data", "cache", "log")]
    given = [f"ckpt_path={checkpoint}", f"archive={folder / 'model.tar.gz'}", "parity.photos=4", *paths, *overrides]
    return pack_and_check(compose(given, config_name="deploy")).path


def no_distribution(name: str) -> metadata.Distribution:
    raise metadata.PackageNotFoundError(name)


@pytest.mark.parametrize(("given", "engine"), [([], "onnxruntime"), (["engine=openvino"], "openvino")], ids=str)
def test_an_archive_is_computed_by_its_engine_as_by_training(
    given: list[str], engine: str, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    archive = packed(checkpoint, tmp_path, *given)
    assert "Parity: 10 photos" in caplog.text
    assert json.loads(read_member(archive, "model.json"))["engine"] == engine
    assert read_member(archive, "code/requirements.txt").decode() == f"{engine}=={metadata.version(engine)}\n"
    model = ServedModel.load(unpack(archive, tmp_path / "unpacked"))
    photos = torch.stack([decode(data, 32) for data, _ in scored_photos(find_run_of_checkpoint(checkpoint).run)[:3]])
    served, trained = model.probabilities(photos), model.network()(photos)
    assert torch.allclose(served, trained, atol=1e-5)
    assert not torch.equal(served, trained)  # another program's sums


def test_a_coverage_marks_the_answers_that_need_a_person(checkpoint: Path, tmp_path: Path) -> None:
    archive = packed(checkpoint, tmp_path, "coverage=0.5", "engine=torch")
    run = find_run_of_checkpoint(checkpoint).run
    assert run is not None
    half = run.metrics["val"]["coverage"][9]
    model = ServedModel.load(unpack(archive, tmp_path / "unpacked"))
    assert (half["coverage"], model.least) == (0.5, pytest.approx(half["confidence"]))
    card = read_member(archive, "README.md").decode()
    assert f"needs_person (yes below a probability of {model.least:.3f})" in card
    with pytest.raises(UserError, match="has none: leave it out, or train"):
        packed(checkpoint_alone(tmp_path), tmp_path, "coverage=0.5", "engine=torch")


def test_int8_is_calibrated_and_scored_on_the_runs_photos(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    archive = packed(checkpoint, tmp_path, "precision=int8")
    assert "Calibrating int8 on 128 training photos.\n" in caplog.text
    assert "Score of int8 on 16 validation photos: accuracy" in caplog.text
    sizes = [len(read_member(archive, name)) for name in ("model.onnx", "weights.pt")]
    assert sizes[0] < sizes[1]


def test_int8_leaves_the_head_and_the_distribution_in_fp32(tmp_path: Path) -> None:
    corn = {"_target_": "bincounter.model.objectives.Corn"}  # adds logarithms
    counter, description = load_counter(checkpoint_alone(tmp_path, objective=corn))
    photos = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
    content = export.quantized(export.to_onnx(export.network_of(counter, description), description), photos)
    nodes = onnx.load_from_string(content).graph.node
    quantised = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    assert {node.op_type for node in nodes if quantised & set(node.input)} == {"Conv", "MaxPool", "ReduceMean"}


def test_int8_that_loses_the_score_is_stopped(checkpoint: Path, tmp_path: Path) -> None:
    run = find_run_of_checkpoint(checkpoint).run
    black = io.BytesIO()
    Image.new("RGB", (8, 8)).save(black, "PNG")
    settings = PackageSettings(tmp_path / "model.tar.gz", "int8", engine="onnxruntime", calibration=[black.getvalue()])
    made = package(checkpoint, settings)
    with pytest.raises(UserError, match=r"accuracy .* in fp32 .* 0\.5 points and 0\.05 are allowed: nothing is served"):
        check_score(checkpoint, made.path, scored_photos(run))


@pytest.mark.parametrize(
    ("overrides", "missing", "said"),
    [
        (["precision=int8"], "", "is calibrated on training photos, and none"),
        (["engine=openvino"], "openvino", "engine=openvino needs openvino: pip install 'bincounter[openvino]'"),
        (["precision=int8"], "onnxruntime", "precision=int8 needs onnxruntime: pip install 'bincounter[onnx]'"),
        (["engine=onnxruntime"], "its distribution", "needs the package onnxruntime, which archives require"),
        (
            ["target=realtime", "target.instance_type=ml.g5.xlarge", "engine=onnxruntime"],
            "",
            "computes on CPUs, and target.instance_type=ml.g5.xlarge has GPUs: remove engine=onnxruntime",
        ),
    ],
    ids=str,
)
def test_engines_that_cannot_serve_are_refused_in_a_sentence(
    overrides: list[str], missing: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = errors.find_spec
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == missing else find(name))
    if missing == "its distribution":  # but not its module, as with onnxruntime-gpu
        monkeypatch.setattr(metadata.Distribution, "from_name", no_distribution)
    with pytest.raises(BinCounterError, match=r"^[^\n]*$") as refused:
        packed(checkpoint_alone(tmp_path), tmp_path, *overrides)
    assert said in str(refused.value)


@pytest.mark.parametrize("reason", ["not installed", "onnxruntime-gpu", "GPUs", "bf16", "backbone"])
def test_torch_serves_where_no_other_engine_can(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    overrides = {"GPUs": ["target=realtime", "target.instance_type=ml.g5.xlarge"], "bf16": ["precision=bf16"]}
    said = ""
    if reason == "not installed":
        monkeypatch.setattr("bincounter.cli.deploy_packing.find_spec", lambda name: None)
        said = "engine=torch; ONNX Runtime is faster on CPUs: pip install 'bincounter[onnx]'"
    elif reason == "onnxruntime-gpu":
        monkeypatch.setattr(metadata.Distribution, "from_name", no_distribution)
        said = "engine=torch; ONNX Runtime is faster on CPUs: pip install 'bincounter[onnx]'"
    elif reason == "backbone":
        monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: 1 / 0)
        said = "engine=torch: The backbone PlainCNN cannot be exported to ONNX (division by zero)"
    archive = packed(checkpoint_alone(tmp_path), tmp_path, "parity.photos=0", *overrides.get(reason, []))
    assert json.loads(read_member(archive, "model.json"))["engine"] == "torch"
    assert said in caplog.text
