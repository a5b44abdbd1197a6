"""A stand-in for the Hugging Face Hub on 127.0.0.1: as much of its HTTP API as its real client needs."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

TOKEN = "hf_" + "a1B2" * 9  # in two parts, so that no scanner takes it for a real one


class Hub:
    """Repositories of models in memory.

    Attributes:
        files: contents by name, for each repository.
        private: whether a repository is.
        gated: repositories whose terms have not been accepted.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.gated: set[str] = set()
        self.url = ""
        self._uploaded: dict[str, bytes] = {}

    def sha(self, repository: str) -> str:
        """The commit, which is the digest of all files."""
        return hashlib.sha1(repr(sorted(self.files[repository].items())).encode()).hexdigest()

    def app(self) -> Starlette:
        """The server."""
        repository = "{owner}/{name}"
        return Starlette(
            routes=[
                Route("/api/repos/create", self._create, methods=["POST"]),
                Route("/api/validate-yaml", self._validate, methods=["POST"]),
                Route(f"/api/models/{repository}", self._info),
                Route(f"/api/models/{repository}/revision/{{revision}}", self._info),
                Route(f"/api/models/{repository}/tree/{{revision}}", self._tree),
                Route(f"/api/models/{repository}/preupload/main", self._preupload, methods=["POST"]),
                Route(f"/api/models/{repository}/commit/main", self._commit, methods=["POST"]),
                Route(f"/{repository}.git/info/lfs/objects/batch", self._batch, methods=["POST"]),
                Route("/lfs/{oid}", self._upload, methods=["PUT"]),
                Route(f"/{repository}/resolve/{{revision}}/{{file}}", self._file, methods=["GET", "HEAD"]),
            ]
        )

    def _refused(self, request: Request) -> Response | None:
        """The answer to a request for a repository that is missing, or not open to its token."""
        repository = "{owner}/{name}".format(**request.path_params)
        token = request.headers.get("authorization")
        if token is not None and token != f"Bearer {TOKEN}":
            return JSONResponse({"error": "Invalid credentials"}, 401, {"X-Error-Message": "Invalid credentials"})
        if repository not in self.files or (self.private[repository] and token is None):
            return JSONResponse({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if repository in self.gated:
            return JSONResponse({"error": "Access is restricted"}, 403, {"X-Error-Code": "GatedRepo"})
        if request.path_params.get("revision", "main") not in ("main", self.sha(repository)):
            return JSONResponse({"error": "No such revision"}, 404, {"X-Error-Code": "RevisionNotFound"})
        return None

    async def _create(self, request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return JSONResponse({"error": "Invalid username or password."}, 401)
        body = await request.json()
        repository = f"{body['organization']}/{body['name']}"
        if repository in self.files:
            return JSONResponse({"error": "You already created this model repo"}, 409)
        self.files[repository], self.private[repository] = {}, bool(body.get("private") or body.get("visibility"))
        return JSONResponse({"url": f"{self.url}/{repository}"})

    async def _validate(self, request: Request) -> Response:
        licence = yaml.safe_load((await request.json())["content"].split("---")[1])["license"]
        known = licence in ("apache-2.0", "cc-by-nc-sa-3.0", "mit")
        errors = [] if known else [{"message": '"license" must be one of [apache-2.0, mit]'}]
        return JSONResponse({"errors": errors, "warnings": []}, 200 if known else 400)

    def _info(self, request: Request) -> Response:
        repository = "{owner}/{name}".format(**request.path_params)
        known: dict[str, Any] = {"id": repository, "private": self.private.get(repository), "siblings": []}
        return self._refused(request) or JSONResponse({**known, "sha": self.sha(repository)})

    def _tree(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        found = self.files["{owner}/{name}".format(**request.path_params)]
        return JSONResponse(
            [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in found.items()
            ]
        )

    async def _preupload(self, request: Request) -> Response:
        files = (await request.json())["files"]
        modes = {".ckpt": "lfs"}
        return self._refused(request) or JSONResponse(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": modes.get(file["path"][-5:], "regular"),
                        "shouldIgnore": False,
                    }
                    for file in files
                ]
            }
        )

    async def _batch(self, request: Request) -> Response:
        objects = (await request.json())["objects"]
        actions = [
            {**each, "actions": {"upload": {"href": f"{self.url}/lfs/{each['oid']}", "header": {}}}} for each in objects
        ]
        return JSONResponse({"transfer": "basic", "objects": actions})

    async def _upload(self, request: Request) -> Response:
        self._uploaded[request.path_params["oid"]] = await request.body()
        return Response()

    async def _commit(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        repository = "{owner}/{name}".format(**request.path_params)
        for line in map(json.loads, (await request.body()).splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.files[repository][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[repository][value["path"]] = self._uploaded[value["oid"]]
        sha = self.sha(repository)
        return JSONResponse({"commitUrl": f"{self.url}/{repository}/commit/{sha}", "commitOid": sha})

    def _file(self, request: Request) -> Response:
        repository = "{owner}/{name}".format(**request.path_params)
        if refused := self._refused(request):
            return refused
        content = self.files[repository].get(request.path_params["file"])
        if content is None:
            return JSONResponse({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        return Response(content, headers={"ETag": etag, "X-Repo-Commit": self.sha(repository)})


@contextmanager
def served(hub: Hub) -> Iterator[str]:
    """Serve a hub in this block; gives its address."""
    server = uvicorn.Server(uvicorn.Config(hub.app(), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    hub.url = f"http://127.0.0.1:{port}"
    try:
        yield hub.url
    finally:
        server.should_exit = True
        thread.join()
