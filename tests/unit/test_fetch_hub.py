"""hf:// against a server on this machine that speaks the hub's own endpoints, found through HF_ENDPOINT.

Each fetch runs in a process of its own: the hub's library reads its environment once, when it is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from claimbench.checkpoints import fetch
from claimbench.checkpoints.local_files import TOKENIZER_FILES
from claimbench.checkpoints.shard import shard
from claimbench.schema.cell import Checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secretsecretsecret"  # noqa: S105 - what must not be seen
SCRIPT = """
import sys
from pathlib import Path
from claimbench.checkpoints import fetch
from claimbench.schema.cell import Checkpoint
from claimbench.errors import SourceError
try:
    fetch.fetch(Checkpoint(name="tiny", source=sys.argv[1], architecture="tiny-llama"), Path(sys.argv[2]))
except SourceError as error:
    sys.exit(f"SourceError: {error}")
"""


class Hub(ThreadingHTTPServer):
    """One repository, org/tiny, whose branch `main` is at COMMIT."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.files = files
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.cut_once: set[str] = set()
        self.broken: set[str] = set()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


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
        self.server.requests.append(
            (self.command, self.path, {key.lower(): value for key, value in self.headers.items()})
        )
        path = self.path.partition("?")[0]
        file = path.removeprefix(f"/org/tiny/resolve/{COMMIT}/")
        if path in (f"/api/models/org/tiny/revision/{name}" for name in ("main", COMMIT)):
            siblings = [{"rfilename": name, "size": len(content)} for name, content in self.server.files.items()]
            body = json.dumps({"_id": "1", "id": "org/tiny", "sha": COMMIT, "siblings": siblings}).encode()
            self.reply(200, body, {"Content-Type": "application/json"}, with_body)
        elif file in self.server.files and file not in self.server.broken:
            self.send_file(file, with_body)
        else:
            self.reply(
                404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "no such revision"}, with_body
            )

    def send_file(self, name: str, with_body: bool) -> None:
        content = self.server.files[name]
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        if with_body and name in self.server.cut_once:
            self.server.cut_once.discard(name)
            self.reply(200, content, headers, with_body, cut_at=len(content) // 2)
        else:
            self.reply(206 if begin else 200, content[begin:], headers, with_body)

    def reply(
        self, status: int, body: bytes, headers: dict[str, str], with_body: bool, cut_at: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body[:cut_at])
        if cut_at is not None:
            self.close_connection = True


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    model = tmp_path / "model"
    random = Checkpoint(name="tiny", source="random://tiny-llama", architecture="tiny-llama")
    shard(random, tmp_path / "nothing", model, max_shard_bytes=200_000)
    files = {path.name: path.read_bytes() for path in model.iterdir() if not path.name.startswith(".")}
    server = Hub(files | {"README.md": b"hello", "pytorch_model.bin": b"pickle"})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def run_fetch(
    tmp_path: Path, endpoint: str, revision: str = "main", folder: str = "fetched", **environment: str
) -> subprocess.CompletedProcess[str]:
    inherited = os.environ.items()
    clean = {name: value for name, value in inherited if not name.startswith("HF_") and "proxy" not in name.lower()}
    settings = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, f"hf://org/tiny@{revision}", str(tmp_path / folder)],
        env=clean | settings | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert TOKEN not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_a_branch_is_resolved_to_a_commit_and_the_token_is_sent(hub: Hub, tmp_path: Path) -> None:
    done = run_fetch(tmp_path, hub.endpoint)
    assert done.returncode == 0, done.stderr
    record = fetch.read(tmp_path / "fetched")
    assert record.revision == COMMIT
    names = {file.name for file in record.files}
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} <= names
    assert not {"README.md", "pytorch_model.bin", "manifest.json"} & names
    for file in record.files:
        assert (tmp_path / "fetched" / file.name).read_bytes() == hub.files[file.name]
    sent = {headers.get("authorization") for _, path, headers in hub.requests if "org/tiny" in path}
    assert sent == {f"Bearer {TOKEN}"}
    assert TOKEN not in (tmp_path / "fetched" / "source.json").read_text()
    assert any((tmp_path / "hf" / "hub").rglob("*.safetensors"))


