"""A stand-in for the Hugging Face Hub on this machine: what of its HTTP API pushing, loading and data sets ask for."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from train_cases import SOURCE

TOKEN = "hf_of_a_stand_in"


class Hub(ThreadingHTTPServer):
    """Repositories by kind and name, such as ``"models/me/boxes"``: their files of one commit. Writing wants ``TOKEN``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.large: dict[str, bytes] = {}
        """What was sent apart from a commit, by its SHA-256."""
        self.commits: list[str] = []
        self.asked: list[str] = []

    def environment(self, home: Path, **others: str) -> dict[str, str]:
        """Of a process that takes this for the Hub, and nothing from this machine's own login or cache.

        Without Xet, whose store is another service: large files go by Git LFS, as they do where it is not installed.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        return kept | {
            "HF_ENDPOINT": self.address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "COLUMNS": "200",
        } | others  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing on the terminal."""

    def handle_one_request(self) -> None:
        """A client that goes away is no error."""
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def do_GET(self) -> None:
        self._route()

    do_HEAD = do_POST = do_PUT = do_GET

    def _route(self) -> None:
        body = self._body()
        self.path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {self.path}")
        if self.command in ("POST", "PUT") and not self._known(body):
            return
        parts = self.path.strip("/").split("/")
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        if parts[0] == "large":
            self.server.large[parts[1]] = body
            return self._answer(200, {})
        if self.path.endswith(".git/info/lfs/objects/batch"):
            return self._lfs(json.loads(body))
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if parts[0] == "api" and "/".join(parts[1:4]) in self.server.repositories:
            return self._api("/".join(parts[1:4]), parts[4] if parts[4:] else "", "/".join(parts[6:]), body)
        if "resolve" in parts:
            at = parts.index("resolve")
            name = "/".join(parts[:at])
            return self._file(name if at == 3 else f"models/{name}", "/".join(parts[at + 2 :]))
        self._answer(404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        whole = b""
        while size := int(self.rfile.readline(), 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def _known(self, body: bytes) -> bool:
        """Whether the token is right; data sets may be looked at without, and what is sent apart has its own address."""
        if (
            self.path.startswith(("/large/", "/api/datasets/"))
            or self.headers.get("Authorization") == f"Bearer {TOKEN}"
        ):
            return True
        self._answer(401, {"error": "Invalid username or password."})
        return False

    def _create(self, given: Mapping[str, Any]) -> None:
        name = f"models/{given.get('organization', 'me')}/{given['name']}"
        url = {"url": f"{self.server.address}/{name.removeprefix('models/')}"}
        if name in self.server.repositories:
            return self._answer(409, url | {"error": "You already created this model repo"})
        self.server.repositories[name] = {}
        if given.get("visibility") == "private" or given.get("private"):
            self.server.private.add(name)
        self._answer(200, url)

    def _lfs(self, given: Mapping[str, Any]) -> None:
        """Where to send each file; what is there already need not come again."""
        objects = []
        for wanted in given["objects"]:
            upload = {"upload": {"href": f"{self.server.address}/large/{wanted['oid']}"}}
            objects.append(wanted | ({} if wanted["oid"] in self.server.large else {"actions": upload}))
        self._answer(200, {"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")

    def _api(self, name: str, what: str, path: str, body: bytes) -> None:
        files = self.server.repositories[name]
        if what == "preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": modes})
        if what == "commit":
            return self._commit(name, [json.loads(line) for line in body.splitlines()])
        if what in ("tree", "paths-info"):
            found = {str(parent): "directory" for file in files for parent in Path(file).parents if str(parent) != "."}
            found |= dict.fromkeys(files, "file")
            if what == "tree":
                inside = [one for one in found if one.startswith(f"{path}/" if path else "")]
            else:
                asked = json.loads(body)["paths"] if body.startswith(b"{") else []
                inside = [one for one in found if one in asked]
            listed = [
                {"type": found[one], "path": one, "size": len(files.get(one, b"")), "oid": oid(files.get(one, b""))}
                for one in inside
            ]
            return self._answer(200 if listed else 404, listed)
        about = {
            "id": name.partition("/")[2], "sha": self._sha(name), "private": name in self.server.private, "tags": [],
            "siblings": [{"rfilename": file} for file in files],
        }  # fmt: skip
        self._answer(200, about)

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        files = self.server.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.commits.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.server.large[value["oid"]]
                assert (hashlib.sha256(content).hexdigest(), len(content)) == (value["oid"], value["size"])
                files[value["path"]] = content
        sha = self._sha(name)
        url = f"{self.server.address}/{name.removeprefix('models/')}/commit/{sha}"
        self._answer(200, {"commitUrl": url, "commitOid": sha, "success": True})

    def _file(self, name: str, path: str) -> None:
        content = self.server.repositories.get(name, {}).get(path)
        if content is None:
            return self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        about = {"X-Repo-Commit": self._sha(name), "ETag": f'"{oid(content)}"', "Accept-Ranges": "bytes"}
        self._answer(200, content, about, "application/octet-stream")

    def _sha(self, name: str) -> str:
        """Of a repository as it is: another one after every change."""
        return oid(b"".join(key.encode() + value for key, value in sorted(self.server.repositories[name].items())))

    def _answer(
        self, status: int, content: Any, headers: Mapping[str, str] | None = None, kind: str = "application/json"
    ) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def oid(content: bytes) -> str:
    """Forty hexadecimal digits, as Git's are."""
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers until the end of the block."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
