"""A server on this machine that speaks the hub's own endpoints, and errs where it is told to."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from claimbench.checkpoints.hub import SILENT

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LATER = "89abcdef0123456789abcdef0123456789abcdef"


class Hub(ThreadingHTTPServer):
    """One repository, org/tiny, whose branch `main` is at COMMIT until it is moved."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.commits = {COMMIT: files}
        self.branches = {"main": COMMIT}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.sent_bytes = 0
        self.token: str | None = None
        """Without it, everything is refused."""
        self.cut_once: set[str] = set()
        self.cut: set[str] = set()
        self.broken: set[str] = set()
        self.failing: set[str] = set()
        """Files, or `api`."""
        self.hang_s = 0.0
        self.html: set[str] = set()
        """Files, or `api`: a page of some proxy comes in their place."""
        self.etags: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        self.claims: str | None = None
        """The commit that it says a file is of."""

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.branches["main"]]

    @files.setter
    def files(self, files: dict[str, bytes]) -> None:
        self.commits[self.branches["main"]] = files

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def downloads(self) -> list[str]:
        """Names of files whose content was asked for."""
        return [path.rpartition("/")[2] for verb, path, _ in self.requests if verb == "GET" and "/resolve/" in path]


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Hub]:
    server = Hub(files)
    SILENT.discard(server.endpoint)  # its port may have been that of a hub that a test made silent
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


class HubHandler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        hub = self.server
        hub.requests.append((self.command, self.path, {key.lower(): value for key, value in self.headers.items()}))
        time.sleep(hub.hang_s)
        path = self.path.partition("?")[0]
        known = {**{commit: commit for commit in hub.commits}, **hub.branches}
        if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            said = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model org/tiny is restricted."}
            self.reply(401, b"{}", said, with_body)
        elif path.startswith("/api/models/org/tiny/revision/") and path.rpartition("/")[2] in known:
            self.send_info(known[path.rpartition("/")[2]], with_body)
        elif path.startswith("/org/tiny/resolve/") and path.split("/")[4] in known:
            _, _, _, _, revision, name = path.split("/", 5)
            self.send_file(known[revision], name, with_body)
        else:
            said = {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "no such revision"}
            self.reply(404, b"{}", said, with_body)

    def send_info(self, commit: str, with_body: bool) -> None:
        hub = self.server
        files = hub.commits[commit].items()
        siblings = [{"rfilename": name, "size": hub.sizes.get(name, len(content))} for name, content in files]
        body = json.dumps({"_id": "1", "id": "org/tiny", "sha": commit, "siblings": siblings}).encode()
        if "api" in hub.failing:
            self.reply(500, b"{}", {}, with_body)
        elif "api" in hub.html:
            self.reply(200, b"<html>Please log in</html>", {"Content-Type": "text/html"}, with_body)
        else:
            self.reply(200, body, {"Content-Type": "application/json"}, with_body)

    def send_file(self, commit: str, name: str, with_body: bool) -> None:
        hub = self.server
        if name not in hub.commits[commit] or name in hub.broken:
            self.reply(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "no such file"}, with_body)
            return
        if name in hub.failing:
            self.reply(500, b"{}", {}, with_body)
            return
        content = hub.commits[commit][name]
        headers = {
            "ETag": hub.etags.get(name, f'"{hashlib.sha256(content).hexdigest()}"'),
            "X-Repo-Commit": hub.claims or commit,
            "Accept-Ranges": "bytes",
        }
        if name in hub.html:
            content = b"<html>Please log in</html>"
        asked = self.headers.get("Range", "")
        first, _, last = asked.removeprefix("bytes=").partition("-")
        begin, end = int(first or 0), min(int(last or len(content)), len(content) - 1)
        if asked:
            headers["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
        part = content[begin : end + 1]
        if with_body and (name in hub.cut_once or name in hub.cut):
            hub.cut_once.discard(name)
            self.reply(200, part, headers, with_body, cut_at=len(part) // 2)
        else:
            self.reply(206 if asked else 200, part, headers, with_body)

    def reply(
        self, status: int, body: bytes, headers: dict[str, str], with_body: bool, cut_at: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            with suppress(BrokenPipeError, ConnectionResetError):  # whoever asked has gone
                self.wfile.write(body[:cut_at])
            self.server.sent_bytes += len(body[:cut_at])
        if cut_at is not None:
            self.close_connection = True
