"""Fetched files -> one folder that every backend can load: safetensors shards, config, tokenizer and a manifest.

Safetensors stay as they arrived: their files are linked, and the manifest is written from their headers. Whatever must
be written anew (a GGUF, random weights, a part of the layers, parts for several ranks, smaller files) streams from its
source to the disk, so memory stays at one tensor and the model is never held. The manifest is written last: without it
the folder does not count as a checkpoint.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import NamedTuple

from claimbench.checkpoints import (
    cards,
    disk,
    fetch,
    gguf_weights,
    manifest,
    model_config,
    random_weights,
    safetensors_file,
    tensors,
    tokenizer,
    tp_partition,
)
from claimbench.checkpoints.local_files import is_read, is_side_file, link
from claimbench.checkpoints.manifest import File, Layout, Manifest
from claimbench.checkpoints.safetensors_file import StreamedTensor
from claimbench.checkpoints.sources import RandomSource, parse
from claimbench.checkpoints.weight_files import CONFIG, INDEX
from claimbench.cost_model import cost
from claimbench.cost_model.cost import Architecture, ModelConfig
from claimbench.errors import CorruptCheckpoint, SourceError
from claimbench.schema.cell import Checkpoint
from claimbench.schema.json_file import write_json
from claimbench.system import turns

USUAL_SHARD_BYTES = 2_000_000_000
"""Of a file that is written here, at most, where params.yaml says nothing."""
DTYPE_NAMES = {code: name for name, code in safetensors_file.DTYPE_OF.items()}


LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
"""The number of a decoder's layer in the name of a tensor."""
TOWERS = ("vision", "visual", "audio", "image")


class Model(NamedTuple):
    """A checkpoint that is still spread over its source: the config, and tensors that are not read yet."""

    config: ModelConfig
    arch: Architecture | None
    """None: of no architecture that the project has a table of tensors for."""
    tensors: list[StreamedTensor]


def shard(checkpoint: Checkpoint, fetched: Path, folder: Path, max_shard_bytes: int | None = None) -> None:
    """Write the checkpoint in `fetched` to `folder`, at most `max_shard_bytes` a file (one tensor at least).

    Fetched files are verified first, and fetched again where they have been damaged since.

    Raises:
        SourceError: what was fetched is not what `checkpoint` declares, or the disk is full.
    """
    fetch.fetch(checkpoint, fetched)
    record = fetch.read(fetched)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with turns.alone(fetch.lock_of(folder), f"{checkpoint.name} to be written") as waited:
        if not (waited and _is_whole(checkpoint, folder)):
            _clear(folder)
            _write(checkpoint, fetched, record, folder, max_shard_bytes)
    cards.remember(checkpoint, folder)


def _is_whole(checkpoint: Checkpoint, folder: Path) -> bool:
    """Whether another run has written it just now; the name of its folder holds all that it follows from."""
    try:
        found = manifest.verify(folder)
    except CorruptCheckpoint:
        return False
    return (found.checkpoint, found.source) == (checkpoint.name, checkpoint.source)


def _write(
    checkpoint: Checkpoint, fetched: Path, record: fetch.Fetched, folder: Path, max_shard_bytes: int | None
) -> None:
    cut = checkpoint.keep_layers, checkpoint.tensor_parallel, max_shard_bytes
    if cut == (None, None, None) and any(file.name.endswith(".safetensors") for file in record.files):
        _link(checkpoint, fetched, record, folder)
        return
    model = _open(checkpoint, fetched, record)
    _require_declared(checkpoint, model.config, model.arch)
    arch = model.arch.kept(checkpoint.keep_layers) if model.arch else None
    why = tp_partition.refusal(arch, checkpoint.tensor_parallel or 1)
    if why:
        raise SourceError(f"{checkpoint.name}: {why}")
    layers = model_config.kept_layers(checkpoint, model.arch) if model.arch else checkpoint.keep_layers
    kept = _select(model, arch, checkpoint) if model.arch and arch else _first_layers(model, layers, checkpoint)
    disk.require_space(folder, sum(tensor.bytes for tensor in kept) + sum(file.bytes for file in _side_files(record)))
    with disk.explain_full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            special = _write_tokenizer(checkpoint, fetched, record, model.config, folder)
            _write_config(model.config, layers, kept, special, folder)
            if checkpoint.tensor_parallel is None or arch is None:
                layout, weights = Layout(), _write_shards(kept, folder, max_shard_bytes)
            else:
                layout, weights = _write_ranks(kept, arch, checkpoint.tensor_parallel, folder, max_shard_bytes)
            _write_manifest(checkpoint, record, sum(one.values for one in kept), layout, weights, folder)
        except BaseException:
            _clear(folder)
            raise


