"""Which files of a model folder or repository are a checkpoint: config, tokenizer and safetensors, nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path

from claimbench.errors import SourceError

CONFIG = "config.json"
CONFIG_BYTES = 10_000_000
"""What is larger is no config: the longest have a list for each of some hundred layers."""
ADAPTER = "adapter_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
VOCABULARY_FILES = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"),
    *("spiece.model", "sentencepiece.bpe.model", "tekken.json", "tiktoken.model"),
)
"""Each holds a vocabulary, so a folder with one of them has a tokenizer."""
TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)
"""All that a tokenizer may consist of, beside files of tiktoken, whose names are free."""
TIKTOKEN = ".tiktoken"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def select(names: Collection[str], read: Callable[[str], str], where: str) -> list[str]:
    """Those of `names` that make the checkpoint; `read` gives the text of one of them.

    Raises:
        SourceError: there are no weights to take, only pickles, or part of them is missing.
    """
    if WEIGHTS in names:  # beside an index as well: Transformers takes it too
        weights = [WEIGHTS]
    elif INDEX in names:
        shards = _shards(read, where)
        weights = [INDEX, *shards]
    else:
        raise SourceError(
            f"{where}: {pickles_alone(names) or f'expected {WEIGHTS} or {INDEX}, found neither'}{hint(names)}"
        )
    wanted = [CONFIG, *weights]
    for name in wanted:
        if "/" in name or name not in names:
            raise SourceError(f"{where}: expected a file {name}, which is missing")
    if not any(map(_is_vocabulary, names)):
        raise SourceError(f"{where}: expected a tokenizer (tokenizer.json), found none")
    return wanted + sorted(name for name in names if is_side_file(name))


def _shards(read: Callable[[str], str], where: str) -> list[str]:
    try:
        shards = sorted(set(json.loads(read(INDEX))["weight_map"].values()))
        if all(isinstance(name, str) for name in shards):
            return shards
        error: Exception = ValueError("a file's name is no text")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as found:
        error = found
    raise SourceError(f"{where}: {INDEX} is not an index of shards ({error})")


def pickles_alone(names: Collection[str]) -> str | None:
    """Why the weights of a folder with `names` are not loaded, where that is so; None where some are safetensors."""
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if not pickles or any(name.endswith((".safetensors", ".gguf")) for name in names):
        return None
    return (
        f"expected {WEIGHTS}, found only {pickles[0]}: pickle files can run code and are never loaded; ask for a "
        "revision with safetensors, or convert them yourself (docs/checkpoints.md)"
    )


def hint(names: Collection[str]) -> str:
    """What else a folder without the usual files may be, and what then to do."""
    if ADAPTER in names:
        return ": it is an adapter, which changes another model: merge it into that one first"
    if ggufs := sorted(name for name in names if name.endswith(".gguf")):
        return f": name one of its GGUF files, such as {ggufs[0]}"
    if "consolidated.safetensors" in names or "consolidated.00.pth" in names:
        return ": consolidated files are in a format of their maker's own tools: use a revision in Transformers' format"
    if shards := sorted(name for name in names if name.endswith(".safetensors")):
        one = f"rename {shards[0]} to {WEIGHTS}" if len(shards) == 1 else "its index is missing, fetch it again"
        return f": {len(shards)} of its files are safetensors without an index: {one}"
    return ""


def link(target: Path, place: Path) -> None:
    """A hard link outlives the cleaning of a cache; across file systems a symbolic one has to do."""
    place.unlink(missing_ok=True)
    try:
        place.hardlink_to(target.resolve())
    except OSError:
        place.symlink_to(target.resolve())


def has_tokenizer(folder: Path) -> bool:
    return bool(vocabularies(folder))


def vocabularies(folder: Path) -> list[str]:
    """Names of the files in `folder` that hold a vocabulary."""
    return sorted(path.name for path in folder.iterdir() if _is_vocabulary(path.name)) if folder.is_dir() else []


def is_side_file(name: str) -> bool:
    """Whether it is fetched from a hub or linked from a folder beside weights and config, and copied by `shard`."""
    return name in ("generation_config.json", *TOKENIZER_FILES) or _is_vocabulary(name)


def _is_vocabulary(name: str) -> bool:
    return name in VOCABULARY_FILES or (name.endswith(TIKTOKEN) and "/" not in name)


def wanted_files(path: Path) -> list[Path]:
    """The files of the local checkpoint at `path`, a folder or one .gguf file.

    Raises:
        SourceError: there is nothing of that kind.
    """
    if path.is_file():
        if path.suffix != ".gguf":
            raise SourceError(f"file://{path}: expected a folder or a .gguf file")
        return [path]
    if not path.is_dir():
        raise SourceError(f"file://{path}: there is no such file or folder")
    names = {entry.name for entry in path.iterdir() if entry.is_file()}
    chosen = select(names, lambda name: (path / name).read_text(encoding="utf-8"), f"file://{path}")
    return [path / name for name in chosen]
