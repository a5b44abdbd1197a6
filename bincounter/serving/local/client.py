"""HTTP client that posts photos to a server on this machine."""

import json
import time
from collections.abc import Iterable, Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from bincounter.errors import ResourceError, UserError
from bincounter.training.predictor import Prediction

_TIMEOUT = 120.0  # seconds
_TRIES = 5  # while the server is busy
_BUSY = 503


def post_photos(port: int, model: str, photos: Iterable[Path]) -> Iterator[Prediction]:
    """Post photos one after the other.

    Args:
        port: of the server on 127.0.0.1.
        model: id of the model that must answer.
        photos: files to post unchanged.

    Yields:
        The answer for a photo.

    Raises:
        UserError: nothing listens on the port, or it is not the server of that model.
        ResourceError: the server stays busy.
    """
    for photo in photos:
        try:
            content = photo.read_bytes()
        except OSError as error:
            yield Prediction(str(photo), error=(error.strerror or "unreadable").lower())
            continue
        status, body = _posted(port, content)
        try:
            answer = json.loads(body)
            if status != 200:
                yield Prediction(str(photo), error=answer["error"])
                continue
            answering = answer["model"]
            probabilities = {int(count): float(share) for count, share in answer["probabilities"].items()}
            prediction = Prediction.of(str(photo), probabilities)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"http://127.0.0.1:{port} is not a server of bincounter: python deploy.py action=list shows those"
            ) from error
        if answering != model:
            raise UserError(
                f"http://127.0.0.1:{port} serves {answering} now, not {model}: see what runs with python deploy.py "
                "action=list"
            )
        yield prediction


def _posted(port: int, content: bytes) -> tuple[int, bytes]:
    for number in range(_TRIES):
        time.sleep(number)
        connection = HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT)
        try:
            connection.request("POST", "/invocations", content, {"Content-Type": "application/octet-stream"})
            response = connection.getresponse()
            status, body = response.status, response.read()
        except ConnectionResetError:  # the worker died; the next request waits for the next worker
            continue
        except (OSError, HTTPException) as error:
            raise UserError(
                f"Nothing answers at http://127.0.0.1:{port}: start it with python deploy.py ckpt_path=..., or see "
                "what runs with python deploy.py action=list"
            ) from error
        finally:
            connection.close()
        if status != _BUSY:
            return status, body
    raise ResourceError(f"http://127.0.0.1:{port} is busy: retry later")
