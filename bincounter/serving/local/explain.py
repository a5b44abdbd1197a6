"""Handler of /explanation: Grad-CAM of one photo at a time.

Answers are ``{"count": 3, "width": 56, "height": 56, "heat": base64}``: the explained count, and the
contribution of each place of the upright photo to it, 0-255, row by row.
"""

import asyncio
import base64
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bincounter.data.preprocessing import Normalize
from bincounter.errors import ConfigError
from bincounter.model.answer import positions
from bincounter.model.backbones import cam_layer
from bincounter.serving.application.answers import Problem
from bincounter.serving.application.photo_requests import PhotoRequest
from bincounter.serving.application.served_model import Network, ServedModel
from bincounter.serving.application.service import Reply, Service, failure

_SIDE = 56  # pixels of the heat map; Grad-CAM resolves far fewer
_SECONDS = 60.0  # an explanation may take


class Explainer:
    """Explains photos in one thread of low priority, so that requests hardly notice it.

    It works on a network of its own on the CPU, loaded for the first photo: Grad-CAM hooks into layers, which the model
    of the requests passes at the same time.

    Args:
        model: that is served.
        service: that reads photos.
    """

    def __init__(self, model: ServedModel, service: Service) -> None:
        self._served, self._service = model, service
        self._normalize = Normalize()
        self._thread = ThreadPoolExecutor(1, "explain", initializer=_lower_priority)
        self._explained: _ExplainedModel | None = None

    async def handle(self, body: bytes, content_type: str | None, accept: str | None) -> Reply:
        """Explain one photo, the whole ``body``; never raises."""
        try:
            async with asyncio.timeout(_SECONDS):
                pixels = await self._service.read(body, PhotoRequest([body], several=False), 0)
                answer = await asyncio.get_running_loop().run_in_executor(self._thread, self._explain, pixels)
        except Problem as problem:
            return Reply.refusing(problem)
        except ConfigError as error:
            return Reply.refusing(Problem(501, str(error)))
        except TimeoutError:
            return Reply.refusing(Problem(504, f"No explanation within {_SECONDS:.0f} s; retry."))
        except Exception as error:
            return Reply.refusing(failure(error, "The explanation failed"))
        return Reply(200, "application/json", json.dumps(answer).encode())

    def close(self) -> None:
        """Stop without waiting for a photo in progress."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _explain(self, pixels: Tensor) -> dict[str, object]:
        model = self._explained = self._explained or _ExplainedModel(self._served.network(), self._served.answer).eval()
        return explanation(model, self._normalize(pixels[None]), self._served.counts)


def explanation(model: Any, image: Tensor, counts: Sequence[int]) -> dict[str, object]:
    """Explain one photo; see the module.

    Args:
        model: as :func:`bincounter.report.report_photos.grad_cam` takes it.
        image: ``float[1, 3, S, S]``, normalised.
        counts: the support of the model, ascending.
    """
    from bincounter.report.report_photos import grad_cam  # captum, which serving does without

    with torch.inference_mode():
        at = int(positions(model.probabilities(image), model.answer))
    heat = F.adaptive_avg_pool2d(torch.from_numpy(grad_cam(model, image)), min(_SIDE, image.shape[-1]))[0]
    grid = (255 * heat).round().to(torch.uint8)
    height, width = grid.shape
    encoded = base64.b64encode(grid.numpy().tobytes()).decode("ascii")
    return {"count": counts[at], "width": width, "height": height, "heat": encoded}


class _ExplainedModel(nn.Module):
    """A network with the interface of :func:`bincounter.report.report_photos.grad_cam`.

    Args:
        served: from an archive.
        answer: which count is answered.
    """

    def __init__(self, served: Network, answer: str) -> None:
        super().__init__()
        self.backbone: Any = served.backbone
        self.head, self.objective = served.head, served.objective
        self.answer, self._average_flips = answer, served.average_flips

    @property
    def cam_layer(self) -> nn.Module:
        """The layer with the explained feature maps."""
        return cam_layer(self.backbone)

    def probabilities(self, image: Tensor) -> Tensor:
        """``float[B, 3, S, S]``, normalised -> distributions over the support, ``float32[B, K]``."""
        views = [image, image.flip(-1)] if self._average_flips else [image]
        return self.objective.calibrated(*map(self._outputs, views))

    def probabilities_of_view(self, image: Tensor) -> Tensor:
        """Like :meth:`probabilities`, but of the photos as they are alone."""
        return self.objective.calibrated(self._outputs(image))

    def _outputs(self, image: Tensor) -> Tensor:
        return self.head(self.backbone.maps(image) if self.objective.spatial else self.backbone(image)).float()


def _lower_priority() -> None:
    torch.set_num_threads(1)
    if sys.platform == "linux":  # elsewhere it is the priority of the whole process
        os.nice(10)
