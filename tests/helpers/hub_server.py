"""A hub for models on a local port: what huggingface_hub asks of one to create a repository, commit and download.

Large files come by Git LFS; Xet, the hub's newer protocol, is switched off in the environment of its clients.
"""

import base64
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from flask import Flask, Response, abort, jsonify, request
from werkzeug.serving import make_server

TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz"[:24]  # of its only user


@dataclass
class Hub:
    """Repositories by name: commits by hash, each the bytes of files by path; and branches and tags."""

    cache: Path  # of its clients
    address: str = ""
    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    refs: dict[str, dict[str, str]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    blobs: dict[str, bytes] = field(default_factory=dict)  # of LFS, by sha256
    requests: list[str] = field(default_factory=list)

    def environment(self, token: str) -> dict[str, str]:
        """Of a process that uses this hub."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
        home = {"HF_HOME": str(self.cache), "HF_ENDPOINT": self.address, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
        return kept | home | {"HF_HUB_DISABLE_TELEMETRY": "1"}

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        return self.commits[name][self.refs[name].get(revision, revision)]

    def commit(self, name: str, files: dict[str, bytes]) -> str:
        """Adds a commit to the main branch."""
        before = self.refs[name].get("main")
        content = (self.commits[name][before] if before else {}) | files
        listed = [(path, hashlib.sha1(data).hexdigest()) for path, data in sorted(content.items())]
        commit = hashlib.sha1(json.dumps([before, listed]).encode()).hexdigest()
        self.commits[name][commit], self.refs[name]["main"] = content, commit
        return commit


@contextmanager
def serve(cache: Path) -> Iterator[Hub]:
    """A hub in a thread of this process."""
    hub = Hub(cache)
    server = make_server("127.0.0.1", 0, _app(hub), threaded=True)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()


def _app(hub: Hub) -> Flask:
    app = Flask("hub")

    @app.before_request
    def log() -> None:
        hub.requests.append(f"{request.method} {request.path}")

    _add_uploads(app, hub)
    _add_downloads(app, hub)
    return app


def _signed_in() -> bool:
    return request.headers.get("Authorization") == f"Bearer {TOKEN}"


def _refuse_strangers() -> None:
    """Refuses a request that changes something, with a message that shows what a careless server might."""
    if not _signed_in():
        sent = request.headers.get("Authorization", "nothing")
        abort(Response(f"no user has {sent}", 401, {"X-Error-Message": f"Invalid credentials: {sent}"}))


def _add_uploads(app: Flask, hub: Hub) -> None:
    """A repository is created, files go there one by one, and a commit names them."""

    @app.post("/api/validate-yaml")
    def validate() -> Response:
        return jsonify(errors=[], warnings=[])

    @app.post("/api/repos/create")
    def create() -> Response | tuple[Response, int]:
        _refuse_strangers()
        given = request.get_json()
        name = f"{given['organization']}/{given['name']}"
        if name in hub.refs:
            return jsonify(url=f"{hub.address}/{name}"), 409
        hub.commits[name], hub.refs[name] = {}, {}
        if given.get("private") or given.get("visibility") == "private":  # older clients and newer ones
            hub.private.add(name)
        return jsonify(url=f"{hub.address}/{name}", name=name)

    @app.post("/api/models/<path:name>/preupload/<revision>")
    def preupload(name: str, revision: str) -> Response:
        _refuse_strangers()

        def answer(file: dict) -> dict:
            large = file["path"].endswith((".safetensors", ".wav", ".mp3", ".flac"))
            return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

        return jsonify(files=[answer(file) for file in request.get_json()["files"]])

    @app.post("/<path:name>.git/info/lfs/objects/batch")
    def batch(name: str) -> Response:
        _refuse_strangers()

        def answer(each: dict) -> dict:
            return each | {"actions": {"upload": {"href": f"{hub.address}/lfs/{each['oid']}"}}}

        return jsonify(transfer="basic", objects=[answer(each) for each in request.get_json(force=True)["objects"]])

    @app.put("/lfs/<oid>")
    def upload(oid: str) -> str:
        data = request.get_data()
        assert hashlib.sha256(data).hexdigest() == oid
        hub.blobs[oid] = data
        return ""

    @app.post("/api/models/<path:name>/commit/<revision>")
    def commit(name: str, revision: str) -> Response:
        _refuse_strangers()
        files = {}
        for line in request.get_data(as_text=True).splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = hub.blobs[value["oid"]]
        oid = hub.commit(name, files)
        return jsonify(success=True, commitOid=oid, commitUrl=f"{hub.address}/{name}/commit/{oid}", hookOutput="")


def _add_downloads(app: Flask, hub: Hub) -> None:
    """Repositories, their files, and the content of a file at a branch, tag or commit."""

    def commit_of(name: str, revision: str) -> str:
        if name not in hub.refs or (name in hub.private and not _signed_in()):
            abort(Response("", 404, {"X-Error-Code": "RepoNotFound"}))
        commit = hub.refs[name].get(revision, revision)
        if commit not in hub.commits[name]:
            abort(Response("", 404, {"X-Error-Code": "RevisionNotFound"}))
        return commit

    @app.get("/api/models/<path:name>/revision/<path:revision>")
    def info(name: str, revision: str) -> Response:
        oid = commit_of(name, revision)
        siblings = [{"rfilename": path} for path in hub.commits[name][oid]]
        return jsonify(id=name, modelId=name, sha=oid, private=name in hub.private, tags=[], siblings=siblings)

    @app.get("/api/models/<path:name>/tree/<path:revision>")
    def tree(name: str, revision: str) -> Response:
        files = hub.commits[name][commit_of(name, revision)]
        return jsonify([{"type": "file", "path": p, "size": len(x), "oid": _etag(x)} for p, x in files.items()])

    @app.get("/<owner>/<repository>/resolve/<revision>/<path:path>")
    def resolve(owner: str, repository: str, revision: str, path: str) -> Response:
        name = f"{owner}/{repository}"
        oid = commit_of(name, revision)
        if path not in hub.commits[name][oid]:
            abort(Response("", 404, {"X-Error-Code": "EntryNotFound"}))
        data = hub.commits[name][oid][path]
        return Response(data, headers={"ETag": f'"{_etag(data)}"', "X-Repo-Commit": oid})


def _etag(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