def _link(checkpoint: Checkpoint, fetched: Path, record: fetch.Fetched, folder: Path) -> None:
    """The fetched files themselves under their own names, with a manifest of what is in them."""
    config = cards.read_config(fetched / CONFIG)
    declared = checkpoint.architecture in cost.architecture_names()
    normal = model_config.normalise(config, checkpoint.source) if declared else config
    arch = model_config.parse(normal, checkpoint.source) if declared else None
    _require_declared(checkpoint, normal, arch)
    with disk.explain_full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        weights, values = [], dict[str, int]()
        for file in record.files:
            link(fetched / file.name, folder / file.name)
            if file.name.endswith(".safetensors"):
                found = safetensors_file.read(fetched / file.name)
                held = {one.name: manifest.Tensor(dtype=one.dtype, shape=one.shape) for one in found}
                weights.append(file.model_copy(update={"tensors": held}))
                values |= {one.name: one.values for one in found}  # the last file's count where two hold a tensor
        _write_manifest(checkpoint, record, sum(values.values()), Layout(), weights, folder)


def _require_declared(checkpoint: Checkpoint, config: ModelConfig, arch: Architecture | None) -> None:
    """Raises SourceError where the checkpoint is not of the shape that its entry in params.yaml names."""
    name = checkpoint.architecture
    if name is None:
        return
    if arch is not None and name in cost.architecture_names():
        model_config.require_declared(checkpoint, arch)
    elif name not in cost.shape_names() or cards.of_shape(name) != cards.card_of(config, checkpoint.source):
        raise SourceError(f"{checkpoint.name}: {checkpoint.source} is not a '{name}'")


def _open(checkpoint: Checkpoint, fetched: Path, record: fetch.Fetched) -> Model:
    source = parse(checkpoint.source)
    if isinstance(source, RandomSource):
        if source.architecture not in cost.architecture_names():
            named = isinstance(source.architecture, str)
            config = cost.config(str(source.architecture)) if named else cards.read_config(fetched / CONFIG)
            return Model(config, None, random_weights.of_any(source, config))
        config = model_config.normalise(cost.config(source.architecture), checkpoint.source)
        arch = model_config.parse(config, checkpoint.source)
        return Model(config, arch, random_weights.tensors(source, arch, config.get("initializer_range", 0.02)))
    ggufs = [file.name for file in record.files if file.name.endswith(".gguf")]
    if ggufs:
        return _with_table(*gguf_weights.read(fetched / ggufs[0]), checkpoint)
    files = [fetched / file.name for file in record.files if file.name.endswith(".safetensors")]
    stored = list({tensor.name: tensor for file in files for tensor in safetensors_file.read(file)}.values())
    unknown = next((one for one in stored if one.dtype not in safetensors_file.DTYPE_BYTES), None)
    if unknown:
        raise SourceError(
            f"{checkpoint.source}: {unknown.name} is of type {unknown.dtype}, which is not cut: leave its files whole "
            "(params.yaml: shard.max_shard_mb: null)"
        )
    return _with_table(cards.read_config(fetched / CONFIG), stored, checkpoint)


