"""What is known of a source before its weights are fetched: the commit that it stands for, and its model's card.

A config has a few kilobytes, so the hub is asked for it alone, and a local one is read. Counting takes seconds, in a
process of its own, so that planning imports no torch. Both are remembered below `.claimbench/cards`: a branch stands
for the commit that it was at when it was first asked for, until that file is deleted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from claimbench.checkpoints import counting, hub
from claimbench.checkpoints.local_files import CONFIG
from claimbench.checkpoints.model_config import method_of
from claimbench.checkpoints.sources import HubSource, LocalSource, RandomSource, parse
from claimbench.checkpoints.stored import Entry, stored, with_stored
from claimbench.cost_model.cost import ModelConfig
from claimbench.errors import SourceError
from claimbench.schema.card import Card, Stored
from claimbench.schema.json_file import digest, write_json

FOLDER = Path(".claimbench") / "cards"
COUNTING_S = 120.0
LONGEST = 10_000
"""Layers. A config that asks for more is a mistake, and counting them would never end."""


class Known(NamedTuple):
    card: Card | None = None
    content: str | None = None
    """What the source does not pin: the hub's commit, or the hash of a config that random weights are drawn for."""


def find(source: str, keep_layers: int | None = None) -> Known:
    """What is known of `source` now.

    Nothing where its config lies inside a download, and where the hub does not answer and did not before.

    Raises:
        SourceError: it has a config that is not one of a model that generates text.
    """
    meant = parse(source)
    if isinstance(meant, LocalSource):
        path = meant.path / CONFIG
        if not path.is_file():
            return Known()
        return Known(with_stored(card_of(read_config(path), source, keep_layers), meant.path))
    if isinstance(meant, RandomSource):
        if isinstance(meant.architecture, str):
            return Known()
        found = _from_hub(meant.architecture)
        if found is None:
            return Known()
        return Known(card_of(found.config, source, keep_layers), digest(found.config))
    if isinstance(meant, HubSource):
        found = _from_hub(meant)
        if found is None:
            return Known()
        card = card_of(found.config, source, keep_layers) if found.config else None
        return Known(card.model_copy(update={"stored": found.stored}) if card else None, found.commit)
    return Known()


class _OnHub(NamedTuple):
    commit: str
    config: ModelConfig
    """Empty where a GGUF holds it."""
    stored: Stored | None = None
    """Of a quantized model, where the hub told the headers of its files."""


def _from_hub(source: HubSource) -> _OnHub | None:
    """The commit that the source stood for when it was first asked for, and its config; None: the hub is silent."""
    where = FOLDER / f"{digest(list(source))}.json"
    try:
        known = json.loads(where.read_text(encoding="utf-8"))
        kept = known.get("stored")
        return _OnHub(known["commit"], known["config"], Stored.model_validate(kept) if kept else None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    found = hub.config_of(source)
    if found is None:
        return None
    commit, path = found
    config = read_config(path) if path else {}
    entries = hub.tensors_of(source, commit) if method_of(config) else None
    found_here = stored([Entry(*each) for each in entries]) if entries else None
    write_json(where, {"commit": commit, "config": config, "stored": found_here and found_here.model_dump(mode="json")})
    return _OnHub(commit, config, found_here)


def read_config(path: Path) -> ModelConfig:
    """A `config.json`. Raises SourceError where it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict) or not isinstance(value.get("model_type"), str):
        raise SourceError(f"{path}: expected a mapping with a model_type")
    config: ModelConfig = value
    return config


def card_of(config: ModelConfig, where: str, keep_layers: int | None = None) -> Card:
    """The card of `config`, counted once for each version of Transformers.

    Raises:
        SourceError: it is no config of a model that generates text, or its numbers are impossible.
    """
    _require_possible(config, where)
    settings = [config, keep_layers, metadata.version("transformers"), counting.VERSION]
    path = FOLDER / f"{digest(settings)}.json"
    try:
        return Card.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        pass
    command = [sys.executable, "-m", counting.__name__, *([str(keep_layers)] if keep_layers else [])]
    try:
        counted = subprocess.run(
            command, input=json.dumps(config), capture_output=True, text=True, timeout=COUNTING_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise SourceError(f"{where}: counting its weights took over {COUNTING_S:.0f} s: is its config right?") from None
    if counted.returncode:
        lines = counted.stderr.strip().splitlines() or ["no reason was given"]
        raise SourceError(f"{where}: {lines[-1]}")
    card = Card.model_validate_json(counted.stdout.splitlines()[-1])
    write_json(path, card.model_dump(mode="json"))
    return card


def _require_possible(config: ModelConfig, where: str) -> None:
    """Raises SourceError where a number of layers, heads or sizes cannot be one."""
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in ("num_hidden_layers", "n_layer", "num_layers", "num_attention_heads", "n_head", "vocab_size"):
            value = part.get(key)
            if value is None:
                continue
            most = LONGEST if "vocab" not in key else 1 << 28
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise SourceError(
                    f"{where}: config.json {key}: expected a whole number from 1 to {most}, got {value!r}"
                )
