"""Which of a folder's files hold its weights: those that Transformers' `from_pretrained` reads, and no others.

Its order: the file or index that config.json names as `transformers_weights`; model.safetensors, even beside an index;
the shards of model.safetensors.index.json, in the order of their names. Where it would read something else again, such
as an adapter's own base model, the folder is refused, and so is what it would unpickle. Source: transformers 5.17 to
5.23, modeling_utils.py: `_get_resolved_checkpoint_files`, distributed/checkpoint.py and integrations/peft.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from pathlib import PurePosixPath
from typing import Any

from claimbench.errors import SourceError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
INDEXES = ".safetensors.index.json"
ADAPTER = "adapter_config.json"
DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
"""Parts of tensors, as ranks wrote them: beside them, a local folder's other files are not looked at."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def choose(names: Collection[str], read: Callable[[str], str], where: str) -> list[str]:
    """Those of `names` that hold the weights, an index before its shards; `read` gives the text of one of them.

    Raises:
        SourceError: there are none to take, only pickles, part of them is missing, or which are meant is not clear.
    """
    first = first_of(names, read, where)
    chosen = [first, *_shards(first, read, where)] if first.endswith(INDEXES) else [first]
    _require_each(chosen[1:], names, where, named_by=first)
    return chosen


def first_of(names: Collection[str], read: Callable[[str], str], where: str) -> str:
    """The file that holds the weights, or the index of those that do; `read` is asked for config.json alone.

    Raises:
        SourceError: there is none to take, only pickles, or which is meant is not clear.
    """
    _require_plain(names, where)
    named = _named_by_config(names, read, where)
    if named:
        _require_each([named], names, where, named_by=CONFIG)
        return named
    found = next((one for one in (WEIGHTS, INDEX) if one in names), None)
    if found is None:
        raise SourceError(
            f"{where}: {pickles_alone(names) or f'expected {WEIGHTS} or {INDEX}, found neither'}{hint(names)}"
        )
    return found


def _require_each(wanted: Collection[str], names: Collection[str], where: str, named_by: str) -> None:
    """Raises SourceError where one of the files that `named_by` names is not there."""
    for name in wanted:
        if "/" in name or name not in names:
            raise SourceError(
                f"{where}: expected a file {name}, which {named_by} names, beside {CONFIG}: it is missing"
            )


def left_out(names: Collection[str], chosen: Collection[str]) -> list[str]:
    """What else in the folder holds weights, or says which files do, and is not read."""
    found = (name for name in names if "/" not in name and holds_weights(name))
    return sorted(name for name in found if name not in chosen)


def holds_weights(name: str) -> bool:
    return name.endswith((".safetensors", *PICKLES)) or ".safetensors.index" in name


def _require_plain(names: Collection[str], where: str) -> None:
    whole = next((name for name in (WEIGHTS, INDEX) if name in names), None)
    if ADAPTER in names and whole:
        raise SourceError(
            f"{where}: {ADAPTER} lies beside {whole}: Transformers loads an adapter over them, or over another model, "
            "where PEFT is installed: merge the adapter into the weights, or take its files out of a copy"
        )
    parts = sorted(filter(DISTRIBUTED.fullmatch, names))
    if parts:
        raise SourceError(
            f"{where}: {parts[0]} is a rank's part of a distributed checkpoint, which Transformers joins whatever lies "
            "beside it: load the model and save it as a whole"
        )


def _named_by_config(names: Collection[str], read: Callable[[str], str], where: str) -> str | None:
    """What config.json says in place of the usual names; nothing where there is no config."""
    config = _config(read) if CONFIG in names else {}
    if isinstance(config.get("configuration_files"), list):
        raise SourceError(
            f"{where}: {CONFIG} names other configs by version of Transformers (configuration_files): name a revision "
            "with a single config"
        )
    named = config.get("transformers_weights")
    if named is None:
        return None
    path = PurePosixPath(named) if isinstance(named, str) else PurePosixPath()
    if not path.name.endswith((".safetensors", INDEXES)) or str(path) != path.name:
        raise SourceError(
            f"{where}: {CONFIG}: transformers_weights: expected the name of a .safetensors file or of its index beside "
            f"it, got {named!r}"
        )
    return path.name


def _config(read: Callable[[str], str]) -> dict[str, Any]:
    """Empty where it is no mapping: whoever reads it for its numbers says what is wrong with it."""
    try:
        found = json.loads(read(CONFIG))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _shards(index: str, read: Callable[[str], str], where: str) -> list[str]:
    try:
        shards = sorted(set(json.loads(read(index))["weight_map"].values()))
        if shards and all(isinstance(name, str) and name.endswith(".safetensors") for name in shards):
            return shards
        error: Exception = ValueError("expected names of safetensors files")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as found:
        error = found
    raise SourceError(f"{where}: {index} is not an index of shards ({error})")


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
    if indexes := sorted(name for name in names if ".safetensors.index" in name):
        return f": {indexes[0]} is the index of a variant: rename it to {INDEX} if that one is meant"
    if shards := sorted(name for name in names if name.endswith(".safetensors")):
        one = f"rename {shards[0]} to {WEIGHTS}" if len(shards) == 1 else "its index is missing, fetch it again"
        return f": {len(shards)} of its files are safetensors without an index: {one}"
    return ""
