"""A checkpoint is loaded only while every byte of it is the one that its manifest recorded."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from claimbench.__main__ import main
from claimbench.checkpoints import manifest
from claimbench.checkpoints.manifest import File, Manifest
from claimbench.checkpoints.shard import shard
from claimbench.errors import CorruptCheckpoint
from claimbench.schema.cell import Checkpoint

TINY = Checkpoint(name="tiny", source="random://tiny-llama?seed=1", architecture="tiny-llama")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    shard(TINY, tmp_path / "fetched", folder, max_shard_bytes=100_000)
    return folder


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_whole_checkpoint_verifies(checkpoint: Path) -> None:
    found = manifest.verify(checkpoint)
    assert found == manifest.read(checkpoint)
    assert found.layout.kind == "whole"
    assert len(found.weight_files) > 1
    assert found.weight_bytes == sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))


def test_every_file_that_a_backend_loads_is_in_the_manifest(checkpoint: Path) -> None:
    names = {path.name for path in checkpoint.iterdir() if not path.name.startswith(".")}
    assert {file.name for file in manifest.read(checkpoint).files} == names - {manifest.MANIFEST}


def test_one_flipped_byte_is_found_and_named(checkpoint: Path) -> None:
    manifest.verify(checkpoint)
    victim = sorted(checkpoint.glob("*.safetensors"))[0]
    flip_last_byte(victim)
    with pytest.raises(CorruptCheckpoint, match=rf"{victim.name}: expected sha256 \w+, found \w+.*run again"):
        manifest.verify(checkpoint)


def test_a_missing_and_a_shortened_file_are_found(checkpoint: Path) -> None:
    victim = checkpoint / "tokenizer.json"
    size = victim.stat().st_size
    os.truncate(victim, size - 10)
    with pytest.raises(CorruptCheckpoint, match=f"tokenizer.json: expected {size} bytes, found {size - 10}"):
        manifest.verify(checkpoint)
    victim.unlink()
    with pytest.raises(CorruptCheckpoint, match=r"tokenizer\.json: the file is missing"):
        manifest.verify(checkpoint)


@pytest.mark.parametrize("content", ["", "{", '{"files": 3}', "[]"])
def test_a_damaged_manifest_is_refused(checkpoint: Path, content: str) -> None:
    (checkpoint / manifest.MANIFEST).write_text(content)
    with pytest.raises(CorruptCheckpoint, match="not a manifest"):
        manifest.read(checkpoint)


def test_a_folder_without_a_manifest_was_never_finished(tmp_path: Path) -> None:
    with pytest.raises(CorruptCheckpoint) as refused:
        manifest.verify(tmp_path)
    assert str(refused.value) == (
        f"{tmp_path / manifest.MANIFEST}: expected a manifest, but it cannot be read (No such file or directory): "
        f"the checkpoint was never finished. Delete {tmp_path} and run again."
    )


def test_an_unchanged_file_is_hashed_once(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest.verify(checkpoint)
    hashed: list[str] = []
    original = manifest.sha256_of

    def recording(path: Path) -> str:
        hashed.append(path.name)
        return original(path)

    monkeypatch.setattr(manifest, "sha256_of", recording)
    manifest.verify(checkpoint)
    assert hashed == []
    os.utime(checkpoint / "config.json")
    manifest.verify(checkpoint)
    assert hashed == ["config.json"]


def test_a_read_only_folder_is_verified_without_a_stamp(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, value: object) -> None:
        raise PermissionError(path)

    (checkpoint / manifest.STAMPS).unlink(missing_ok=True)
    monkeypatch.setattr(manifest, "write_json", refuse)
    assert manifest.verify(checkpoint).checkpoint == "tiny"
    assert not (checkpoint / manifest.STAMPS).exists()


def test_the_identity_follows_the_content() -> None:
    file = File(name="a", bytes=1, sha256="0" * 64)
    one = Manifest(checkpoint="c", source="s", architecture="a", parameters=1, files=(file,))
    other = one.model_copy(update={"files": (file.model_copy(update={"sha256": "1" * 64}),)})
    assert one.sha256 == Manifest.model_validate(one.model_dump(mode="json")).sha256
    assert one.sha256 != other.sha256


def test_the_list_of_checkpoints_has_each_layout_of_one(tmp_path: Path) -> None:
    """A checkpoint whole, and the same one cut for two ranks, have one name and lie in folders of their own."""
    whole = manifest.Manifest(checkpoint="mine", source="random://tiny-llama?seed=0", parameters=4, files=())
    cut = whole.model_copy(update={"layout": manifest.Layout(kind="tensor_parallel", ranks=2)})
    paths = []
    for folder, one in (("mine-0a", whole), ("mine-1b", cut)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "manifest.json").write_text(one.model_dump_json(), encoding="utf-8")
        paths.append(str(tmp_path / folder / "manifest.json"))
    assert main(["checkpoints", "--manifests", *paths, "--output", str(tmp_path / "checkpoints.json")]) == 0
    listed = json.loads((tmp_path / "checkpoints.json").read_text(encoding="utf-8"))
    assert {folder: (one["checkpoint"], one["layout"], one["ranks"]) for folder, one in listed.items()} == {
        "mine-0a": ("mine", "whole", 1),
        "mine-1b": ("mine", "tensor_parallel", 2),
    }
    assert listed["mine-0a"]["sha256"] != listed["mine-1b"]["sha256"]


def test_a_file_that_was_changed_behind_its_size_and_time_is_hashed_again(checkpoint: Path) -> None:
    """Its inode says when it was changed, whatever was set as its time."""
    manifest.verify(checkpoint)
    victim = sorted(checkpoint.glob("*.safetensors"))[0]
    stat = victim.stat()
    with victim.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        (last,) = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    os.utime(victim, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = victim.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (stat.st_size, stat.st_mtime_ns, stat.st_ino)
    with pytest.raises(CorruptCheckpoint, match=rf"{victim.name}: expected sha256"):
        manifest.verify(checkpoint)


def test_a_checkpoint_of_ranks_is_for_as_many_and_each_reads_its_own_files() -> None:
    tensors = {"w": manifest.Tensor(dtype="F32", shape=(1,))}
    names = [f"rank-{rank}-of-{ranks}-model.safetensors" for ranks in (2, 12) for rank in (0, 1, 10)]
    files = tuple(File(name=name, bytes=4, sha256="0" * 64, tensors=tensors) for name in names)
    layout = manifest.Layout(kind="tensor_parallel", ranks=2)
    cut = Manifest(
        checkpoint="c",
        source="s",
        parameters=1,
        layout=layout,
        files=(*files, File(name="rank-1-of-2-note", bytes=1, sha256="0" * 64)),
    )
    assert [file.name for file in cut.files_of(1)] == ["rank-1-of-2-model.safetensors"]
    assert cut.weight_bytes == 4 * len(files)
    cut.require_ranks(2)
    with pytest.raises(CorruptCheckpoint, match="c: expected a checkpoint cut for 4 ranks, found one for 2"):
        cut.require_ranks(4)
    with pytest.raises(CorruptCheckpoint, match="cut for 2 ranks, found a whole one"):
        cut.model_copy(update={"layout": manifest.Layout(ranks=2)}).require_ranks(2)


def test_a_name_that_no_file_can_have_is_a_missing_file(tmp_path: Path) -> None:
    for name in ("a" * 256, "\u00e9" * 128):
        assert manifest.problems(tmp_path, [File(name=name, bytes=1, sha256="0" * 64)]) == {name: "the file is missing"}
