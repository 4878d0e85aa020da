"""A hub on this machine: the calls of the Hugging Face hub that sending and fetching a model take.

It answers huggingface_hub itself, over HTTP, and keeps repositories in memory.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_test"


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit_of(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the main branch."""
        return self.commits[self.branches["main"]]

    def add(self, branch: str, files: dict[str, bytes], message: str) -> str:
        content = {**self.commits.get(self.branches.get(branch, ""), {}), **files}
        commit = hashlib.sha1(repr((branch, message, sorted(content.items()))).encode()).hexdigest()
        self.commits[commit] = content
        self.branches[branch] = commit
        self.messages.append(message)
        return commit


@dataclass
class Hub:
    address: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of each call."""


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Run a hub until the end of the context."""
    hub = Hub("")

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.state.requests.append((self.command, path))
        for pattern, method in _CALLS.items():
            match = re.fullmatch(pattern, f"{self.command} {path}")
            if match:
                method(self, body, *match.groups())
                return
        self._refuse(404, "EntryNotFound")

    # ---- calls ---------------------------------------------------------------------------------

    def _create(self, body: bytes) -> None:
        if not self._is_known:
            self._refuse(401)
            return
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.state.address}/{name}"}
        if name in self.state.repositories:
            self._send(409, {**url, "error": "You already created this model repo"})
            return
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.state.repositories[name] = made = Repository(private)
        made.add("main", {".gitattributes": b""}, "initial commit")
        self._send(200, url)

    def _validate(self, body: bytes) -> None:
        assert json.loads(body)["content"].startswith("---\n")
        self._send(200, {"errors": [], "warnings": []})

    def _branch(self, _: bytes, name: str, branch: str) -> None:
        repository = self.state.repositories[name]
        if branch in repository.branches:
            self._send(409, {"error": "Reference already exists"})
            return
        repository.branches[branch] = repository.branches["main"]
        self._send(200, {})

    def _preupload(self, body: bytes, *_: str) -> None:
        if not self._is_known:
            self._refuse(403)
            return
        files = [
            {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
            for file in json.loads(body)["files"]
        ]
        self._send(200, {"files": files})

    def _commit(self, body: bytes, name: str, revision: str) -> None:
        header, *entries = (json.loads(line) for line in body.splitlines())
        files = {
            entry["value"]["path"]: base64.b64decode(entry["value"]["content"])
            for entry in entries
            if entry["key"] == "file"
        }
        commit = self.state.repositories[name].add(revision, files, header["value"]["summary"])
        url = f"{self.state.address}/{name}/commit/{commit}"
        self._send(200, {"success": True, "commitOid": commit, "commitUrl": url})

    def _info(self, _: bytes, name: str, revision: str = "main") -> None:
        found = self._found(name, revision)
        if found is not None:
            commit, files = found
            siblings = [{"rfilename": path} for path in files]
            self._send(200, {"id": name, "sha": commit, "siblings": siblings})

    def _tree(self, _: bytes, name: str, revision: str) -> None:
        found = self._found(name, revision)
        if found is not None:
            entries = [
                {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}
                for path, content in found[1].items()
            ]
            self._send(200, entries)

    def _file(self, _: bytes, name: str, revision: str, path: str) -> None:
        found = self._found(name, revision)
        if found is None:
            return
        commit, files = found
        if path not in files:
            self._refuse(404, "EntryNotFound")
            return
        headers = {"ETag": f'"{_oid(files[path])}"', "X-Repo-Commit": commit}
        self._send(200, files[path], headers)

    # ---- answers -------------------------------------------------------------------------------

    @property
    def _is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _found(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self.state.repositories.get(name)
        if repository is None or (repository.private and not self._is_known):
            self._refuse(404 if self._is_known else 401, "RepoNotFound")
            return None
        if repository.gated:
            self._refuse(403, "GatedRepo")
            return None
        commit = repository.commit_of(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound")
            return None
        return commit, repository.commits[commit]

    def _refuse(self, status: int, code: str = "") -> None:
        self._send(status, {"error": code or "refused"}, {"X-Error-Code": code} if code else {})

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


_MODEL = r"/api/models/([^/]+/[^/]+)"
_CALLS: dict[str, Any] = {
    r"POST /api/repos/create": _Handler._create,
    r"POST /api/validate-yaml": _Handler._validate,
    rf"POST {_MODEL}/branch/(.+)": _Handler._branch,
    rf"POST {_MODEL}/preupload/(.+)": _Handler._preupload,
    rf"POST {_MODEL}/commit/(.+)": _Handler._commit,
    rf"GET {_MODEL}/revision/(.+)": _Handler._info,
    rf"GET {_MODEL}": _Handler._info,
    rf"GET {_MODEL}/tree/(.+)": _Handler._tree,
    r"(?:HEAD|GET) /([^/]+/[^/]+)/resolve/([^/]+)/(.+)": _Handler._file,
}


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