def _with_table(raw: ModelConfig, stored: list[StreamedTensor], checkpoint: Checkpoint) -> Model:
    """The architecture too, where the project has a table of its tensors and it matters which they are."""
    declared = checkpoint.architecture is not None or checkpoint.tensor_parallel is not None
    if not declared or raw["model_type"] not in model_config.CLASSES:
        return Model(raw, None, stored)  # whatever Transformers makes of its tensors, it makes of them cut
    config = model_config.normalise(raw, checkpoint.source)
    return Model(config, model_config.parse(config, checkpoint.source), stored)


def _first_layers(model: Model, layers: int | None, checkpoint: Checkpoint) -> list[StreamedTensor]:
    """The tensors of a model of any kind, without those of layers that are not kept."""

    def is_kept(name: str) -> bool:
        number = LAYER.search(name)
        return layers is None or number is None or int(number[1]) < layers

    if layers is not None and any(tower in one.name for one in model.tensors for tower in TOWERS):
        raise SourceError(f"{checkpoint.name}: keep_layers: {checkpoint.source} reads more than text: use all of it")
    there = 1 + max((int(match[1]) for one in model.tensors if (match := LAYER.search(one.name))), default=0)
    if layers is not None and layers > there:
        raise SourceError(f"{checkpoint.name}: keep_layers: expected at most {there}, got {layers}")
    return [one for one in model.tensors if is_kept(one.name)]


def _select(model: Model, arch: Architecture, checkpoint: Checkpoint) -> list[StreamedTensor]:
    """The model's tensors under their full names in the order of `arch`, which must be all there and of its shapes."""
    assert model.arch is not None, "see `_first_layers`"
    expected, whole = tensors.shapes(arch), tensors.shapes(model.arch)
    found: dict[str, StreamedTensor] = {}
    for tensor in model.tensors:
        name = tensors.full_name(arch, tensor.name)
        if tensors.IGNORED.search(name) or (name == "lm_head.weight" and arch.tied):
            continue
        if name not in whole:
            raise SourceError(f"{checkpoint.source}: '{checkpoint.architecture}' has no tensor {tensor.name}")
        if tensor.shape != whole[name]:
            raise SourceError(f"{checkpoint.source}: {name}: expected shape {whole[name]}, arrived {tensor.shape}")
        if tensor.dtype not in safetensors_file.FLOATS:
            known = ", ".join(safetensors_file.FLOATS)
            raise SourceError(f"{checkpoint.source}: {name}: expected one of {known}, arrived {tensor.dtype}")
        found[name] = tensor._replace(name=name)
    missing = [name for name in whole if name not in found]
    if missing:
        raise SourceError(f"{checkpoint.source}: the tensor {missing[0]} is missing ({len(missing)} in all)")
    return [found[name] for name in expected]


def _write_tokenizer(
    checkpoint: Checkpoint, fetched: Path, record: fetch.Fetched, config: ModelConfig, folder: Path
) -> dict[str, int]:
    """Write or copy the tokenizer; returns special token ids that the config must take over."""
    if isinstance(parse(checkpoint.source), RandomSource):
        text = config.get("text_config") or config
        context = text.get("max_position_embeddings") or text.get("n_positions") or text.get("seq_length") or 2048
        return tokenizer.write_byte_tokenizer(folder, text["vocab_size"], context)
    ggufs = [file.name for file in record.files if file.name.endswith(".gguf")]
    if ggufs:
        tokenizer.write_from_gguf(fetched / ggufs[0], folder)
    for file in _side_files(record):
        shutil.copyfile(fetched / file.name, folder / file.name)
    return {}


def _side_files(record: fetch.Fetched) -> list[File]:
    return [file for file in record.files if is_side_file(file.name)]


