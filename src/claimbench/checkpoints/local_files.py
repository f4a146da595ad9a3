"""Which files of a model folder or repository are a checkpoint: config, tokenizer and safetensors, nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from claimbench.checkpoints import weight_files
from claimbench.checkpoints.weight_files import CONFIG
from claimbench.errors import SourceError

CONFIG_BYTES = 10_000_000
"""What is larger is no config: the longest have a list for each of some hundred layers."""
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
TOKENIZER_OF_A_VERSION = re.compile(r"tokenizer\.[^/]+\.json")
"""tokenizer_config.json may name them as `fast_tokenizer_files`, and Transformers then takes that of its version."""


class Selection(NamedTuple):
    """Names of files in one folder."""

    names: list[str]
    left_out: list[str] = []
    """Of other weights that lie beside them: Transformers does not read those either."""


def select(names: Collection[str], read: Callable[[str], str], where: str) -> Selection:
    """Those of `names` that make the checkpoint; `read` gives the text of one of them.

    Raises:
        SourceError: there are no weights to take, only pickles, or part of them is missing.
    """
    weights = weight_files.choose(names, read, where)
    _require_sides(names, where)
    sides = sorted(name for name in names if is_side_file(name))
    return Selection([CONFIG, *weights, *sides], weight_files.left_out(names, weights))


def require_usable(names: Collection[str], read: Callable[[str], str], where: str) -> None:
    """What `select` raises, as far as the names of the files and config.json tell."""
    weight_files.first_of(names, read, where)
    _require_sides(names, where)


def _require_sides(names: Collection[str], where: str) -> None:
    if CONFIG not in names:
        raise SourceError(f"{where}: expected a file {CONFIG}, which is missing")
    if not any(map(_is_vocabulary, names)):
        raise SourceError(f"{where}: expected a tokenizer (tokenizer.json), found none")


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
    if TOKENIZER_OF_A_VERSION.fullmatch(name):
        return True
    return name in ("generation_config.json", *TOKENIZER_FILES) or _is_vocabulary(name)


def is_read(name: str) -> bool:
    """Whether a library that loads a folder would look at a file of this name in it."""
    return name in (CONFIG, weight_files.ADAPTER) or weight_files.holds_weights(name) or is_side_file(name)


def _is_vocabulary(name: str) -> bool:
    return name in VOCABULARY_FILES or (name.endswith(TIKTOKEN) and "/" not in name)


def wanted_files(path: Path) -> list[Path]:
    """The files of the local checkpoint at `path`, a folder or one .gguf file.

    Raises:
        SourceError: there is nothing of that kind.
    """
    return [path] if path.suffix == ".gguf" and path.is_file() else [path / name for name in select_in(path).names]


def select_in(path: Path) -> Selection:
    """What makes the checkpoint in the folder at `path`. Raises SourceError as `wanted_files` does."""
    if path.is_file():
        raise SourceError(f"file://{path}: expected a folder or a .gguf file")
    if not path.is_dir():
        raise SourceError(f"file://{path}: there is no such file or folder")
    return select(*_folder(path))


def weights_in(path: Path) -> list[str]:
    """Names of the files in the folder at `path` that hold its weights. Raises SourceError where it has none."""
    return [name for name in weight_files.choose(*_folder(path)) if name.endswith(".safetensors")]


def _folder(path: Path) -> tuple[set[str], Callable[[str], str], str]:
    names = {entry.name for entry in path.iterdir() if entry.is_file()}
    return names, lambda name: (path / name).read_text(encoding="utf-8"), f"file://{path}"
