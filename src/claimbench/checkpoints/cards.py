"""What is known of a source before its weights are fetched: the commit that it stands for, and its model's card.

A config has a few kilobytes, so the hub is asked for it alone, and a local one is read. Counting takes seconds, in a
process of its own, so that planning imports no torch. Both are remembered below `.claimbench/cards`: a branch stands
for the commit that it was at when it was first asked for, until that file is deleted.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from claimbench.checkpoints import counting, fetch, gguf_config, hub, loaded_model, manifest, safetensors_file
from claimbench.checkpoints.local_files import CONFIG_BYTES, require_usable, select_in
from claimbench.checkpoints.model_config import method_of
from claimbench.checkpoints.sources import HubSource, LocalSource, RandomSource, parse
from claimbench.checkpoints.stored import Entry, sums, with_stored_bytes
from claimbench.checkpoints.weight_files import CONFIG, pickles_alone
from claimbench.cost_model import cost
from claimbench.cost_model.cost import ModelConfig
from claimbench.errors import SourceError
from claimbench.schema import plain_file
from claimbench.schema.card import Card, StoredBytes
from claimbench.schema.cell import Checkpoint
from claimbench.schema.json_file import digest, parse_json, write_json

logger = logging.getLogger(__name__)

FOLDER = loaded_model.FOLDER
COUNTING_S = 120.0
LONGEST = 10_000
"""Layers. A config that asks for more is a mistake, and counting them would never end."""


class Known(NamedTuple):
    card: Card | None = None
    content: str | None = None
    """The hub's commit, where the source is or names a repository: a branch moves."""
    unavailable: str | None = None
    """Why its weights are not loaded, where that is known already."""


def find(source: str, keep_layers: int | None = None, counted: bool = True) -> Known:
    """What is known of `source` now; its card only where it is to be `counted`.

    Nothing where its config lies inside a download, and where the hub does not answer and did not before.

    Raises:
        SourceError: it has a config that is not one of a model that generates text, or no weights that can be read.
    """
    meant = parse(source)
    if isinstance(meant, LocalSource):
        return _here(meant.path, keep_layers, counted)
    model = meant.architecture if isinstance(meant, RandomSource) else meant
    if isinstance(model, str):
        return Known(of_shape(model, keep_layers))
    if not isinstance(model, HubSource):
        return Known()
    if not counted and hub.is_commit(model.revision):
        return Known(None, model.revision)
    found = on_hub(model, loads_weights=not isinstance(meant, RandomSource))
    if found is None:
        return Known()
    pickles = found.unavailable if not isinstance(meant, RandomSource) else None
    counts = found.config and counted and not pickles
    card = card_of(found.config, source, keep_layers) if counts else None
    if card and not isinstance(meant, RandomSource):
        card = card.model_copy(update={"stored_bytes": found.stored_bytes})
    stored = found.stored_bytes.model_dump(mode="json") if found.stored_bytes else None
    write_json(_remembered(model), found._asdict() | {"stored_bytes": stored})  # a branch with a mistake: ask again
    return Known(card, found.commit, f"{source}: {pickles}" if pickles else None)


def _here(place: Path, keep_layers: int | None, counted: bool) -> Known:
    """A folder that is not there may be one whose results are: it is told of when it is to be loaded."""
    where = f"file://{place}"
    if place.suffix == ".gguf" and place.is_file():
        return Known(card_of(_in_gguf(place), where, keep_layers) if counted else None)
    if not place.exists():
        return Known()
    pickles = pickles_alone([entry.name for entry in place.iterdir()]) if place.is_dir() else None
    if not pickles:
        _require_whole(place)
    unavailable = f"{where}: {pickles}" if pickles else None
    if not counted or not (place / CONFIG).is_file():
        return Known(None, None, unavailable)
    card = card_of(read_config(place / CONFIG, where), where, keep_layers)
    return Known(with_stored_bytes(card, place), None, unavailable)


def _require_whole(folder: Path) -> None:
    """Raises SourceError where there is no checkpoint in `folder`, or a file is shorter than its header says."""
    for name in select_in(folder).names:
        if name.endswith(".safetensors"):
            safetensors_file.read_sizes(folder / name)


def remember(checkpoint: Checkpoint, folder: Path) -> None:
    """Count the model in `folder` now where nothing is known of it yet, and not while others wait for their turn."""
    if cost.decoder_of(checkpoint) is None:
        with suppress(SourceError):
            card_of(read_config(folder / CONFIG), checkpoint.source)


def of_shape(name: str, keep_layers: int | None = None) -> Card | None:
    """The card of a config with a name; None where its numbers follow from a formula."""
    if name in cost.architecture_names():
        return None
    return card_of(cost.config(name), name, keep_layers)