def _write_config(
    config: ModelConfig, layers: int | None, kept: Sequence[StreamedTensor], special: dict[str, int], folder: Path
) -> None:
    """`dtype` is the type of most values that are not quantized; without any, the config's own stays."""
    sizes: dict[str, int] = {}
    for tensor in kept:
        if tensor.dtype in DTYPE_NAMES:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.values
    dtype = {"dtype": DTYPE_NAMES[max(sizes, key=lambda code: sizes[code])]} if sizes else {}
    written = (model_config.with_layers(config, layers) if layers else config) | special | dtype
    written.pop("transformers_weights", None)  # they are under the usual names now
    text = json.dumps(written, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def split(
    kept: Sequence[StreamedTensor],
    max_shard_bytes: int,
    size: Callable[[StreamedTensor], int] = lambda tensor: tensor.bytes,
) -> list[list[StreamedTensor]]:
    """`kept` cut, in order, into groups of at most `max_shard_bytes`; a larger tensor gets a group of its own."""
    groups: list[list[StreamedTensor]] = []
    room = 0
    for tensor in kept:
        if not groups or size(tensor) > room:
            groups.append([])
            room = max_shard_bytes
        groups[-1].append(tensor)
        room -= size(tensor)
    return groups


def _write_shards(kept: Sequence[StreamedTensor], folder: Path, max_shard_bytes: int | None) -> list[File]:
    groups = split(kept, max_shard_bytes or USUAL_SHARD_BYTES)
    files = []
    for number, group in enumerate(groups, start=1):
        files.append(safetensors_file.write(folder / f"model-{number:05d}-of-{len(groups):05d}.safetensors", group))
    weight_map = {name: file.name for file in files for name in file.tensors}
    total = sum(tensor.bytes for tensor in kept)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return files


class _Part(NamedTuple):
    """A rank's part of a tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * safetensors_file.DTYPE_BYTES[self.dtype]


def _write_ranks(
    kept: Sequence[StreamedTensor], arch: Architecture, ranks: int, folder: Path, max_shard_bytes: int | None
) -> tuple[Layout, list[File]]:
    """Each tensor streams by once and falls into the files of all ranks; no rank's file is above the limit."""
    found = tp_partition.partitions(arch, ranks)
    groups = split(
        kept, max_shard_bytes or USUAL_SHARD_BYTES, lambda tensor: _part(tensor, found[tensor.name], 0).bytes
    )
    files: list[File] = []
    for number, group in enumerate(groups, start=1):
        with ExitStack() as stack:
            writers = []
            for rank in range(ranks):
                name = f"{manifest.rank_prefix(rank, ranks)}{number:05d}-of-{len(groups):05d}.safetensors"
                own = [_part(tensor, found[tensor.name], rank) for tensor in group]
                writers.append(stack.enter_context(safetensors_file.Writer(folder / name, own)))
            by_name = {tensor.name: tensor for tensor in group}
            for place, stored in enumerate(writers[0].order):
                for rank, part in tp_partition.parts(by_name[stored.name], found[stored.name], ranks):
                    writers[rank].add(part)
                for writer in writers:
                    writer.end(writer.order[place])
        files += [writer.described() for writer in writers]
    return Layout(kind="tensor_parallel", ranks=ranks, cuts={name: cut.kind for name, cut in found.items()}), files


def _part(tensor: StreamedTensor, cut: tp_partition.Partition, rank: int) -> _Part:
    return _Part(tensor.name, tensor.dtype, cut.share(tensor.shape, rank))


def _write_manifest(
    checkpoint: Checkpoint,
    record: fetch.Fetched,
    parameters: int,
    layout: Layout,
    weights: list[File],
    folder: Path,
) -> None:
    written = {file.name for file in weights}
    others = [path for path in sorted(folder.iterdir()) if path.name not in written and is_read(path.name)]
    manifest.write(
        folder,
        Manifest(
            checkpoint=checkpoint.name,
            source=checkpoint.source,
            revision=record.revision,
            architecture=checkpoint.architecture,
            keep_layers=checkpoint.keep_layers,
            layout=layout,
            parameters=parameters,
            files=(*(manifest.describe(path) for path in others), *weights),
            left_out=record.left_out,
        ),
    )


def _clear(folder: Path) -> None:
    """Take the manifest away first, then what an earlier run wrote, and what would be read in its place."""
    if not folder.is_dir():
        return
    (folder / manifest.MANIFEST).unlink(missing_ok=True)
    for path in folder.iterdir():
        if is_read(path.name) or path.name == manifest.STAMPS or path.name.endswith(".partial"):
            path.unlink()
