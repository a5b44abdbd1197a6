"""SageMaker with scripted endpoint states and container responses, on top of moto.

For states that no real container can be brought into on request; test_endpoints.py rehearses real ones.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

Answer = tuple[str, list[tuple[str, str]], bytes]


class ScriptedEndpoints:
    """WSGI application: moto with scripted states and responses of endpoints.

    Attributes:
        course: members of the next responses to DescribeEndpoint, in order; the last one repeats.
        containers: status and body of the next responses to InvokeEndpoint.
        rolls_back: roll every update back.
        asked: the operations that changed something, in order.
        most: requests that containers had at a time.
    """

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self.course: list[dict[str, Any]] = []
        self.containers: list[tuple[int, str]] = []
        self.rolls_back = False
        self.asked: list[str] = []
        self.most = self._busy = 0
        self._lock = threading.Lock()
        self._serving: dict[str, str] = {}  # configurations of endpoints that were updated

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        operation = environ.get("HTTP_X_AMZ_TARGET", "").removeprefix("SageMaker.")
        if re.match("(Create|Update|Delete|Stop|Register|Deregister)", operation.rpartition(".")[2]):
            self.asked.append(operation.rpartition(".")[2])
        if re.fullmatch(r"/endpoints/[^/]+/invocations", environ["PATH_INFO"]):
            with self._lock:
                self._busy += 1
                self.most = max(self.most, self._busy)
            time.sleep(0.1)  # so that others come meanwhile
            status, headers, body = self._invoked(environ)
            with self._lock:
                self._busy -= 1
        elif operation == "UpdateEndpoint":
            status, headers, body = self._updated(environ)
        else:
            status, headers, body = self._forwarded(environ)
            if operation == "DescribeEndpoint" and status.startswith("200"):
                body = json.dumps(self._described(json.loads(body))).encode()
        headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
        start_response(status, [*headers, ("Content-Length", str(len(body)))])
        return [body]

    def _updated(self, environ: dict[str, Any]) -> Answer:
        request = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        if not self.rolls_back:
            self._serving[request["EndpointName"]] = request["EndpointConfigName"]
        return "200 OK", [], json.dumps({"EndpointArn": f"arn:aws:sagemaker:::{request['EndpointName']}"}).encode()

    def _described(self, there: dict[str, Any]) -> dict[str, Any]:
        step: dict[str, Any] = {}
        if self.course:
            step = self.course.pop(0) if len(self.course) > 1 else self.course[0]
        return {
            **there,
            "EndpointConfigName": self._serving.get(there["EndpointName"], there["EndpointConfigName"]),
            **step,
        }

    def _forwarded(self, environ: dict[str, Any]) -> Answer:
        head: list[Any] = []
        body = b"".join(self._moto(environ, lambda status, headers, *_: head.extend((status, headers))))
        return head[0], head[1], body

    def _invoked(self, environ: dict[str, Any]) -> Answer:
        environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        code, said = self.containers.pop(0)
        if code == 200:
            return "200 OK", [("Content-Type", "application/json")], said.encode()
        if code == 429:
            return (
                "429 Too Many Requests",
                [("x-amzn-errortype", "ThrottlingException")],
                b'{"Message": "Rate exceeded"}',
            )
        problem = {"Message": f"Received {code}", "OriginalStatusCode": code, "OriginalMessage": said}
        headers = [("Content-Type", "application/json"), ("x-amzn-errortype", "ModelError")]
        return "424 Failed Dependency", headers, json.dumps(problem).encode()


class _Quiet(MotoRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


@contextmanager
def scripted_endpoints() -> Iterator[tuple[ScriptedEndpoints, str]]:
    """Serve on a free port of 127.0.0.1; yields the script and the address."""
    application = ScriptedEndpoints()
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield application, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
