"""A stand-in for the Hugging Face hub on this machine: makes, fills and gives repositories."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from typing import ClassVar

COMMIT = "1" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """Repositories live in `files`, by name and path."""

    files: ClassVar[dict[str, dict[str, bytes]]] = {}
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Says nothing."""

    def _answer(self, body: bytes | dict, status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers.setdefault("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            asked = json.loads(data)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.files.setdefault(name, {})
            self._answer({"url": f"http://{self.headers['Host']}/{name}"})
        elif match := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for each in json.loads(data)["files"]
            ]
            self._answer({"files": files})
        elif match := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            for line in data.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    value = entry["value"]
                    content = base64.b64decode(value["content"])
                    self.files[match[1]][value["path"]] = content
            url = f"{self.headers['Host']}/{match[1]}/commit/{COMMIT}"
            self._answer({"success": True, "commitUrl": f"http://{url}", "commitOid": COMMIT})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        else:
            self._answer({"error": self.path}, 404)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/.+)?", path):
            if match[1] not in self.files:
                self._answer({"error": "no such repository"}, 404, X_Error_Code="RepoNotFound")
                return
            siblings = [{"rfilename": name} for name in self.files[match[1]]]
            self._answer({"id": match[1], "sha": COMMIT, "siblings": siblings, "private": False})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            content = self.files[match[1]][match[2]]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self._answer(content, ETag=etag, X_Repo_Commit=COMMIT)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
            listed = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in self.files[match[1]].items()
            ]
            self._answer(json.dumps(listed).encode())
        else:
            self._answer({"error": path}, 404)

    do_HEAD = do_GET


@contextlib.contextmanager
def running(monkeypatch, cache: object) -> Iterator[dict[str, dict[str, bytes]]]:
    """A hub that the hub's client talks to, with an empty cache; gives its files."""
    from huggingface_hub import constants

    Hub.files = {}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_nothing")
    try:
        yield Hub.files
    finally:
        server.shutdown()
        server.server_close()
