"""HTTP client that posts photos to a server on this machine."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from bincounter.data.photos import failure_clause, retry
from bincounter.errors import ResourceError, UserError
from bincounter.serving.local.access import TOKEN_VARIABLE, reached_at
from bincounter.serving.local.running_servers import Server
from bincounter.training.predictor import Prediction

_TIMEOUT = 120.0  # seconds
_TRIES = 5  # while the server is busy or fails
_BUSY, _UNKNOWN = 503, 401
_PASSING = (500, _BUSY, 504)  # of the moment: another try may succeed


def post_photos(server: Server, photos: Iterable[Path], headers: Mapping[str, str]) -> Iterator[Prediction]:
    """Post photos one after the other.

    Args:
        server: of the model that must answer.
        photos: files to post unchanged.
        headers: of each request, such as the token.

    Yields:
        The answer for a photo.

    Raises:
        UserError: nothing listens on the port, it is not the server of that model, or it takes another token.
        ResourceError: the server stays busy.
    """
    url = server.url.rstrip("/")
    for photo in photos:
        try:
            content = retry(photo.read_bytes)
        except (MemoryError, OSError) as error:
            yield Prediction(str(photo), error=failure_clause(error), passing=True)
            continue
        status, body = _posted(server, content, headers)
        try:
            answer = json.loads(body)
            if status != 200:
                yield Prediction(str(photo), error=answer["error"], passing=status in _PASSING)
                continue
            answering = answer["model"]
            prediction = Prediction.of_answer(str(photo), answer)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{url} is not a server of bincounter: bincounter deploy action=list shows those"
            ) from error
        if answering != server.model:
            raise UserError(
                f"{url} serves {answering} now, not {server.model}: see what runs with bincounter deploy action=list"
            )
        yield prediction


def _posted(server: Server, content: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
    url, status, body = server.url.rstrip("/"), _BUSY, b""
    for number in range(_TRIES):
        time.sleep(number)
        connection = HTTPConnection(reached_at(server.host), server.port, timeout=_TIMEOUT)
        try:
            connection.request("POST", "/invocations", content, {"Content-Type": "application/octet-stream", **headers})
            response = connection.getresponse()
            status, body = response.status, response.read()
        except (ConnectionResetError, BrokenPipeError):  # the worker died; the next request waits for the next worker
            continue
        except (OSError, HTTPException) as error:
            raise UserError(
                f"Nothing answers at {url}: start it with bincounter deploy ckpt_path=..., or see "
                "what runs with bincounter deploy action=list"
            ) from error
        finally:
            connection.close()
        if status == _UNKNOWN:
            raise UserError(
                f"{url} takes a token: set {TOKEN_VARIABLE} or target.token_file as for action=deploy of that server"
            )
        if status not in _PASSING:
            break
    if status == _BUSY:
        raise ResourceError(f"{url} is busy: retry later")
    return status, body
