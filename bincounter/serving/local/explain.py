"""/explanation: Grad-CAM of one photo at a time.

``python -m bincounter.serving.local.explain FOLDER`` speaks as
:mod:`bincounter.serving.packing.archive_probe` does. Its
answers are ``{"count": 3, "width": 56, "height": 56, "heat": base64}``: the count that is explained, and how much each
place of the upright photo spoke for it, 0-255, row by row.
"""

import asyncio
import base64
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bincounter.data.preprocessing import Normalize, PhotoError, decode
from bincounter.errors import BinCounterError, ConfigError
from bincounter.model.backbones import cam_layer
from bincounter.report.report_photos import attention
from bincounter.serving.application.answers import Problem
from bincounter.serving.application.served_model import ServedModel
from bincounter.serving.application.service import Reply
from bincounter.serving.local.server import Worker
from bincounter.serving.packing.archive_probe import answer, take_stdin

log = logging.getLogger(__name__)

_SIDE = 56  # Grad-CAM knows far fewer places


class Explained(nn.Module):
    """A served model as Grad-CAM wants it.

    Args:
        served: from an archive.
    """

    def __init__(self, served: ServedModel) -> None:
        super().__init__()
        self.backbone: Any = served.backbone
        self.head, self.objective = served.head, served.objective

    @property
    def cam_layer(self) -> nn.Module:
        """The layer whose maps are explained."""
        return cam_layer(self.backbone)

    def probabilities(self, image: Tensor) -> Tensor:
        """``float[B, 3, S, S]``, normalised -> distributions over the support, ``float32[B, K]``."""
        features = self.backbone.maps(image) if self.objective.spatial else self.backbone(image)
        return self.objective.probabilities(self.head(features).float())


class Explanations:
    """Answers photos with where the model looked.

    Args:
        served: the model.
    """

    def __init__(self, served: ServedModel) -> None:
        self._model = Explained(served).eval()
        self._normalize = Normalize()
        self._counts, self._size = served.counts, served.image_size

    async def start(self) -> None:
        """Nothing is left to do."""

    @property
    def ready(self) -> bool:
        """Always."""
        return True

    def statistics(self) -> dict[str, float]:
        """Nothing is counted."""
        return {}

    async def handle(self, body: bytes, content_type: str | None, accept: str | None) -> Reply:
        """Explain the photo that ``body`` is; never raises."""
        try:
            answer = await asyncio.to_thread(self._explain, body)
        except PhotoError as error:
            return Reply.refusing(Problem(422, f"The photo cannot be read ({error}); send a whole JPEG, PNG or WebP."))
        except ConfigError as error:
            return Reply.refusing(Problem(501, str(error)))
        except Exception as error:  # unanswered, it would be waited for
            log.exception("An explanation failed.")
            return Reply.refusing(
                Problem(500, f"The explanation failed ({type(error).__name__}); see the server's log.")
            )
        return Reply(200, "application/json", json.dumps(answer).encode())

    def _explain(self, body: bytes) -> dict[str, object]:
        image = self._normalize(decode(body, self._size)[None])
        with torch.inference_mode():
            likely = int(self._model.probabilities(image).argmax())
        heat = F.adaptive_avg_pool2d(torch.from_numpy(attention(self._model, image)), min(_SIDE, self._size))[0]
        grid = (255 * heat).round().to(torch.uint8)
        height, width = grid.shape
        encoded = base64.b64encode(grid.numpy().tobytes()).decode("ascii")
        return {"count": self._counts[likely], "width": width, "height": height, "heat": encoded}


def main() -> None:
    """Load the model and answer."""
    connection = take_stdin()
    folder = Path(sys.argv[1])
    os.nice(10)
    sys.path.append(str(folder / "code"))  # a foreign backbone's files; bincounter itself is the installed one
    served = ServedModel.load(folder)
    torch.set_num_threads(1)
    answer(connection, Explanations(served), {"name": served.name})


if __name__ == "__main__":
    main()


_SECONDS = 60.0  # an explanation may take


class Explainer:
    """Says where a model looked, one photo at a time.

    It runs beside the archive's process, with one thread and a low priority, so that requests hardly notice it.

    Args:
        folder: an unpacked archive.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._worker: Worker | None = None
        self._starting = asyncio.Lock()

    async def ask(self, body: bytes, content_type: str | None, accept: str | None) -> Reply:
        """Explain a photo; always answered, see :mod:`bincounter.serving.local.explain`."""
        try:
            worker = await self._started()
        except BinCounterError as error:
            log.error("%s", error)
            return Reply.refusing(Problem(500, f"Explanations cannot be made here: {error}"))
        return await worker.ask(body, content_type, accept)

    async def _started(self) -> Worker:
        async with self._starting:
            if self._worker is None or self._worker.given_up.done():
                module = "bincounter.serving.local.explain"
                command = [sys.executable, "-m", module, str(self._folder)]
                self._worker = await Worker.run(command, timeout_s=_SECONDS, CUDA_VISIBLE_DEVICES="")
            return self._worker

    async def close(self) -> None:
        """End the process, where it was started."""
        if self._worker:
            await self._worker.close()
