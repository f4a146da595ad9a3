"""A folder in a wheel, and a file in parts over several, through a real pip from a local folder: no network."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from claimbench.checkpoints import disk, fetch, manifest
from claimbench.checkpoints.shard import shard
from claimbench.checkpoints.sources import WheelSource, parse
from claimbench.errors import SourceError
from claimbench.schema.cell import Checkpoint

CONTENT = b"GGUF" + hashlib.shake_256(b"a file in parts").digest(9_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SOURCE = "pypi://cut-part{1..3}==1.0/model.q4.gguf.part{00..02}"


def add_wheel(index: Path, package: str, files: dict[str, bytes]) -> Path:
    name = package.replace("-", "_")
    path = index / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, content in files.items():
            archive.writestr(file, content)
        archive.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(
            f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip looks for wheels in, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def add_parts(index: Path, *parts: bytes) -> None:
    for number, part in enumerate(parts):
        files = {f"cut_part{number + 1}/data/model.q4.gguf.part{number:02d}": part}
        add_wheel(index, f"cut-part{number + 1}", files)


def get(source: str, folder: Path) -> fetch.Fetched:
    fetch.fetch(Checkpoint(name="cut", source=source), folder)
    return fetch.read(folder)


def test_ranges_count_in_step_and_keep_their_zeros() -> None:
    source = parse(f"{SOURCE}?sha256={SHA256}")
    assert isinstance(source, WheelSource)
    assert source.file_name == "model.q4.gguf"
    assert [(part.package, str(part.path)) for part in source.parts] == [
        ("cut-part1", "model.q4.gguf.part00"),
        ("cut-part2", "model.q4.gguf.part01"),
        ("cut-part3", "model.q4.gguf.part02"),
    ]
    backwards = parse(f"pypi://one==1.0/data/{{11..9}}.bin?sha256={SHA256}")
    assert isinstance(backwards, WheelSource)
    assert [str(part.path) for part in backwards.parts] == ["data/11.bin", "data/10.bin", "data/9.bin"]
    assert backwards.file_name == "model.gguf"


def test_a_path_without_a_suffix_is_a_folder() -> None:
    source = parse("pypi://tiny-weights==1.0/tiny/model-v1.2")
    assert source == WheelSource("tiny-weights", "1.0", PurePosixPath("tiny/model-v1.2"))
    assert source.is_folder


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (SOURCE, r"expected \?sha256=<64 hex digits> of the whole file"),
        ("pypi://a{1..3}==1.0/b{1..4}.gguf?sha256=" + SHA256, r"ranges of one length, got \{1..3\} and \{1..4\}"),
        ("pypi://a==1.0/b{1..1}.gguf?sha256=" + SHA256, "from 2 to 1000 parts, got 1"),
        ("pypi://a==1.0/b{0..999999999}.gguf?sha256=" + SHA256, "from 2 to 1000 parts, got 1001"),
        ("pypi://a==1.0/b{1..}.gguf?sha256=" + SHA256, r"with ranges such as \{1..4\}"),
        ("pypi://a==1.0/b{1,2}.gguf?sha256=" + SHA256, r"with ranges such as \{1..4\}"),
        ("pypi://a==1.0/../b.gguf", "expected a path in the wheel"),
        ("pypi://a==1.0/b.gguf?sha256=12", r"pypi://package==version/path\.gguf"),
        ("pypi://a==1.0/b.gguf?seed=1", r"pypi://package==version/path\.gguf"),
        ("pypi://a=={1..2}/b.gguf", r"pypi://package==version/path\.gguf"),
        ("pypi://a==1.0/model.safetensors", "expected path.gguf, or a folder"),
        ("pypi://a==1.0/folder?sha256=" + SHA256, "a folder, which has no sha256"),
    ],
)
def test_what_is_no_file_in_parts_is_one_sentence(source: str, words: str) -> None:
    with pytest.raises(SourceError, match=words) as refused:
        parse(source)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("cuts", [(3000, 6000), (2000, 2001)])
def test_a_file_in_parts_is_joined_and_checked_as_a_whole(index: Path, tmp_path: Path, cuts: tuple[int, int]) -> None:
    add_parts(index, CONTENT[: cuts[0]], CONTENT[cuts[0] : cuts[1]], CONTENT[cuts[1] :])
    record = get(f"{SOURCE}?sha256={SHA256}", tmp_path / "fetched")
    assert [(file.name, file.bytes, file.sha256) for file in record.files] == [("model.q4.gguf", len(CONTENT), SHA256)]
    assert (tmp_path / "fetched/model.q4.gguf").read_bytes() == CONTENT
    assert {path.name for path in (tmp_path / "fetched").iterdir()} == {
        *("model.q4.gguf", "source.json", manifest.STAMPS)
    }


def test_parts_may_lie_in_one_wheel_or_have_one_name(index: Path, tmp_path: Path) -> None:
    add_wheel(index, "one", {"one/a.gguf.1": CONTENT[:4000], "one/a.gguf.2": CONTENT[4000:]})
    for number, part in enumerate((CONTENT[:4000], CONTENT[4000:])):
        add_wheel(index, f"same-{number}", {"model.gguf": part})
    for source in ("pypi://one==1.0/a.gguf.{1..2}", "pypi://same-{0..1}==1.0/model.gguf"):
        record = get(f"{source}?sha256={SHA256}", tmp_path / "fetched")
        assert record.files[0].sha256 == SHA256


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((CONTENT[:3000], CONTENT[6000:], CONTENT[3000:6000]), "in another's place?"),
        ((CONTENT[:3000], CONTENT[3000:5999], CONTENT[6000:]), f"of {len(CONTENT) - 1:,} bytes in 3 files: is a part"),
        ((CONTENT[:3000], CONTENT[3000:6000], b""), "of 6,000 bytes in 3 files: is a part missing, short"),
        ((CONTENT[3000:6000], CONTENT[:3000], CONTENT[6000:]), "the beginning of a GGUF file in the first part"),
        ((CONTENT[:3000], CONTENT[:3000], CONTENT[6000:]), "part01: expected part 2 of a file, got the beginning of"),
        ((b"", CONTENT, b""), "the beginning of a GGUF file in the first part, got b''"),
        ((CONTENT[:3000], CONTENT[3000:]), r"pypi://cut-part3==1.0: pip could not download it"),
    ],
)
def test_parts_that_do_not_make_the_whole_are_one_sentence_and_leave_nothing(
    index: Path, tmp_path: Path, parts: tuple[bytes, ...], words: str
) -> None:
    add_parts(index, *parts)
    with pytest.raises(SourceError, match=re.escape(words)) as refused:
        get(f"{SOURCE}?sha256={SHA256}", tmp_path / "fetched")
    assert "\n" not in str(refused.value)
    assert list((tmp_path / "fetched").iterdir()) == []


def test_a_part_that_its_wheel_lacks_is_named(index: Path, tmp_path: Path) -> None:
    add_parts(index, CONTENT[:3000], CONTENT[3000:6000])
    add_wheel(index, "cut-part3", {"cut_part3/model.q4.gguf.part99": CONTENT[6000:]})
    with pytest.raises(SourceError, match=r"one file model\.q4\.gguf\.part02, found 0; \.part02 files in it: none"):
        get(f"{SOURCE}?sha256={SHA256}", tmp_path / "fetched")
    assert list((tmp_path / "fetched").iterdir()) == []


def test_a_damaged_part_is_one_sentence(index: Path, tmp_path: Path) -> None:
    add_parts(index, CONTENT[:3000], CONTENT[3000:6000], CONTENT[6000:])
    wheel = index / "cut_part2-1.0-py3-none-any.whl"
    damaged = bytearray(wheel.read_bytes())
    damaged[200:260] = bytes(60)
    wheel.write_bytes(damaged)
    with pytest.raises(SourceError, match=r"cut_part2-1\.0-py3-none-any\.whl: not a whole wheel"):
        get(f"{SOURCE}?sha256={SHA256}", tmp_path / "fetched")
    assert list((tmp_path / "fetched").iterdir()) == []


def test_a_file_in_one_piece_may_be_pinned_too(index: Path, tmp_path: Path) -> None:
    add_wheel(index, "one", {"one/a.gguf": CONTENT})
    assert get(f"pypi://one==1.0/a.gguf?sha256={SHA256}", tmp_path / "right").files[0].sha256 == SHA256
    with pytest.raises(SourceError, match=f"expected sha256 {'0' * 64}, arrived {SHA256}"):
        get(f"pypi://one==1.0/a.gguf?sha256={'0' * 64}", tmp_path / "wrong")


@pytest.fixture
def model(tmp_path: Path) -> dict[str, bytes]:
    """The files of a checkpoint with two shards."""
    random = Checkpoint(name="tiny", source="random://tiny-llama", architecture="tiny-llama")
    shard(random, tmp_path / "nothing", tmp_path / "model", max_shard_bytes=200_000)
    return {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}


def test_a_folder_in_a_wheel_is_a_checkpoint(index: Path, tmp_path: Path, model: dict[str, bytes]) -> None:
    files = {f"tiny/model-v1.2/{name}": content for name, content in model.items()}
    add_wheel(index, "tiny", files | {"tiny/__init__.py": b"", "tiny/model-v1.2/extra/config.json": b"{}"})
    source = "pypi://tiny==1.0/model-v1.2"
    record = get(source, tmp_path / "fetched")
    taken = {file.name: (tmp_path / "fetched" / file.name).read_bytes() for file in record.files}
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} < taken.keys() < model.keys()
    assert taken == {name: model[name] for name in taken}
    shard(Checkpoint(name="tiny", source=source), tmp_path / "fetched", tmp_path / "out")
    assert manifest.verify(tmp_path / "out").parameters == manifest.read(tmp_path / "model").parameters


def test_a_folder_that_is_no_checkpoint_is_one_sentence(index: Path, tmp_path: Path, model: dict[str, bytes]) -> None:
    del model["model-00002-of-00002.safetensors"]
    add_wheel(index, "short", {f"short/{name}": content for name, content in model.items()})
    add_wheel(index, "pickled", {"pickled/config.json": b"{}", "pickled/pytorch_model.bin": b"x"})
    for source, words in (
        ("pypi://short==1.0/short", r"pypi://short==1\.0: expected a file model-00002-of-00002\.safetensors"),
        ("pypi://short==1.0/other", r"expected one folder other with a config\.json, found 0; such folders: short"),
        ("pypi://pickled==1.0/pickled", "pickle files can run code and are never loaded"),
    ):
        with pytest.raises(SourceError, match=words) as refused:
            get(source, tmp_path / "fetched")
        assert "\n" not in str(refused.value)
        assert list((tmp_path / "fetched").iterdir()) == []


def test_too_little_space_is_found_before_a_part_is_joined(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_parts(index, CONTENT[:3000], CONTENT[3000:6000], CONTENT[6000:])
    usage = disk.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(SourceError, match="of free space"):
        get(f"{SOURCE}?sha256={SHA256}", tmp_path / "fetched")
    assert list((tmp_path / "fetched").iterdir()) == []
