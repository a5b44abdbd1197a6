"""Entry point ``code/inference.py`` of AWS's older PyTorch inference images: four functions that serve a model.

These images return the traceback of an exception to the client. A wrong request therefore raises nothing: the problem
is passed to :func:`output_fn`, which sets the status.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import torch

from bincounter.serving.application import photo_requests
from bincounter.serving.application.answers import JSON, AnswerFormatter, Problem, parse_accept
from bincounter.serving.application.served_model import ServedModel
from bincounter.serving.application.service import Reader, check_expected, failure, too_late
from bincounter.serving.application.url_fetcher import Fetcher

Item = TypeVar("Item")


@dataclass(frozen=True)
class Received:
    """Body and headers of a request; parsed once the limits of the model are known."""

    body: bytes
    content_type: str | None
    expected: str | None


@dataclass(frozen=True)
class Counted:
    """Distributions for the photos of a request, and the formatter of the answer."""

    rows: list[list[float]]
    expected: Sequence[int | None]
    several: bool
    answers: AnswerFormatter


def model_fn(model_dir: str) -> ServedModel:
    """Load the archive unpacked to ``model_dir``."""
    return ServedModel.load(Path(model_dir))


def input_fn(input_data: bytes | bytearray | str, content_type: str | None, context: Any = None) -> Received:
    """Accept a request; the image passes JSON as a string."""
    body = input_data.encode("utf-8", "surrogatepass") if isinstance(input_data, str) else bytes(input_data)
    headers = context.request_processor[0].get_request_properties() if context else {}
    return Received(body, content_type, photo_requests.expected_of(headers))


def predict_fn(received: Received, model: ServedModel) -> Counted | Problem:
    """Read the photos of a request and count their items.

    No photo and no batch is started after ``limits.timeout_s`` seconds; a running one ends within its own bounds.
    """
    limits, reader = model.limits, Reader(model, Fetcher(model.limits))
    end = time.monotonic() + limits.timeout_s

    def in_time(items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            if time.monotonic() > end:
                raise too_late(limits)
            yield item

    try:
        asked = photo_requests.parse_request(received.body, received.content_type, limits, received.expected)
        answers = AnswerFormatter(model.name, model.counts, model.least, model.judge, model.answer)
        check_expected(asked, answers)
        pixels = [reader.pixels(photo, asked.where(number)) for number, photo in in_time(enumerate(asked.photos))]
        batches = in_time(torch.stack(pixels).split(limits.max_batch))
        rows = [row for batch in batches for row in model.probabilities(batch).tolist()]
    except Problem as problem:
        return problem
    except Exception as error:
        return failure(error, "The request failed")
    return Counted(rows, asked.expected, asked.several, answers)


def output_fn(counted: Counted | Problem, accept: str | None, context: Any) -> tuple[bytes, str]:
    """Format the answer in an accepted type, or the problem."""
    try:
        if isinstance(counted, Problem):
            raise counted
        form = parse_accept(accept)
        body = counted.answers.format(counted.rows, form, several=counted.several, expected=counted.expected)
        return body, form.content_type
    except Problem as problem:
        context.set_response_status(code=problem.status, phrase=HTTPStatus(problem.status).phrase)
        return problem.body(), JSON