class OnHub(NamedTuple):
    commit: str
    config: ModelConfig
    """Empty where a GGUF holds it."""
    unavailable: str | None = None
    file_bytes: int | None = None
    """Of that GGUF, where the hub said so."""
    stored_bytes: StoredBytes | None = None
    """Of a quantized model, where the hub told the headers of its files."""


def on_hub(source: HubSource, loads_weights: bool = True) -> OnHub | None:
    """The commit that the source stood for when it was first asked for, and its config; None: the hub is silent.

    Raises:
        SourceError: the hub refuses it, or it has nothing to load where weights are to be loaded.
    """
    try:
        return _REMEMBERED.validate_json(_remembered(source).read_bytes())
    except (OSError, ValidationError):
        pass
    found = hub.look_up(source)
    if found is None:
        return None
    config = read_config(found.config, f"hf://{source.repository}@{source.revision}") if found.config else {}
    pickles = None if source.path else pickles_alone(found.names)
    if loads_weights and found.config and not pickles:
        text = found.config.read_text(encoding="utf-8")
        require_usable(found.names, lambda _: text, f"hf://{source.repository}@{source.revision}")
    stored_bytes = _stored_bytes(source._replace(revision=found.commit)) if method_of(config) else None
    return OnHub(found.commit, config, pickles, found.sizes.get(str(source.path)), stored_bytes)


def _stored_bytes(pinned: HubSource) -> StoredBytes | None:
    """None where the hub does not give the headers: what the config says of its format stands in for them."""
    try:
        return sums(Entry(*each) for each in hub.tensors_of(pinned))
    except SourceError as error:
        logger.warning("%s", error)
        return None


def _remembered(source: HubSource) -> Path:
    return FOLDER / f"{digest(list(source))}.json"


_REMEMBERED = TypeAdapter(OnHub)


def read_config(path: Path, where: str | None = None) -> ModelConfig:
    """The `config.json` at `path`, which messages call the config of `where`. Raises SourceError where it is none."""
    named = f"{where}: {CONFIG}" if where else str(path)
    try:
        value = parse_json(plain_file.read_text(path, CONFIG_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise SourceError(f"{named}: not JSON ({why})") from error
    if not isinstance(value, dict) or not isinstance(value.get("model_type"), str):
        raise SourceError(f"{named}: expected a mapping with a model_type")
    config: ModelConfig = value
    return config


def card_of(config: ModelConfig, where: str, keep_layers: int | None = None) -> Card:
    """The card of `config`, counted once for each version of Transformers.

    Raises:
        SourceError: it is no config of a model that generates text, or its numbers are impossible.
    """
    _require_possible(config, where)
    path = loaded_model.remembered(config, keep_layers)
    try:
        return Card.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        pass
    card = Card.model_validate(counted(counting.__name__, {"config": config, "keep_layers": keep_layers}, where))
    write_json(path, card.model_dump(mode="json"))
    return card


def _in_gguf(path: Path) -> ModelConfig:
    """The config that the header of a GGUF file stands for, found once for each content of the file."""
    (content,) = manifest.hashes([path], fetch.LOCAL_STAMPS).values()
    kept = FOLDER / f"{digest([content, metadata.version('transformers'), counting.VERSION])}.json"
    try:
        return read_config(kept)
    except SourceError:
        config: ModelConfig = counted(gguf_config.__name__, {"path": str(path)}, str(path))
    write_json(kept, config)
    return config


def counted(module: str, request: dict[str, object], where: str) -> dict[str, object]:
    """What `module` answers to `request` in a process of its own, whose time and memory are bounded.

    Raises:
        SourceError: it says why it cannot.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", module],
            input=json.dumps(request),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=COUNTING_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SourceError(f"{where}: counting its weights took over {COUNTING_S:.0f} s: is its config right?") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["counting its weights took too much memory: is its config right?"]
        raise SourceError(lines[-1] if lines[-1].startswith(where) else f"{where}: {lines[-1]}")
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


SIZES = {
    LONGEST: ("num_hidden_layers", "n_layer", "num_layers", "num_attention_heads", "num_key_value_heads", "n_head"),
    1 << 16: ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "head_dim"),
    1 << 28: ("vocab_size", "hidden_size", "n_embd", "intermediate_size", "moe_intermediate_size", "n_inner"),
}
"""Keys of configs, and the most that each may say. Without a bound, making the modules alone takes all memory."""


def _require_possible(config: ModelConfig, where: str) -> None:
    """Raises SourceError where a number of layers, heads, experts or values cannot be one."""
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for most, keys in SIZES.items():
            for key in keys:
                value = part.get(key)
                none = value is None or (value == 0 and "expert" in key)
                if not none and (not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most):
                    said = repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:40]}..."
                    raise SourceError(
                        f"{where}: config.json {key}: expected a whole number from 1 to {most}, got {said}"
                    )
