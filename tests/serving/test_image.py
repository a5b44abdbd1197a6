"""An archive under what the Ray Serve image of AWS has: Python 3.13, torch 2.10, torchvision 0.25, Pillow 12, ray 2.57.

They live in an environment of their own: ``make test-serving-image`` builds it and runs this file.
"""

import json
import sys
from pathlib import Path

import pytest
from commands import REPOSITORY
from ray_served import free_port, ray_archive, ray_served
from served_runs import checkpoint_alone

from bincounter.serving.packing.archive import PackageSettings, package
from bincounter.serving.packing.parity import archive_answers
from bincounter.serving.packing.parity_photos import parity_photos
from bincounter.serving.packing.tarball import unpack
from bincounter.training.results import find_run_of_checkpoint

IMAGE = REPOSITORY / ".venv-serving-image/bin/python"

pytestmark = pytest.mark.skipif(
    not IMAGE.with_name("serve").exists(), reason="the serving image's environment is missing: make test-serving-image"
)


def answers(folder: Path, photos: dict[str, bytes], python: str) -> list[dict[str, float]]:
    """Probabilities by count, by an archive's code under an interpreter; none for refused photos."""
    replies, _ = archive_answers(folder, photos, python=python)
    assert {reply.status for reply in replies.values()} <= {200, 422}
    return [reply.body.get("probabilities", {}) for reply in replies.values()]


@pytest.mark.parametrize("backbone", ["cnn", "resnet18"])
def test_the_images_versions_answer_as_ours_do(tmp_path: Path, backbone: str) -> None:
    target = {"cnn": {"_target_": "bincounter.model.backbones.cnn", "width": 8, "blocks": 3}}.get(
        backbone, {"_target_": "bincounter.model.backbones.resnet", "name": backbone}
    )
    checkpoint = checkpoint_alone(tmp_path / "run", backbone=target)
    folder = unpack(package(checkpoint, PackageSettings(tmp_path / "model.tar.gz")).path, tmp_path / "unpacked")
    photos = parity_photos(find_run_of_checkpoint(checkpoint), 16, source=None, data_dir=tmp_path / "data")
    ours, theirs = (answers(folder, photos, python) for python in (sys.executable, str(IMAGE)))
    assert sum(map(bool, ours)) >= 16
    for one, other in zip(ours, theirs, strict=True):
        assert other == pytest.approx(one, abs=1e-4)


def test_the_images_ray_serves_the_archive(tmp_path: Path) -> None:
    port = free_port()
    folder = ray_archive(tmp_path / "archive", port)
    with ray_served(folder, port, python=IMAGE) as served:
        answer = served.post((REPOSITORY / "docs/images/report.png").read_bytes(), Content_Type="image/png")
        wrong = served.post(b"no photo", Content_Type="image/jpeg")
    assert answer.status == 200
    assert json.loads(answer.body)["count"] in (0, 1, 2, 3)
    assert wrong.status == 422
