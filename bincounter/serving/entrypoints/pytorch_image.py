"""The four functions by which AWS's PyTorch inference images call a model, those before Ray Serve's.

A wrong request raises nothing here, since such an image answers an exception with its traceback: the problem is passed
on to :func:`output_fn`, which sets the status.
"""

from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import torch

from bincounter.serving.application import photo_requests
from bincounter.serving.application.answers import JSON, Answers, Problem, wanted
from bincounter.serving.application.served_model import ServedModel
from bincounter.serving.application.service import Reader
from bincounter.serving.application.url_fetcher import Fetcher


@dataclass(frozen=True)
class Received:
    """A request as it came; the model says what of it is taken."""

    body: bytes
    content_type: str | None


@dataclass(frozen=True)
class Counted:
    """Distributions for the photos of a request, and what writes them."""

    rows: list[list[float]]
    several: bool
    answers: Answers


def model_fn(model_dir: str) -> ServedModel:
    """Load the archive that was unpacked to ``model_dir``."""
    return ServedModel.load(Path(model_dir))


def input_fn(input_data: bytes | bytearray | str, content_type: str | None) -> Received:
    """Take a request; of JSON the image has made a text."""
    body = input_data.encode("utf-8", "surrogatepass") if isinstance(input_data, str) else bytes(input_data)
    return Received(body, content_type)


def predict_fn(received: Received, model: ServedModel) -> Counted | Problem:
    """Read the photos and count what is in them."""
    limits, reader = model.limits, Reader(model, Fetcher(model.limits))
    try:
        asked = photo_requests.read(received.body, received.content_type, limits)
        pixels = [reader.pixels(photo, asked.where(number)) for number, photo in enumerate(asked.photos)]
    except Problem as problem:
        return problem
    batches = torch.stack(pixels).split(limits.max_batch)
    rows = [row for batch in batches for row in model.probabilities(batch).tolist()]
    return Counted(rows, asked.several, Answers(model.name, model.counts))


def output_fn(counted: Counted | Problem, accept: str | None, context: Any) -> tuple[bytes, str]:
    """Write the answer in a type that ``accept`` names, or what is wrong."""
    try:
        if isinstance(counted, Problem):
            raise counted
        form = wanted(accept)
        return counted.answers.written(counted.rows, form, several=counted.several), form.content_type
    except Problem as problem:
        context.set_response_status(code=problem.status, phrase=HTTPStatus(problem.status).phrase)
        return problem.body(), JSON