def test_a_hub_a_folder_and_shard_take_the_same_tokenizer_files(hub: Hub, tmp_path: Path) -> None:
    (model := tmp_path / "complete").mkdir()
    for name, content in ({name: b"{}" for name in TOKENIZER_FILES} | hub.files).items():
        hub.files[name] = content
        (model / name).write_bytes(content)
    assert run_fetch(tmp_path, hub.endpoint).returncode == 0
    local = Checkpoint(name="tiny", source=f"file://{model}", architecture="tiny-llama")
    shard(local, tmp_path / "linked", tmp_path / "sharded", max_shard_bytes=200_000)
    from_hub, from_folder = (fetch.read(tmp_path / folder).files for folder in ("fetched", "linked"))
    assert from_hub == from_folder
    copied = {path.name for path in (tmp_path / "sharded").iterdir()}
    others = {"config.json", "model.safetensors.index.json", "manifest.json"}
    for names in ({file.name for file in from_hub}, copied & set(hub.files)):
        assert {name for name in names if not name.endswith(".safetensors")} - others == set(TOKENIZER_FILES)


def test_what_is_in_the_cache_needs_no_network(hub: Hub, tmp_path: Path) -> None:
    assert run_fetch(tmp_path, hub.endpoint).returncode == 0
    asked = len(hub.requests)
    for number, revision in enumerate((COMMIT, "main")):
        again = run_fetch(tmp_path, hub.endpoint, revision, folder=f"offline{number}", HF_HUB_OFFLINE="1")
        assert again.returncode == 0, again.stderr
        assert fetch.read(tmp_path / f"offline{number}").revision == COMMIT
    assert len(hub.requests) == asked


def test_a_damaged_file_in_the_cache_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    assert run_fetch(tmp_path, hub.endpoint).returncode == 0
    victim = sorted((tmp_path / "fetched").glob("*.safetensors"))[0]
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)  # the cache's own file: they are one inode
    done = run_fetch(tmp_path, hub.endpoint)
    assert done.returncode == 0, done.stderr
    assert victim.read_bytes() == hub.files[victim.name]
    assert "fetching it again" in done.stderr


def test_a_cut_connection_is_resumed_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.files["vocab.json"] = os.urandom(24_000_000)  # more than one of the library's chunks of 10 MiB before the cut
    hub.cut_once = {"vocab.json"}
    done = run_fetch(tmp_path, hub.endpoint)
    assert done.returncode == 0, done.stderr
    gets = [headers for verb, path, headers in hub.requests if verb == "GET" and path.endswith("vocab.json")]
    assert len(gets) == 2
    assert int(gets[1]["range"].removeprefix("bytes=").removesuffix("-")) > 0
    assert (tmp_path / "fetched" / "vocab.json").read_bytes() == hub.files["vocab.json"]


def test_a_fetch_that_failed_goes_on_at_the_file_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.broken = {"tokenizer.json"}
    done = run_fetch(tmp_path, hub.endpoint)
    assert done.returncode
    assert "SourceError: hf://org/tiny@main: tokenizer.json could not be fetched: 404" in done.stderr
    assert not (tmp_path / "fetched" / "source.json").exists()
    hub.broken.clear()
    hub.requests.clear()
    assert run_fetch(tmp_path, hub.endpoint).returncode == 0
    assert not [path for verb, path, _ in hub.requests if verb == "GET" and path.endswith(".safetensors")]


def test_a_repository_with_pickles_alone_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.files = {"config.json": b"{}", "tokenizer.json": b"{}", "pytorch_model.bin": b"pickle"}
    done = run_fetch(tmp_path, hub.endpoint)
    assert done.returncode
    assert "found only pytorch_model.bin: pickle files can run code and are never loaded" in done.stderr
    assert not (tmp_path / "fetched" / "source.json").exists()


def test_a_revision_that_is_not_there_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    done = run_fetch(tmp_path, hub.endpoint, revision="nowhere")
    assert done.returncode
    assert done.stderr.startswith("SourceError: hf://org/tiny@nowhere: the hub refused it: 404")
    assert done.stderr.count("\n") == 1


def test_an_unreachable_hub_is_one_sentence(tmp_path: Path) -> None:
    done = run_fetch(tmp_path, "http://127.0.0.1:9")
    assert done.returncode
    assert (
        "SourceError: hf://org/tiny@main: the hub cannot be reached and the local cache does not have it" in done.stderr
    )
