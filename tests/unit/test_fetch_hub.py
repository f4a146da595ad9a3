"""hf:// against a server on this machine that speaks the hub's own endpoints, found through HF_ENDPOINT.

Each fetch runs in a process of its own: the hub's library reads its environment once, when it is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.unit.fake_hub import COMMIT, Hub

from claimbench.checkpoints import fetch
from claimbench.checkpoints.local_files import TOKENIZER_FILES
from claimbench.checkpoints.shard import shard
from claimbench.schema.cell import Checkpoint

TOKEN = "hf_secretsecretsecret"  # noqa: S105 - what must not be seen
SCRIPT = """
import sys
from pathlib import Path
from claimbench.checkpoints import fetch
from claimbench.schema.cell import Checkpoint
from claimbench.errors import SourceError
try:
    tiny = Checkpoint(name="tiny", source=sys.argv[1], architecture="tiny-llama", content=sys.argv[3])
    fetch.fetch(tiny, Path(sys.argv[2]))
except SourceError as error:
    sys.exit(f"SourceError: {error}")
"""


def run_fetch(
    tmp_path: Path, endpoint: str, revision: str = "main", folder: str = "fetched", **environment: str
) -> subprocess.CompletedProcess[str]:
    inherited = os.environ.items()
    clean = {name: value for name, value in inherited if not name.startswith("HF_") and "proxy" not in name.lower()}
    settings = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, f"hf://org/tiny@{revision}", str(tmp_path / folder), COMMIT],
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
    assert f"SourceError: hf://org/tiny@{COMMIT}: tokenizer.json could not be fetched: 404" in done.stderr
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


def test_an_unreachable_hub_is_one_sentence(tmp_path: Path) -> None:
    done = run_fetch(tmp_path, "http://127.0.0.1:9")
    assert done.returncode
    why = "the hub cannot be reached and the local cache does not have it"
    assert f"SourceError: hf://org/tiny@{COMMIT}: {why}" in done.stderr
